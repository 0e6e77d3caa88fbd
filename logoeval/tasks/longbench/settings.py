"""The settings of LongBench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from logodata.common.errors import did_you_mean
from logodata.common.recipes.reading import RecipeModel
from logoeval.tasks.longbench.metrics import CodeSimBackend
from logoeval.tasks.longbench.task_table import TASKS
from logoeval.tasks.texts import Length


class LongBenchSettings(RecipeModel):
    """LongBench v1, or LongBench-E. Its window is ``engine.max_model_len``, or else the model's."""

    data: Path
    """The hub's ``data.zip``, a folder of its ``.jsonl`` or ``.parquet`` files, or one such file."""
    e: bool = False
    """Measure LongBench-E: other rows of 13 of the tasks, spread evenly over lengths."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names without ``_e``; null takes all that the data hold."""
    max_prompt_tokens: Length | None = None
    """Tokens of a prompt before the chat template; a longer one loses its middle. By default the window less 500."""
    code_sim: CodeSimBackend = "rapidfuzz"
    """Ratio of the code tasks: ``rapidfuzz``, as the official script with python-Levenshtein; ``difflib``, as without
    it."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        in_e = bool(info.data.get("e"))
        known = [name for name, task in TASKS.items() if task.in_e or not in_e]
        for name in value or ():
            if name not in known:
                hint = did_you_mean(name, known, f"known are {', '.join(known)}")
                raise ValueError(f"{name!r} is no task of LongBench{'-E' if in_e else ''}: {hint}")
        if value and len(set(value)) < len(value):
            raise ValueError("must not repeat a task")
        return value
