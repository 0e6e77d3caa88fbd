"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from logodata.common.field_types import OrPath, Tokens, token_count
from logodata.common.recipe_io import RecipeModel
from logodata.engines.settings import EngineSettings
from logoeval.foreign_names import NAMES, VALUES
from logoeval.longbench.metrics import CodeSimBackend
from logoeval.longbench.tasks import TASKS
from logoeval.short.known import KNOWN

Length = Annotated[int, Field(gt=1), BeforeValidator(token_count)]
Lengths = Annotated[tuple[Length, ...], Field(min_length=1)]


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
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"{name!r} is no task of LongBench{'-E' if in_e else ''}: {hint}")
        if value and len(set(value)) < len(value):
            raise ValueError("must not repeat a task")
        return value


class RetrievalSettings(RecipeModel):
    """The retrieval score (LOGO, Eq. 5) of the samples of a needle test."""

    num_calibration: int = Field(default=4, gt=0)
    """Samples for each haystack and length (and depth of ``single``) that find the retrieval heads; none of them is
    measured."""
    heads: Path | None = None
    """``heads.json`` of another run, such as the base model's: its heads are measured. By default the model's own."""


NiahVariant = Literal["multivalue", "single", "shared_answer"]

_RANGE = re.compile(r"([^-/]+)-([^-/]+)/([^-/]+)")
_PAPER_DEPTHS = (0, 22, 44, 66, 88)


def _num_values(settings: dict[str, Any]) -> int:
    return {"single": 1, "shared_answer": 2}.get(settings.get("variant", ""), 4)


def _depths(settings: dict[str, Any]) -> tuple[int, ...]:
    return _PAPER_DEPTHS if settings.get("variant") == "single" else ()


def _spelt_out(entry: object) -> Sequence[object]:
    """The numbers of a range; anything else as it is."""
    if not isinstance(entry, str) or entry.strip().replace(".", "").rstrip(" KkMm").isdecimal():
        return (entry,)
    match = _RANGE.fullmatch(entry.strip())
    if match is None:
        raise ValueError(f"{entry!r} is no range: write START-STOP/STEP, such as 8K-88K/0.5K")
    start, stop, step = (int(token_count(part.strip())) for part in match.groups())
    if step < 1 or start > stop or (stop - start) % step:
        raise ValueError(f"{entry!r}: steps of {step} do not lead from {start} to {stop}")
    return range(start, stop + 1, step)


class NiahSettings(RecipeModel):
    """Needle in a haystack."""

    variant: NiahVariant = "multivalue"
    """``multivalue``: RULER's ``niah_multivalue``, four numbers of one key at random depths. ``single``: one number, at
    each of ``depths``, for a heat map. ``shared_answer``: LOGO's own, two sentences that share one answer."""
    lengths: Lengths = (1024, 2048, 4096)
    """Prompt lengths in tokens of the model, chat template and answer prefix included. Never exceeded. Numbers, K for
    1,024, or ``START-STOP/STEP`` with both ends: ``8K-88K/0.5K`` is the paper's map."""
    depths: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(default_factory=_depths)
    """Percent of the haystack's sentences before the needle; only for ``single`` (default: 0, 22, 44, 66, 88, the
    paper's). The others draw depths at random."""
    num_samples: int = Field(default=25, gt=0)
    """Samples for each haystack and length, and for each depth of ``single``."""
    num_values: int = Field(default_factory=_num_values, gt=0, le=40)
    """Values hidden for the one key that is asked for. Default: 4 for ``multivalue`` (RULER's), 2 for
    ``shared_answer`` (the paper's, at most 8); ``single`` has 1."""
    max_new_tokens: Tokens = 128
    """Length cap of a response (RULER: 128)."""
    haystacks: Annotated[tuple[str, ...], Field(min_length=1), OrPath("noise", "distractors", "essay")] = (
        "noise",
        "essay",
    )
    """``noise``: RULER's five sentences, repeated. ``distractors``: sentences like the needles, of other keys.
    ``essay``: prose of Python's own documentation. Else a folder of .txt files, or one file."""
    retrieval: RetrievalSettings | None = None
    """Also measure which values the model's heads find (transformers)."""

    @field_validator("lengths", mode="before")
    @classmethod
    def _spelt_out(cls, value: object) -> object:
        """``8K-88K/0.5K`` as numbers, also among others."""
        if not isinstance(value, list | tuple):
            return value
        return [length for entry in value for length in _spelt_out(entry)]

    @field_validator("lengths", "depths", "haystacks")
    @classmethod
    def _no_repeats(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat an entry")
        return value

    @field_validator("depths")
    @classmethod
    def _depths_of_single(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        variant = info.data.get("variant")
        if value and variant != "single":
            raise ValueError(f"{variant} draws depths at random: leave them out, or give niah.variant=single")
        if not value and variant == "single":
            raise ValueError("single needs depths")
        return value

    @field_validator("num_values")
    @classmethod
    def _values_of_variant(cls, value: int, info: ValidationInfo) -> int:
        variant = info.data.get("variant")
        if variant == "single" and value != 1:
            raise ValueError("single hides one value: leave it out")
        if variant == "shared_answer" and not 2 <= value <= 8:
            raise ValueError("shared_answer needs 2 to 8 sentences")
        return value


PerplexityProtocol = Literal["one_pass", "sliding"]

_STRIDE = 256


def _stride(settings: dict[str, Any]) -> int | None:
    lengths = settings.get("lengths")
    return min(_STRIDE, min(lengths) // 2) if settings.get("protocol") == "sliding" and lengths else None


def _document_tokens(settings: dict[str, Any]) -> int | None:
    lengths = settings.get("lengths")
    return max(lengths) if settings.get("protocol") == "sliding" and lengths else None


class PerplexitySettings(RecipeModel):
    """Perplexity of long documents, by the number of tokens that the model may look back on."""

    protocol: PerplexityProtocol = "one_pass"
    """``one_pass``: a document is read once, and a point is the perplexity of its first L tokens. ``sliding``: a point
    is a window of L tokens that slides over the whole document and scores each token once (Press et al. 2021, as in
    LOGO's curves on PG-19); all points score the same tokens."""
    lengths: Lengths = (512, 1024, 2048, 4096)
    """Points of the curve in tokens: what is read of a document, or the window that slides over it. Only documents long
    enough for the longest are used, for every point."""
    stride: Tokens | None = Field(default_factory=_stride)
    """Tokens by which the window moves; only for ``sliding`` (default 256, as in YaRN's and LongLoRA's curves, or half
    of a shortest window under 512). In a window of L tokens each has at least L less the stride before it. Half the
    stride is twice the work."""
    document_tokens: Length | None = Field(default_factory=_document_tokens)
    """Tokens of each document over which windows slide; only for ``sliding`` (default: the longest of ``lengths``,
    whose window then has nowhere to move)."""
    text: Annotated[str, OrPath("pydoc")] = "pydoc"
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

    @field_validator("stride", "document_tokens")
    @classmethod
    def _only_sliding(cls, value: int | None, info: ValidationInfo) -> int | None:
        lengths = info.data.get("lengths")
        if lengths is None:  # refused already
            return value
        if info.data.get("protocol") != "sliding":
            if value is not None:
                raise ValueError("one_pass has no windows: leave it out, or give ppl.protocol=sliding")
        elif value is None:
            raise ValueError("sliding needs a number: leave it out for the default")
        elif info.field_name == "stride" and value >= lengths[0]:
            raise ValueError(f"must be less than the shortest window, {lengths[0]} tokens")
        elif info.field_name == "document_tokens" and value < lengths[-1]:
            raise ValueError(f"must hold the longest window, {lengths[-1]} tokens")
        return value


class QaSettings(RecipeModel):
    """The model's own answers to the questions of held-out documents."""

    data: Path
    """Folder that ``logodata build`` wrote with ``judge.enabled=false``, which keeps all questions, from documents that
    were not trained on."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first questions of the folder; null uses all."""
    max_new_tokens: Tokens = 64
    """Length cap of an answer."""


class PairsSettings(RecipeModel):
    """Held-out preference pairs: their log-probabilities, and the model's own answer to the same prompt."""

    data: Path
    """Folder that ``logodata build`` wrote, from documents that were not trained on."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""
    max_new_tokens: Tokens = 64
    """Length cap of the model's own answer."""


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
    """Tasks of lm-evaluation-harness (extra ``short``), with the model in transformers. Log-likelihoods are computed as
    the harness does, all in ``engine.dtype``."""

    tasks: Annotated[tuple[ShortTask, ...], Field(min_length=1)] = tuple(ShortTask(name=name) for name in KNOWN)
    """Names, or ``{name: ..., shots: ..., metric: ...}``. Default: MMLU (5 shots), ARC easy and challenge (25 shots,
    normalised by length), TruthfulQA MC1 and MC2."""
    batch_size: int = Field(default=8, gt=0)
    """Rows of a forward pass."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first samples of each task (of each of MMLU's 57), to try things out. Every label then says so."""
    apply_chat_template: bool = False
    """Write prompts as a chat, examples as its turns. Published numbers do not."""
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


class EvalRecipe(RecipeModel):
    """One evaluation of one model. Two recipes that differ in ``model`` and ``adapter`` only can be compared."""

    own_model = "logoeval TASK --model MODEL, without a recipe, takes the task's own"
    foreign_names = NAMES
    foreign_values = VALUES

    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """``embedded``, a folder, or a hub name."""
    adapter: Path | None = None
    """Folder of an adapter, such as RUN/final of a logotrain run; merged into the weights."""
    chat_template: Path | None = None
    """A Jinja file, for models whose tokenizer has no chat template."""
    seed: int = Field(default=0, ge=0)
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
    qa: QaSettings | None = None
    """Questions on held-out documents."""
    pairs: PairsSettings | None = None
    """Held-out preference pairs."""
    short: ShortSettings | None = None
    """Short-context benchmarks."""
