"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from logodata.common.recipes.files import shipped_recipes
from logodata.common.recipes.reading import load_recipe
from logoeval.recipe.foreign_names import NAMES, VALUES
from logoeval.session import SessionSettings
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.pairs import PairsSettings
from logoeval.tasks.perplexity import PerplexitySettings
from logoeval.tasks.qa import QaSettings
from logoeval.tasks.short.settings import ShortSettings


class EvalRecipe(SessionSettings):
    """One evaluation of one model. Two recipes that differ in ``model`` and ``adapter`` only can be compared."""

    own_model = "logoeval TASK --model MODEL, without a recipe, takes the task's own"
    foreign_names = NAMES
    foreign_values = VALUES

    longbench: LongBenchSettings | None = None
    """LongBench."""
    niah: NiahSettings | None = None
    """Needle in a haystack."""
    ppl: PerplexitySettings | None = None
    """Perplexity."""
    qa: QaSettings | None = None
    """Questions on held-out documents."""
    pairs: PairsSettings | None = None
    """Held-out preference pairs."""
    short: ShortSettings | None = None
    """Short-context benchmarks."""


def load_eval_recipe(
    file: Path | None, task: str | None, fields: Mapping[str, object], overrides: Sequence[str]
) -> EvalRecipe:
    """Read the recipe of an evaluation from its file, options and overrides.

    Args:
        file: a recipe; without one the model ``embedded`` takes the shipped embedded.yaml.
        task: the recipe's other tasks are dropped, and its defaults serve where the file does not have it; None keeps
            the tasks of the recipe.
        fields: what options say, by dotted key; None says nothing.
        overrides: ``key=value``; options hold over them.

    Raises:
        UserError: see :func:`logodata.common.recipes.reading.load_recipe`.
    """
    from logoeval.records import TASK_NAMES

    given = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in fields.items() if value is not None)]
    if file is None and fields["model"] == "embedded":
        file = shipped_recipes() / "embedded.yaml"
    if task is None:
        return load_recipe(EvalRecipe, "eval", file, given)
    given += [f"{other}=null" for other in TASK_NAMES if other != task]
    recipe = load_recipe(EvalRecipe, "eval", file, given)
    return (
        recipe if getattr(recipe, task) is not None else load_recipe(EvalRecipe, "eval", file, [f"{task}={{}}", *given])
    )
