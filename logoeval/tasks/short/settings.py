"""The settings of the short-context benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from logodata.common.recipes.reading import RecipeModel
from logoeval.tasks.short.known import KNOWN


class ShortTask(RecipeModel):
    """A task, group or tag of lm-evaluation-harness."""

    name: str = Field(min_length=1)
    """As the harness knows it, such as ``mmlu``, ``niah_single_1`` or ``longbench2``."""
    shots: int | None = Field(default=None, ge=0)
    """Solved examples in the prompt; null takes the published number for a default task, else the task's own."""
    metric: str | None = None
    """The harness's name, such as ``acc_norm``, or with its filter, ``exact_match,strict-match``; null takes the
    published one for a default task, else the task's first."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and value.get("name") in KNOWN:
            known = KNOWN[value["name"]]
            given = {key: item for key, item in value.items() if item is not None}
            return {"shots": known.shots, "metric": known.metric, **given}
        return value


class ShortSettings(RecipeModel):
    """Tasks of lm-evaluation-harness (extra ``short``), with the model in transformers, or in vLLM with
    ``engine.kind=vllm``. Log-likelihoods are computed as the harness does, all in ``engine.dtype``."""

    tasks: Annotated[tuple[ShortTask, ...], Field(min_length=1)] = tuple(ShortTask(name=name) for name in KNOWN)
    """Names, or ``{name: ..., shots: ..., metric: ...}``. Default: MMLU (5 shots), ARC easy and challenge (25 shots,
    normalised by length), TruthfulQA MC1 and MC2."""
    batch_size: int = Field(default=8, gt=0)
    """Rows of a forward pass (transformers)."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first samples of each task (of each of MMLU's 57), to try things out. Every label then says so."""
    apply_chat_template: bool = False
    """Write prompts as a chat, examples as its turns. Published numbers do not. A model reasons in a chat only."""
    truncate: bool = False
    """Let the harness cut prompts longer than the window on the left, and count them; else they are an error."""
    include_path: Path | None = None
    """Folder of task files (YAML) of your own; they go before the harness's."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Handed to tasks that make their own data, such as ``{max_seq_lengths: [4096, 8192]}`` for ``ruler`` and
    ``{max_seq_lengths: 4k}`` for ``babilong``. The model's name goes with it, as ``pretrained``."""

    @field_validator("tasks")
    @classmethod
    def _no_repeated_task(cls, value: tuple[ShortTask, ...]) -> tuple[ShortTask, ...]:
        if len({task.name for task in value}) < len(value):
            raise ValueError("must not repeat a task")
        return value
