"""A task of one file: how many tokens some words have. It shows all that a task needs besides its row of the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from logodata.common.recipes.reading import RecipeModel
from logodata.engines.settings import EngineSettings
from logoeval.records import Metric, Outcome, SampleRow, TaskResult, hash_ids
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator

METRIC = Metric(key="tokens", label="Tokens of a word", explanation="Fewer are quicker to read.", kind="count")


class ToySettings(RecipeModel):
    """Words to count the tokens of."""

    words: tuple[str, ...] = ("mill", "bridge", "lighthouse", "sea", "miller", "stone", "harbour")
    """The words."""
    most: int | None = Field(default=None, gt=0)
    """Only the first ones."""
    file: Path | None = None
    """A file that the task reads."""


def describe(settings: ToySettings, _: EngineSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"file"})


def run(settings: ToySettings, session: Session, predictions: Path) -> Outcome:
    rows = []
    for word in settings.words[: settings.most]:
        ids = session.bare_tokenizer.encode(word)
        rows.append(SampleRow(id=word, cluster=word, prompt_hash=hash_ids(ids), scores={"tokens": float(len(ids))}))
    return Outcome([METRIC], rows, ["counted, not generated"])


def limits(result: TaskResult) -> Iterator[str]:
    if result.settings["most"] is not None:
        yield f"the first {result.settings['most']} words only (toy.most)"


EVALUATOR = Evaluator(
    settings=ToySettings,
    version=1,
    describe=describe,
    run=run,
    generates=False,
    inputs=lambda settings: [("the toy's file", settings.file)] if settings.file else [],
    limits=limits,
)
