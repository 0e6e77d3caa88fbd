"""Worked samples of the report: held-out questions as text, chosen by rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logodata.common.append_log import AppendLog
from logodata.common.markup import Html, join, tag
from logodata.common.words import content_stems
from logodata.contract import PreferenceSample, Response
from logodata.dataset.inspect_page import chunk_view
from logodata.dataset.samples import read_samples
from logoeval.compare.compare import Comparison, Run
from logoeval.records import PREDICTIONS_DIR, SampleRow
from logoeval.tasks.pairs import sample_hash


def held_out_samples(comparison: Comparison) -> list[PreferenceSample]:
    """The held-out samples that were measured; empty where their folder is gone or has other contents now."""
    result = comparison.runs[0].results.tasks["pairs"]
    folder = Path(result.sources["data"])
    if not (folder / "data").is_dir():
        return []
    measured = {row.id: row.prompt_hash for row in result.samples}
    return [sample for sample in read_samples(folder) if measured.get(sample.id) == sample_hash(sample)]


def worked_samples(comparison: Comparison) -> Html:
    """The held-out questions whose margin rose least, middling and most, with every answer and the whole context."""
    labels = [run.label for run in comparison.runs]
    first, second = ({row.id: row.scores["margin"] for row in _rows(run)} for run in comparison.runs[:2])
    order = sorted(first, key=lambda sample_id: second[sample_id] - first[sample_id])
    picked = {order[0]: "Least gain", order[len(order) // 2]: "Median gain", order[-1]: "Largest gain"}
    samples = {sample.id: sample for sample in held_out_samples(comparison)}
    answers = [AppendLog(run.folder / PREDICTIONS_DIR / "pairs.jsonl") for run in comparison.runs]
    shown = [
        _worked_sample(comparison, samples[sample_id], [records[sample_id] for records in answers], which)
        for sample_id, which in picked.items()
        if sample_id in samples and all(sample_id in records for records in answers)
    ]
    if not shown:
        folder = comparison.runs[0].results.tasks["pairs"].sources["data"]
        return tag("p", f"No questions are shown: {folder} or the predictions are not there any more.", class_="note")
    return join(
        tag("h3", "Three of the questions" if len(shown) == 3 else "Some of the questions"),
        tag(
            "p",
            f"Not chosen by hand: of all {len(order)}, sorted by how far the margin moved up from {labels[0]} to "
            f"{labels[1]}, the first, the middle one and the last.",
        ),
        *shown,
    )


def _worked_sample(
    comparison: Comparison, sample: PreferenceSample, answers: Sequence[dict[str, Any]], which: str
) -> Html:
    stems = {part for answer in sample.answers for part in content_stems(answer)}
    entries = [
        ("question", tag("dd", sample.question)),
        ("reference", tag("dd", " / ".join(sample.answers))),
        ("preferred", _response(sample.chosen)),
        *(("dis-preferred", _response(response)) for response in sample.rejected),
    ]
    for run, answer in zip(comparison.runs, answers, strict=True):
        ended = "ended by itself" if answer["ended"] else "cut at the length cap"
        measures = f"reference words {100 * answer['word_share']:.0f} %, F1 {100 * answer['token_f1']:.0f} %, {ended}"
        entries.append(
            (f"{run.label} answers", tag("dd", answer["response"].strip(), tag("span", measures, class_="measures")))
        )
    moved = ", ".join(f"{run.label} {_margin(run, sample.id):+.2f}" for run in comparison.runs)
    critical = sum(chunk.critical for chunk in sample.chunks)
    return tag(
        "div",
        tag("p", f"{which} in margin: {moved} nats per token.", class_="small"),
        tag("dl", *(join(tag("dt", name), entry) for name, entry in entries)),
        tag("p", f"The context, {len(sample.chunks)} chunks, {critical} of them critical (open):", class_="small"),
        *(chunk_view(chunk, stems) for chunk in sample.chunks),
        class_="sample",
    )


def _margin(run: Run, sample_id: str) -> float:
    return next(row.scores["margin"] for row in _rows(run) if row.id == sample_id)


def _rows(run: Run) -> list[SampleRow]:
    return run.results.tasks["pairs"].samples


def _response(response: Response) -> Html:
    ended = "ended by itself" if response.ended else "cut at the length cap"
    cached = ", from a cache" if response.origin == "cache" else ""
    measures = f"{response.strategy}; reference words {100 * response.word_share:.0f} %, {ended}{cached}"
    return tag("dd", response.text.strip(), tag("span", measures, class_="measures"))
