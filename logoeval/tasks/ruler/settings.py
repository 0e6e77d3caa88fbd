"""The settings of RULER."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from logodata.common.errors import did_you_mean
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import token_count
from logoeval.tasks.ruler.prompts import TemplateChoice
from logoeval.tasks.ruler.task_table import TASKS, Task

_Length = Annotated[int, Field(ge=256), BeforeValidator(token_count)]
"""The most frequent words need 256 tokens to stand in the text at all."""


class RulerSettings(RecipeModel):
    """RULER. Its window is ``engine.max_model_len``, or else the model's."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names such as ``niah_single_1``, ``vt`` and ``qa_1``; null takes all 13, without those whose file is not
    given."""
    lengths: Annotated[tuple[_Length, ...], Field(min_length=1)] | None = None
    """Tokens of a prompt with its answer, chat template included; never exceeded. Null takes those of RULER's (4K, 8K,
    16K, 32K, 64K, 128K) that the window holds."""
    num_samples: int = Field(default=100, gt=0)
    """Samples of each task and length (RULER: 500)."""
    template: TemplateChoice = "chat"
    """``chat`` is the model's chat template; ``none`` is RULER's ``base``, for models that have none."""
    essays: Path | None = None
    """Paul Graham's essays, for five of the needle tasks: RULER's ``PaulGrahamEssays.json``, a .txt file, or a folder
    of them. Other prose is another benchmark."""
    squad: Path | None = None
    """SQuAD 2.0's ``dev-v2.0.json``, for ``qa_1``; may be compressed."""
    hotpot: Path | None = None
    """HotpotQA's ``hotpot_dev_distractor_v1.json``, for ``qa_2``; may be compressed."""
    threshold: float = Field(default=85.6, gt=0, le=100)
    """The score in percent that a length must reach to be effective (RULER: that of Llama-2-7B at 4K)."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in TASKS:
                hint = did_you_mean(name, TASKS, f"known are {', '.join(TASKS)}")
                raise ValueError(f"{name!r} is no task of RULER: {hint}")
        return value

    @field_validator("tasks", "lengths")
    @classmethod
    def _no_repeats(cls, value: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if value and len(set(value)) < len(value):
            raise ValueError("must not repeat an entry")
        return value

    @model_validator(mode="after")
    def _files_of_named_tasks(self) -> Self:
        for task in (TASKS[name] for name in self.tasks or ()):
            if task.needs and getattr(self, task.needs) is None:
                raise ValueError(f"{task.name} needs ruler.{task.needs}=FILE")
        return self

    @property
    def chosen(self) -> list[Task]:
        """The tasks that are measured, in RULER's order."""
        return [task for task in TASKS.values() if self._has_file(task) and (not self.tasks or task.name in self.tasks)]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The tasks that are left out for want of a file, by the setting that gives it."""
        found: dict[str, list[str]] = {}
        for task in TASKS.values():
            if self.tasks is None and task.needs and not self._has_file(task):
                found.setdefault(task.needs, []).append(task.name)
        return found

    def _has_file(self, task: Task) -> bool:
        return task.needs is None or getattr(self, task.needs) is not None
