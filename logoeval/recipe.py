"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from logodata.common.recipe_io import RecipeModel
from logodata.engines.settings import EngineSettings
from logoeval.longbench.metrics import CodeSimBackend
from logoeval.longbench.tasks import TASKS

Lengths = Annotated[tuple[Annotated[int, Field(gt=1)], ...], Field(min_length=1)]


class LongBenchSettings(RecipeModel):
    """LongBench v1, or LongBench-E. Its window is ``engine.max_model_len``, or else the model's."""

    data: Path
    """The hub's ``data.zip``, a folder of its ``.jsonl`` or ``.parquet`` files, or one such file."""
    e: bool = False
    """Measure LongBench-E: other rows of 13 of the tasks, spread evenly over lengths."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names without ``_e``; null takes all that the data hold."""
    max_prompt_tokens: int | None = Field(default=None, gt=1)
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
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"{name!r} is no task of LongBench{'-E' if in_e else ''}: {hint}")
        if value and len(set(value)) < len(value):
            raise ValueError("must not repeat a task")
        return value


class NiahSettings(RecipeModel):
    """Multi-value needle in a haystack, as RULER's ``niah_multivalue``."""

    lengths: Lengths = (1024, 2048, 4096)
    """Prompt lengths in tokens of the model, chat template and answer prefix included. Never exceeded."""
    num_samples: int = Field(default=25, gt=0)
    """Samples for each haystack and length."""
    num_values: int = Field(default=4, gt=0, le=40)
    """Values hidden for the one key that is asked for (RULER: 4)."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Length cap of a response (RULER: 128)."""
    haystacks: Annotated[tuple[str, ...], Field(min_length=1)] = ("noise", "essay")
    """``noise``: RULER's five sentences, repeated. ``essay``: prose of Python's own documentation. Else a folder of
    .txt files."""

    @field_validator("lengths", "haystacks")
    @classmethod
    def _no_repeats(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat an entry")
        return value


class PerplexitySettings(RecipeModel):
    """Perplexity over the first tokens of long documents."""

    lengths: Lengths = (512, 1024, 2048, 4096)
    """Points of the curve in tokens. Only documents with at least the longest are used, for every point."""
    text: str = "pydoc"
    """``pydoc``: prose of Python's own documentation, cut at topics. Else a .txt file or a folder of them, a document
    each."""
    num_documents: int = Field(default=8, gt=0)
    """Documents used, in order of name."""

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(sorted(set(value))) != value:
            raise ValueError("must rise")
        return value


class PairsSettings(RecipeModel):
    """Held-out preference pairs: their log-probabilities, and the model's own answer to the same prompt."""

    data: Path
    """Folder that ``logodata build`` wrote, from documents that were not trained on."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Length cap of the model's own answer."""


class EvalRecipe(RecipeModel):
    """One evaluation of one model. Two recipes that differ in ``model`` and ``adapter`` only can be compared."""

    model: str = Field(min_length=1)
    """``embedded``, a folder, or a hub name."""
    adapter: Path | None = None
    """Folder of a LoRA adapter, such as RUN/final of a logotrain run; merged into the weights."""
    chat_template: Path | None = None
    """A Jinja file, for models whose tokenizer has no chat template."""
    seed: int = 0
    """Draws needles and haystacks."""
    engine: EngineSettings = EngineSettings()
    """What generates. Log-probabilities are computed by transformers whatever it is, with weights of ``engine.dtype``,
    in float32 from the head's output on."""
    longbench: LongBenchSettings | None = None
    """LongBench."""
    niah: NiahSettings | None = None
    """Needle in a haystack."""
    ppl: PerplexitySettings | None = None
    """Perplexity."""
    pairs: PairsSettings | None = None
    """Held-out preference pairs."""
