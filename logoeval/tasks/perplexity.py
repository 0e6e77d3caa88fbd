"""Perplexity of long documents by how much of them the model may look back on. Two protocols, two questions.

``one_pass``: PPL(L) = exp(mean negative log-likelihood of the tokens predicted within the first L). A causal model
gives a token the same likelihood whatever follows it, so one pass at the longest length gives every point, equal to
running each length by itself. Not so under RoPE types whose frequencies depend on the total length: there each length
is run by itself.

``sliding``: PPL(W) = exp(mean negative log-likelihood of all tokens of the document but the first, each predicted under
a window of W tokens that slides over it); see :func:`logoeval.tasks.token_likelihoods.sliding_windows`. Every pass of
a point has the same length, so RoPE types that depend on it need no care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.finite import DAMAGED
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens
from logodata.engines.settings import EngineSettings
from logodata.models.rope import length_dependent_rope, reset_rope
from logodata.models.vocabulary import check_ids, vocabulary_size
from logodata.prompts import encode_text
from logoeval.records import Metric, Outcome, SampleRow, TaskResult, hash_ids
from logoeval.session import Session, check_weights
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.record_file import Prediction, RecordFile, check_kept
from logoeval.tasks.texts import (
    PYDOC,
    Length,
    Lengths,
    pydoc_documents,
    read_documents,
    text_files,
    text_fingerprint,
)
from logoeval.tasks.token_likelihoods import check_logits, sliding_nlls, sliding_windows, token_nlls

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STRIDE = 256


def _stride(settings: dict[str, Any]) -> int | None:
    lengths = settings.get("lengths")
    return min(_STRIDE, min(lengths) // 2) if settings.get("protocol") == "sliding" and lengths else None


def _document_tokens(settings: dict[str, Any]) -> int | None:
    lengths = settings.get("lengths")
    return max(lengths) if settings.get("protocol") == "sliding" and lengths else None


class PerplexitySettings(RecipeModel):
    """Perplexity of long documents, by the number of tokens that the model may look back on."""

    protocol: Literal["one_pass", "sliding"] = "one_pass"
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
    text: Annotated[str, OrPath(PYDOC)] = PYDOC
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


_MOST_NATS = 700.0
"""exp of more is no number in float64."""


class PointScores(Prediction):
    """The scores of one document: a line of ``ppl.jsonl``. Further fields are the mean negative log-likelihoods in nats
    of points of the curve, by the keys of their metrics."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    num_tokens: int


def metrics(settings: PerplexitySettings) -> list[Metric]:
    """Return the metrics of the curve: for ``one_pass`` two a length, over the first L tokens and over the second half
    of them, which have read the most; for ``sliding`` one a window."""
    return [
        Metric(
            key=f"{kind}@{length}",
            label=f"Perplexity, {label}",
            explanation=explanation,
            kind="perplexity",
            better="lower",
            headline=length == settings.lengths[-1],
        )
        for length in settings.lengths
        for kind, label, explanation in _kinds(length, settings.stride)
    ]


def _kinds(length: int, stride: int | None) -> Iterator[tuple[str, str, str]]:
    surprised = "How surprised the model is by real text"
    if stride is not None:
        yield (
            "sliding",
            f"window of {length:,} tokens",
            f"{surprised}, each token predicted from the {length - stride:,} to {length - 1:,} tokens before it (fewer "
            "where the document begins).",
        )
        return
    yield "ppl", f"first {length:,} tokens", f"{surprised}, over the first {length:,} tokens of each document."
    yield (
        "tail",
        f"tokens {length // 2:,} to {length:,}",
        f"The same over the tokens after the first {length // 2:,}, which have the most text before them.",
    )


def describe(settings: PerplexitySettings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; the text by its contents, wherever it lies.

    Raises:
        UserError: the engine has no log-probabilities.
    """
    check_weights(engine)
    return {
        **settings.model_dump(mode="json"),
        "text": settings.text if settings.text == PYDOC else Path(settings.text).name,
        "text_fingerprint": text_fingerprint("\n\n".join(text for _, text in _sources(settings))),
    }


def settings_of(result: TaskResult) -> PerplexitySettings:
    """Return the settings of a result. Of a text of one's own they hold only the name."""
    return PerplexitySettings.model_validate(
        {name: value for name, value in result.settings.items() if name in PerplexitySettings.model_fields}
    )


def _sources(settings: PerplexitySettings) -> tuple[tuple[str, str], ...]:
    return pydoc_documents() if settings.text == PYDOC else read_documents(Path(settings.text))


def documents(
    settings: PerplexitySettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the token ids of each document, cut to what is scored of it, and notes on how the documents are read and
    what was left out.

    A beginning-of-sequence token comes first if and only if the tokenizer writes one by itself; it counts as a token.
    It is part of every window that slides over the document.

    Raises:
        UserError: no document is long enough.
    """
    slides = settings.protocol == "sliding"
    length = settings.document_tokens or settings.lengths[-1]
    first = begin_ids(tokenizer)
    found: dict[str, list[int]] = {}
    short = 0
    for name, text in _grouped(settings, tokenizer, length):
        ids = [*first, *encode_text(tokenizer, text)]
        if len(ids) < length:
            short += 1
        elif len(found) < settings.num_documents:
            found[name] = ids[:length]
    if not found:
        raise UserError(
            f"ppl.text: no document has {length} tokens, "
            + ("ppl.document_tokens" if slides else "the longest of ppl.lengths"),
            where=settings.text,
            mend="lower ppl.lengths or give longer texts",
        )
    reading, begin = "one pass over each document", "yes"
    if slides:
        reading = f"sliding windows (Press et al. 2021) over {length} tokens of each document, stride {settings.stride}"
        begin = "yes, in every window"
    notes = [reading, f"beginning-of-sequence token: {begin if first else 'no'}"]
    if len(found) < settings.num_documents:
        notes.append(f"{len(found)} documents have {length} tokens, {settings.num_documents} were asked for")
    if short:
        notes.append(f"{short} documents are shorter than {length} tokens and were left out")
    return found, notes


def _grouped(
    settings: PerplexitySettings, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[tuple[str, str]]:
    """Documents as they are; the built-in topics are short, and are joined until each document is long enough."""
    if settings.text != PYDOC:
        yield from _sources(settings)
        return
    names: list[str] = []
    texts: list[str] = []
    num_tokens = 0
    for name, text in _sources(settings):
        names.append(name)
        texts.append(text)
        num_tokens += len(encode_text(tokenizer, text))
        if num_tokens >= length:
            yield names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}", "\n\n".join(texts)
            names, texts, num_tokens = [], [], 0


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence token, if the tokenizer writes one by itself."""
    ids = tokenizer.encode("a", add_special_tokens=True)
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def run(settings: PerplexitySettings, session: Session, predictions: Path) -> Outcome:
    """Score all documents; a row is a document.

    Raises:
        UserError: a document is beyond the window, or the model gives no numbers on it.
    """
    session.check_window(settings.lengths[-1], "the longest of ppl.lengths")
    found, notes = documents(settings, session.bare_tokenizer)
    for name, ids in found.items():
        check_ids(vocabulary_size(session.config), ids, where=f"document {name}")
    rope_type = length_dependent_rope(session.config)
    if rope_type and settings.protocol == "one_pass":
        notes[0] = f"RoPE type {rope_type!r} depends on the total length: each length was run by itself"
    # A record holds the scores of a document at all lengths that one pass gives. By its id: the document, the lengths.
    parts: dict[str, tuple[str, tuple[int, ...]]] = {name: (name, settings.lengths) for name in found}
    if rope_type or settings.protocol == "sliding":
        parts = {f"{name}@{length}": (name, (length,)) for name in found for length in settings.lengths}
    hashes = {name: hash_ids(ids) for name, ids in found.items()}
    file = RecordFile(predictions / "ppl.jsonl", PointScores)
    check_kept(file, {record_id: hashes[name] for record_id, (name, _) in parts.items()})
    waiting = {record_id: part for record_id, part in parts.items() if record_id not in file}
    if waiting:
        num_begin = len(begin_ids(session.bare_tokenizer))
        check_logits(session.model, next(iter(found.values()))[:8])
        total, left = (sum(_work(settings, lengths) for _, lengths in some.values()) for some in (parts, waiting))
        with progress("ppl: tokens read", total, total - left) as tracker:
            for record_id, (name, lengths) in waiting.items():
                scores = _measure(settings, session.model, found[name], lengths, num_begin, tracker.advance)
                for key, nats in scores.items():
                    if not nats < _MOST_NATS:  # nor is nan
                        raise UserError(
                            f"{key}: a mean negative log-likelihood of {nats} nats is no perplexity",
                            where=f"document {name}",
                            mend=DAMAGED,
                        )
                file.append(PointScores(id=record_id, prompt_hash=hashes[name], num_tokens=len(found[name]), **scores))
    wanted = metrics(settings)
    points: dict[str, dict[str, float]] = {name: {} for name in found}
    for record_id, (name, _) in parts.items():
        points[name] |= file[record_id].__pydantic_extra__
    rows = [
        SampleRow(
            id=name,
            cluster=name,
            prompt_hash=hashes[name],
            scores={metric.key: points[name][metric.key] for metric in wanted},
        )
        for name in found
    ]
    return Outcome(wanted, rows, notes)


def _work(settings: PerplexitySettings, lengths: tuple[int, ...]) -> int:
    """Tokens of all passes that give the scores of one record."""
    longest = lengths[-1]
    if settings.document_tokens is None or settings.stride is None:
        return longest
    return sum(min(end, longest) for end, _ in sliding_windows(settings.document_tokens, longest, settings.stride))


def _measure(
    settings: PerplexitySettings,
    model: PreTrainedModel,
    ids: list[int],
    lengths: Sequence[int],
    num_begin: int,
    on_pass: Callable[[int], None],
) -> dict[str, float]:
    """Means in nats over the tokens of each point. ``nlls[i]`` belongs to token i + 1, so the first L tokens hold L - 1
    predictions."""
    reset_rope(model)
    if settings.stride is not None:
        (window,) = lengths
        nlls = sliding_nlls(model, ids, window, settings.stride, num_begin=num_begin, on_pass=on_pass)
        return {f"sliding@{window}": float(nlls.mean())}
    nlls = token_nlls(model, ids[: lengths[-1]])
    on_pass(lengths[-1])
    scores = {}
    for length in lengths:
        scores[f"ppl@{length}"] = float(nlls[: length - 1].mean())
        scores[f"tail@{length}"] = float(nlls[length // 2 - 1 : length - 1].mean())
    return scores


def inputs(settings: PerplexitySettings) -> Iterator[tuple[str, Path]]:
    """Yield the path of a text of one's own, which must be there."""
    if settings.text != PYDOC:
        text_files(Path(settings.text))
        yield "a text", Path(settings.text)


EVALUATOR = Evaluator(
    settings=PerplexitySettings, version=1, describe=describe, run=run, inputs=inputs, generates=False, scores=True
)
