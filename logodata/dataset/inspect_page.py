"""Samples as a page to look at: what was asked, what was preferred to what, and what was not kept, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import check_apart, check_place, make_folder_of, write_atomic
from logodata.common.markup import Html, join, page, raw, tag
from logodata.common.words import content_stems, marked
from logodata.contract import ContextChunk, PreferenceSample, read_manifest, read_samples
from logodata.dataset.card import describe, describe_patterns, show_percent
from logodata.dataset.files import iterate_rejected, read_stats
from logodata.dataset.inspect_words import Row, make_up, read_decisions, read_judge, response_rows, ruling
from logodata.judge.settings import JudgeSettings

_NUM_SAMPLES = 50
_NUM_PER_REASON = 5

_Unkept = dict[str, Any]
"""A row of ``rejected.jsonl``."""


def write_page(data: Path, path: Path, question_id: str | None = None, count: int | None = None) -> str:
    """Write a self-contained HTML page of a data set. All text from data is escaped; nothing is loaded from elsewhere.

    Args:
        data: folder of a build; one in which no pair was kept shows what was not.
        path: the page.
        question_id: show this question only.
        count: samples, and questions of each reason, at most; 50 and 5 if None.

    Returns:
        what is on it, in words.

    Raises:
        UserError: no build there, no such question, or ``path`` cannot be written.
    """
    check_place(path)
    check_apart(path, ("the data set", data))
    if path.is_dir():
        raise UserError("is a folder", where=str(path), mend="give --html FILE.html")
    rejected = list(iterate_rejected(data)) if (data / "rejected.jsonl").is_file() else []
    samples = read_samples(data) if (data / "data").is_dir() or not rejected else []
    if question_id is not None:
        samples = [sample for sample in samples if sample.id == question_id]
        rejected = [row for row in rejected if row["id"] == question_id]
        if not samples and not rejected:
            raise UserError(
                f"no question {question_id!r}", where=str(data), mend="ids are in data/*.parquet and rejected.jsonl"
            )
    shown = samples[: _NUM_SAMPLES if count is None else count]
    groups: dict[str, list[_Unkept]] = defaultdict(list)
    for row in rejected:
        groups[row["reason"]].append(row)
    by_count = sorted(groups.items(), key=lambda group: -len(group[1]))
    limit = _NUM_PER_REASON if count is None else count
    unkept = [row["id"] for _, rows in by_count for row in rows[:limit]]
    decisions, judge = read_decisions(data, {*unkept, *(sample.id for sample in shown)}), read_judge(data)
    style = resources.files("logodata.dataset").joinpath("inspect_page.css").read_text(encoding="utf-8")
    html = page(
        f"Samples of {data.name}",
        style,
        _headline(data, shown, len(samples), by_count),
        *(_sample(sample, response_rows(sample, decisions[sample.id]), judge) for sample in shown),
        *(_reason(number, reason, rows, limit, decisions, judge) for number, (reason, rows) in enumerate(by_count)),
    )
    make_folder_of(path)
    write_atomic(path, html)
    told = sum(min(len(rows), limit) for _, rows in by_count)
    return f"{len(shown)} of {len(samples)} samples and {told} of {len(rejected)} questions without one"


def chunk_view(chunk: ContextChunk, stems: set[str]) -> Html:
    """A chunk to open and close; a critical one is open, with the words of these stems marked."""
    name = f"{chunk.doc_id}, chunk {chunk.index}{', critical' if chunk.critical else ''}, score {chunk.score:g}"
    text = _mark_words(chunk.text.strip(), stems) if chunk.critical else chunk.text.strip()
    body = join(tag("summary", name), tag("div", text, class_="chunk"))
    return raw(f'<details class="critical" open>{body}</details>') if chunk.critical else tag("details", body)


def _mark_words(text: str, stems: set[str]) -> Html:
    """The text with the words of these stems marked."""
    return join(*(tag("mark", part) if is_wanted else part for part, is_wanted in marked(text, stems)))


def _headline(
    data: Path, shown: Sequence[PreferenceSample], num_samples: int, reasons: Sequence[tuple[str, Sequence[_Unkept]]]
) -> Html:
    stats = read_stats(data)
    summary = describe(stats)
    facts = [f"{summary[0].upper()}{summary[1:]}."]
    if stats["kept"]:
        patterns = describe_patterns(stats)
        facts.append(f"{patterns[0].upper()}{patterns[1:]}.")
        if "purity" in stats:  # not in those of earlier versions
            facts.append(f"Purity {show_percent(stats['purity'])}: kept pairs that no verdict contradicts.")
    if (data / "manifest.json").is_file():
        manifest = read_manifest(data)
        facts.append(
            f"Made from {manifest['source']['path']} by {manifest['model']} ({manifest['model_fingerprint']}), engine "
            f"{manifest['engine']}."
        )
    if shown:
        which = "All" if len(shown) == num_samples else f"The first {len(shown)} of"
        facts.append(f"{which} {num_samples} samples are below; words of the reference are marked.")
    links = [
        tag("li", tag("a", f"{_in_words(reason)} ({len(rows)})", href=f"#reason-{number}"))
        for number, (reason, rows) in enumerate(reasons)
    ]
    return join(
        tag("h1", f"Samples of {data.name}"),
        *(tag("p", fact, class_="facts") for fact in facts),
        tag("nav", tag("p", "Not kept, by reason:", class_="small"), tag("ul", *links)) if links else "",
    )


def _sample(sample: PreferenceSample, rows: Sequence[Row], judge: JudgeSettings) -> Html:
    stems = _stems(sample.answers)
    critical = sum(chunk.critical for chunk in sample.chunks)
    where = "hold" if sample.answer_in_critical else "do not hold"
    return tag(
        "section",
        tag(
            "p", f"{sample.id}, {_in_words(sample.kind)}, {len(sample.prompt_ids)} prompt tokens", class_="small facts"
        ),
        tag("p", sample.question, class_="question"),
        _reference(sample.answers),
        tag(
            "div",
            *(_answer(row, "preferred", sample.question, stems, judge) for row in rows),
            class_="answers",
        ),
        tag(
            "p",
            f"The context: {len(sample.chunks)} chunks, {critical} of them critical (open), which {where} every "
            "content word of a reference.",
            class_="small",
        ),
        *(chunk_view(chunk, stems) for chunk in sample.chunks),
        class_="sample",
    )


def _answer(row: Row, preferred: str, question: str, stems: set[str], judge: JudgeSettings) -> Html:
    """A response with what was decided on it; ``preferred`` is what one of that role is called here."""
    title = preferred if row["role"] == "preferred" else "dis-preferred"
    role = "unused" if title not in ("preferred", "dis-preferred") else title
    measures = f"{make_up(row)}; F1 {100 * row['token_f1']:.0f} %"
    return _card(role, f"{title}: {row['strategy']}", row["text"], stems, ruling(row, question, judge), measures)


def _card(role: str, title: str, text: str, stems: set[str], verdict: str = "", measures: str = "") -> Html:
    return tag(
        "div",
        tag("h4", title),
        tag("p", _mark_words(text.strip(), stems), class_="said"),
        tag("p", verdict, class_="verdict") if verdict else "",
        tag("span", measures, class_="measures") if measures else "",
        class_=f"answer {role}",
    )


def _reason(
    number: int,
    reason: str,
    rows: Sequence[_Unkept],
    limit: int,
    decisions: Mapping[str, Sequence[Row]],
    judge: JudgeSettings,
) -> Html:
    """The questions that one reason kept out."""
    shown = rows[:limit]
    some = "" if len(shown) == len(rows) else f", the first {len(shown)}"
    return tag(
        "section",
        tag("h2", f"Not kept: {_in_words(reason)} ({len(rows)}{some})", id=f"reason-{number}"),
        *(_unkept(row, decisions.get(row["id"], ()), judge) for row in shown),
    )


def _unkept(row: _Unkept, decisions: Sequence[Row], judge: JudgeSettings) -> Html:
    answers = row.get("answers", [])
    stems = _stems(answers)
    candidate = "candidate for the preferred"
    cards = [_answer(decision, candidate, row["question"], stems, judge) for decision in decisions] or [
        *(_card("unused", candidate, text, stems) for text in row.get("preferred", [])),
        *(_card("dis-preferred", "dis-preferred", text, stems) for text in row.get("rejected", [])),
    ]
    detail = f": {row['detail']}" if row.get("detail") else ""
    return tag(
        "div",
        tag("p", f"{row['id']}, {row['where']}, {_in_words(row['reason'])}{detail}", class_="small facts"),
        tag("p", row["question"] or "(no question)", class_="question"),
        _reference(answers) if answers else "",
        tag("div", *cards, class_="answers") if cards else "",
        class_="sample",
    )


def _reference(answers: Sequence[str]) -> Html:
    return tag("p", "Reference: ", tag("strong", " / ".join(answers)), class_="reference")


def _stems(answers: Sequence[str]) -> set[str]:
    return {part for answer in answers for part in content_stems(answer)}


def _in_words(name: str) -> str:
    return name.replace("_", " ")
