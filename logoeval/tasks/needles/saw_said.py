"""Saw and said: the retrieval score on the samples of a needle test, beside the recall of the answers.

Every sample is traced twice over one prefill. Over the model's own answer: Eq. 5 as published, where a head can only
copy what the model says. And over the gold answer, fed to it (teacher forcing): every model then answers the same
steps, and a value that the model does not say can still be seen to be found. The table of saw and said takes "saw" from
the second.

Heads are found by the gold answers of calibration samples, drawn with another seed. A run writes the heads of its own
model to ``heads.json``; another run measures the same heads if it is given that file. Records keep what every head
copied, so heads are chosen after the work, not before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.files import write_json
from logodata.common.records import ABSENT
from logodata.models.adapters import adapter_fingerprint
from logodata.models.facts import model_fingerprint
from logodata.models.loading import load_config
from logodata.prompts import encode_text
from logoeval.records import Metric, Outcome, SampleRow, hash_ids
from logoeval.session import Session
from logoeval.tasks.needles.heads import (
    HEADS_FILE,
    MIN_SCORE,
    Head,
    Heads,
    choose_heads,
    copied_tokens,
    decode_copies,
    encode_copies,
    find_needles,
    score_sample,
    shares,
)
from logoeval.tasks.needles.scores import NiahFacts
from logoeval.tasks.needles.settings import RetrievalSettings
from logoeval.tasks.record_file import Prediction, RecordFile, check_kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALIBRATION_SEED_OFFSET = 7_919_000
"""Added to the recipe's seed: calibration samples are none of those that a run with a small seed measures."""

_SHARES: list[tuple[str, str, str, Literal["higher", "lower"] | None]] = [
    (
        "retrieval_own",
        "Needle retrieval, this model's own heads",
        "The same as “Needle retrieval”, with heads found on the measured model itself.",
        "higher",
    ),
    (
        "retrieval_forced_own",
        "Needle retrieval, right answer fed, this model's own heads",
        "The same with the right answer fed, with heads found on the measured model itself.",
        "higher",
    ),
    (
        "saw",
        "Numbers seen",
        "Share of the numbers at whose beginning one of the ten heads looks when the right answer, fed to the model, "
        "comes to them.",
        "higher",
    ),
    ("saw_and_said", "Numbers seen and said", "Share of the numbers both seen and said.", "higher"),
    ("saw_only", "Numbers seen, not said", "Share of the numbers seen that the answer lacks.", None),
    ("said_only", "Numbers said, not seen", "Share of the numbers said that the heads were not seen to find.", None),
    ("neither", "Numbers neither seen nor said", "Share of the numbers neither seen nor said.", "lower"),
    (
        "said_minus_saw",
        "Said minus saw",
        "Share of the numbers said less the share seen: below zero, the model finds more than it says.",
        None,
    ),
]
METRICS = [
    Metric.share(
        "retrieval",
        "Needle retrieval",
        "Share of a hidden number's tokens that a retrieval head looks at in the text as the model's own answer says "
        "them, mean over the ten best heads (LOGO, Eq. 5).",
        slice_by=["haystack", "length"],
    ),
    Metric.share(
        "retrieval_forced",
        "Needle retrieval, right answer fed",
        "The same while the right answer is fed to the model, so that every model answers the same steps.",
        slice_by=["haystack", "length"],
    ),
    *(Metric.share(key, label, text, better, headline=False) for key, label, text, better in _SHARES),
]


@dataclass(frozen=True, slots=True)
class TraceItem:
    """A sample to trace: its prompt, the values hidden in it, and the token ids of the model's own answer."""

    id: str
    prompt_ids: tuple[int, ...]
    values: tuple[str, ...]
    answer_ids: tuple[int, ...] = ()


class Trace(Prediction):
    """What each head copies into the gold answer, and into the model's own (:func:`encode_copies`): a line of
    ``niah-retrieval.jsonl``. ``niah-calibration.jsonl`` has no own answers.

    ``sizes`` are the numbers of tokens of the needles; ``unlike`` counts those that the gold answer does not hold.
    """

    answer_hash: str
    sizes: list[int]
    unlike: int
    gold: dict[str, str]
    own: dict[str, str] | None = ABSENT

    @property
    def input_hash(self) -> str:
        """A hash of the prompt and of the model's own answer."""
        return self.prompt_hash + self.answer_hash


def check(session: Session) -> None:
    """Raise a ``UserError``, before any work, if the engine does not show the attention, or the model reasons first or
    has layers with limited attention."""
    from logoeval.tasks.needles.attention_trace import check_model

    kind = session.settings.engine.kind
    if kind != "transformers":
        raise UserError(
            f"niah.retrieval: the retrieval score reads the model's attention, which engine.kind={kind} does not show",
            mend="use engine.kind=transformers",
        )
    if session.reasoning.budget:
        raise UserError(
            "niah.retrieval: answers are fed right behind their prompts, and this model reasons between the two",
            mend="set thinking_tokens=0",
        )
    check_model(load_config(session.settings.model, adapter=session.settings.adapter))


def extend(
    outcome: Outcome,
    settings: RetrievalSettings,
    session: Session,
    predictions: Path,
    *,
    items: Sequence[TraceItem],
    calibration: Sequence[TraceItem],
) -> Outcome:
    """Return ``outcome`` with the retrieval scores of its samples, and write ``heads.json`` beside ``predictions``. The
    rows of ``outcome`` have :class:`NiahFacts`; ``items`` are their samples in the same order, with the answers, and
    ``calibration`` the samples that find the heads.

    Raises:
        UserError: the model's attention cannot be traced, a file of heads does not fit, or a record is of another
            prompt or answer.
    """
    from logoeval.tasks.needles.attention_trace import head_grid

    config = load_config(session.settings.model, adapter=session.settings.adapter)
    grid = head_grid(config)
    given = Heads.read(settings.heads, grid) if settings.heads is not None else None  # before the work
    found = _trace(session, calibration, predictions / "niah-calibration.jsonl", own_answer=False)
    scores = [shares(decode_copies(trace.gold, grid, trace.sizes), trace.sizes).mean(axis=-1) for trace in found]
    own = Heads(
        model=session.settings.model,
        model_fingerprint=model_fingerprint(session.settings.model),
        adapter_fingerprint=adapter_fingerprint(session.settings.adapter),
        calibration={trace.id: trace.prompt_hash for trace in found},
        num_layers=grid[0],
        num_heads=grid[1],
        retrieval_heads=choose_heads(np.mean(scores, axis=0)),
    )
    write_json(predictions.parent / HEADS_FILE, own.to_json())
    heads = given or own

    traces = _trace(session, items, predictions / "niah-retrieval.jsonl", own_answer=True)
    rows = [
        _extended(row, trace, grid, heads.best, own.best) for row, trace in zip(outcome.samples, traces, strict=True)
    ]
    return replace(
        outcome,
        metrics=[*outcome.metrics, *METRICS],
        samples=rows,
        notes=[*outcome.notes, *_notes(own, given, settings.heads), *_unlike(traces)],
        settings={**outcome.settings, "retrieval_heads": heads.fingerprint},
    )


def gold_answer(tokenizer: PreTrainedTokenizerBase, values: Sequence[str]) -> list[int]:
    """Return the token ids of the right answer, as it follows the beginning that the prompt gives it: `` 1, 2, and
    3.``"""
    *first, last = values
    listed = last if not first else f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}"
    return encode_text(tokenizer, f" {listed}.")


def _trace(session: Session, items: Sequence[TraceItem], path: Path, *, own_answer: bool) -> list[Trace]:
    """The trace of each item, in order."""
    from logoeval.tasks.needles.attention_trace import trace_answers

    file = RecordFile(path, Trace)
    hashes = {item.id: (hash_ids(item.prompt_ids), hash_ids(item.answer_ids)) for item in items}
    check_kept(file, {item_id: "".join(pair) for item_id, pair in hashes.items()})
    waiting = [item for item in items if item.id not in file]
    if waiting:
        label = "retrieval" if own_answer else "retrieval heads"
        with progress(label, len(items), len(items) - len(waiting)) as tracker:
            for item in waiting:
                needles = find_needles(session.tokenizer, item.prompt_ids, item.values)
                gold = gold_answer(session.tokenizer, item.values)
                answers = [gold, list(item.answer_ids)] if own_answer else [gold]
                longest = len(item.prompt_ids) + max(map(len, answers))
                session.check_window(longest, "the longest of niah.lengths with an answer")
                traces = trace_answers(session.model, item.prompt_ids, answers)
                copies = [
                    encode_copies(copied_tokens(attended, ids, needles), needles.sizes)
                    for ids, attended in zip(answers, traces, strict=True)
                ]
                prompt_hash, answer_hash = hashes[item.id]
                file.append(
                    Trace(
                        id=item.id,
                        prompt_hash=prompt_hash,
                        answer_hash=answer_hash,
                        sizes=list(needles.sizes),
                        unlike=sum(token not in gold for token in needles.token_ids),
                        gold=copies[0],
                        own=copies[1] if own_answer else None,
                    )
                )
                tracker.advance()
    return [file[item.id] for item in items]


def _extended(
    row: SampleRow, trace: Trace, grid: tuple[int, int], heads: Sequence[Head], own_heads: Sequence[Head]
) -> SampleRow:
    assert trace.own is not None
    sizes, facts = trace.sizes, NiahFacts.model_validate(row.facts)
    own, gold = (decode_copies(copies, grid, sizes) for copies in (trace.own, trace.gold))
    forced = score_sample(gold, sizes, heads)
    table = saw_said(forced.seen, facts.found)
    scores = {
        "retrieval": score_sample(own, sizes, heads).score,
        "retrieval_forced": forced.score,
        "retrieval_own": score_sample(own, sizes, own_heads).score,
        "retrieval_forced_own": score_sample(gold, sizes, own_heads).score,
        "saw": sum(forced.seen) / len(sizes),
        **{key: count / len(sizes) for key, count in table.items()},
        "said_minus_saw": (table["said_only"] - table["saw_only"]) / len(sizes),
    }
    seen = facts.model_copy(update={"seen": list(forced.seen)})
    return row.model_copy(update={"scores": {**row.scores, **scores}, "facts": seen.to_json()})


def saw_said(saw: Sequence[bool], said: Sequence[bool]) -> dict[str, int]:
    """Return how many values are in each cell of the 2x2 table."""
    pairs = list(zip(saw, said, strict=True))
    return {
        "saw_and_said": pairs.count((True, True)),
        "saw_only": pairs.count((True, False)),
        "said_only": pairs.count((False, True)),
        "neither": pairs.count((False, False)),
    }


def _notes(own: Heads, given: Heads | None, path: Path | None) -> Iterator[str]:
    best = ", ".join(f"{head.layer}.{head.head} {head.score:.2f}" for head in own.best) or "none"
    yield (
        f"retrieval heads: {len(own.retrieval_heads)} of {own.num_layers * own.num_heads} reach {MIN_SCORE} on "
        f"{len(own.calibration)} calibration samples; the best (layer.head score): {best}"
    )
    used = given or own
    if given is not None:
        adapter = f" with adapter {given.adapter_fingerprint}" if given.adapter_fingerprint else ""
        yield f"retrieval is measured on the heads of {path}, found on {given.model}{adapter}"
    if not used.best:
        yield f"no head reaches {MIN_SCORE}: retrieval scores are 0"
    elif len(used.best) < 10:
        yield f"only {len(used.best)} heads reach {MIN_SCORE}: retrieval is the mean over them"


def _unlike(traces: Sequence[Trace]) -> Iterator[str]:
    """Needle tokens that the gold answer does not hold cannot be copied: this lowers every model's score."""
    missing = sum(trace.unlike for trace in traces)
    if missing:
        total = sum(sum(trace.sizes) for trace in traces)
        yield f"{missing} of {total} needle tokens are tokenised otherwise in the answer, and cannot be copied"
