"""Worked samples of the report: held-out questions as text, chosen by rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logodata.common.markup import Html, join, tag
from logodata.common.words import content_stems
from logodata.contract import PreferenceSample, Response
from logodata.dataset.inspect_page import chunk_view
from logodata.dataset.samples import iterate_samples
from logoeval.compare.compare import Comparison
from logoeval.records import PREDICTIONS_DIR, sample_hash
from logoeval.tasks.qa import QaAnswer
from logoeval.tasks.record_file import RecordFile


def held_out_samples(comparison: Comparison) -> list[PreferenceSample]:
    """Return the held-out samples that were measured, or none if their folder is gone or has other contents now."""
    result = comparison.runs[0].results.tasks["pairs"]
    folder = Path(result.sources["data"])
    if not (folder / "data").is_dir():
        return []
    measured = {row.id: row.prompt_hash for row in result.samples}
    return [sample for sample in iterate_samples(folder) if measured.get(sample.id) == sample_hash(sample)]


def worked_samples(comparison: Comparison) -> Html:
    """Return the held-out questions whose margin rose least, middling and most, with every answer and the whole
    context."""
    labels, results = comparison.labels, [run.results.tasks["pairs"] for run in comparison.runs]
    margins = [{row.id: row.scores["margin"] for row in result.samples} for result in results]
    first, second = margins[:2]
    order = sorted(first, key=lambda sample_id: second[sample_id] - first[sample_id])
    picked = {order[0]: "Least gain", order[len(order) // 2]: "Median gain", order[-1]: "Largest gain"}
    samples = {sample.id: sample for sample in held_out_samples(comparison)}
    answers = [RecordFile(run.folder / PREDICTIONS_DIR / "pairs.jsonl", QaAnswer) for run in comparison.runs]
    shown = []
    for sample_id, which in picked.items():
        if sample_id in samples and all(sample_id in records for records in answers):
            moved = ", ".join(
                f"{label} {margin[sample_id]:+.2f}" for label, margin in zip(labels, margins, strict=True)
            )
            lead = f"{which} in margin: {moved} nats per token."
            shown.append(_worked_sample(lead, labels, samples[sample_id], [records[sample_id] for records in answers]))
    if not shown:
        folder = results[0].sources["data"]
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


def _worked_sample(lead: str, labels: Sequence[str], sample: PreferenceSample, answers: Sequence[QaAnswer]) -> Html:
    stems = {part for answer in sample.answers for part in content_stems(answer)}
    entries = [
        *([("question", tag("dd", sample.question))] if sample.question else []),
        *([("reference", tag("dd", " / ".join(sample.answers)))] if sample.answers else []),
        ("preferred", _response(sample.chosen)),
        *(("dis-preferred", _response(response)) for response in sample.rejected),
    ]
    for label, answer in zip(labels, answers, strict=True):
        measures = [_ended(answer.ended)]
        if answer.word_share is not None and answer.token_f1 is not None:
            measures = [
                f"reference words {100 * answer.word_share:.0f} %",
                f"F1 {100 * answer.token_f1:.0f} %",
                *measures,
            ]
        entries.append((f"{label} answers", _said(answer.response, ", ".join(measures))))
    critical = sum(chunk.critical for chunk in sample.chunks)
    return tag(
        "div",
        tag("p", lead, class_="small"),
        tag("dl", *(join(tag("dt", name), entry) for name, entry in entries)),
        tag("p", f"The context, {len(sample.chunks)} chunks, {critical} of them critical (open):", class_="small")
        if sample.chunks
        else "",
        *(chunk_view(chunk, stems) for chunk in sample.chunks),
        class_="sample",
    )


def _response(response: Response) -> Html:
    cached = ", from a cache" if response.origin == "cache" else ""
    measured = response.word_share is not None
    words = f"; reference words {100 * response.word_share:.0f} %" if response.word_share is not None else ""
    ended = f", {_ended(response.ended)}" if measured else ""  # who wrote a given one, and how, is not known
    return _said(response.text, f"{response.strategy}{words}{ended}{cached}")


def _ended(by_itself: bool) -> str:
    return "ended by itself" if by_itself else "cut at the length cap"


def _said(text: str, measures: str) -> Html:
    return tag("dd", text.strip(), tag("span", measures, class_="measures"))
