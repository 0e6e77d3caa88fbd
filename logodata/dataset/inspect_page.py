"""Show samples as an HTML page: what was asked, what was preferred to what, what was not kept, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import check_apart, check_place, make_folder_of, write_atomic
from logodata.common.markup import Html, join, page, raw, tag
from logodata.common.words import content_stems, marked
from logodata.contract import ContextChunk, DecisionRow, ImportManifest, PreferenceSample, RejectedQuestion, Response
from logodata.dataset.card import describe, describe_patterns, show_percent
from logodata.dataset.files import read_recipe, read_stats
from logodata.dataset.inspect_words import (
    in_words,
    kept_responses,
    make_up,
    percent,
    read_decisions,
    read_rejected,
    role_in_words,
    ruling,
)
from logodata.dataset.prompt_texts import PromptTexts
from logodata.dataset.samples import iterate_samples, read_manifest
from logodata.judge.settings import JudgeSettings

_NUM_SAMPLES = 50
_NUM_PER_REASON = 5


def write_page(data: Path, path: Path, question_id: str | None = None, count: int | None = None) -> str:
    """Write a self-contained HTML page of a data set, with all text escaped, and return in words what it shows.

    Args:
        data: The folder of a build, which may have kept no pair.
        question_id: The only question to show; by default all are shown.
        count: The most samples, and the most questions of each reason; by default 50 and 5.

    Raises:
        UserError: The folder holds no build, there is no such question, or ``path`` cannot be written.
    """
    check_place(path)
    check_apart(path, ("the data set", data))
    if path.is_dir():
        raise UserError("is a folder", where=str(path), mend="give --html FILE.html")
    rejected = read_rejected(data)
    shown: list[PreferenceSample] = []
    num_samples, most = 0, _NUM_SAMPLES if count is None else count
    for sample in iterate_samples(data) if (data / "data").is_dir() or not rejected else ():
        if question_id in (None, sample.id):
            num_samples += 1
            shown += [sample] if num_samples <= most else []
    if question_id is not None:
        rejected = [row for row in rejected if row.id == question_id]
        if not num_samples and not rejected:
            mend = "ids are in data/*.parquet and rejected.jsonl"
            raise UserError(f"no question {question_id!r}", where=str(data), mend=mend)
    counts = Counter(row.reason for row in rejected).most_common()
    by_count = [(reason, [row for row in rejected if row.reason == reason]) for reason, _ in counts]
    limit = _NUM_PER_REASON if count is None else count
    unkept = [row.id for _, rows in by_count for row in rows[:limit]]
    manifest = read_manifest(data) if (data / "manifest.json").is_file() else None
    sections: list[Html] = []
    decisions: dict[str, list[DecisionRow]] = {}
    judge = JudgeSettings()
    if isinstance(manifest, ImportManifest):
        texts = PromptTexts(manifest)
        sections = [_imported(sample, texts.of(sample)) for sample in shown]
    elif not any(row.stage == "import" for row in rejected):  # nothing was judged in an import
        decisions, judge = read_decisions(data, {*unkept, *(sample.id for sample in shown)}), read_recipe(data).judge
        sections = [_sample(sample, kept_responses(sample, decisions[sample.id]), judge) for sample in shown]
    style = resources.files("logodata.dataset").joinpath("inspect_page.css").read_text(encoding="utf-8")
    html = page(
        f"Samples of {data.name}",
        style,
        _headline(data, shown, num_samples, by_count),
        *sections,
        *(_reason(number, reason, rows, limit, decisions, judge) for number, (reason, rows) in enumerate(by_count)),
    )
    make_folder_of(path)
    write_atomic(path, html)
    return f"{len(shown)} of {num_samples} samples and {len(unkept)} of {len(rejected)} questions without one"


def chunk_view(chunk: ContextChunk, stems: set[str]) -> Html:
    """Return a chunk to open and close. A critical one is open, and words with these stems are marked in it."""
    score = "" if chunk.score is None else f", score {chunk.score:g}"
    name = f"{chunk.doc_id or 'prompt'}, chunk {chunk.index}{', critical' if chunk.critical else ''}{score}"
    text = _mark_words(chunk.text.strip(), stems) if chunk.critical else chunk.text.strip()
    body = join(tag("summary", name), tag("div", text, class_="chunk"))
    return raw(f'<details class="critical" open>{body}</details>') if chunk.critical else tag("details", body)


def _mark_words(text: str, stems: set[str]) -> Html:
    return join(*(tag("mark", part) if is_wanted else part for part, is_wanted in marked(text, stems)))


def _headline(
    data: Path,
    shown: Sequence[PreferenceSample],
    num_samples: int,
    reasons: Sequence[tuple[str, Sequence[RejectedQuestion]]],
) -> Html:
    stats = read_stats(data)
    summary = describe(stats)
    facts = [f"{summary[0].upper()}{summary[1:]}."]
    if stats.kept and stats.evaluator:
        patterns = describe_patterns(stats)
        facts.append(f"{patterns[0].upper()}{patterns[1:]}.")
        facts.append(f"Purity {show_percent(stats.purity)}: kept pairs that no verdict contradicts.")
    if (data / "manifest.json").is_file():
        manifest = read_manifest(data)
        facts.append(
            f"Imported from {manifest.source.path} with the tokenizer of {manifest.model}."
            if isinstance(manifest, ImportManifest)
            else f"Made from {manifest.source.path} by {manifest.model} ({manifest.model_fingerprint}), engine "
            f"{manifest.engine}."
        )
    if shown:
        which = "All" if len(shown) == num_samples else f"The first {len(shown)} of"
        marks = "; words of the reference are marked" if stats.evaluator else ""
        facts.append(f"{which} {num_samples} samples are below{marks}.")
    links = [
        tag("li", tag("a", f"{in_words(reason)} ({len(rows)})", href=f"#reason-{number}"))
        for number, (reason, rows) in enumerate(reasons)
    ]
    return join(
        tag("h1", f"Samples of {data.name}"),
        *(tag("p", fact, class_="facts") for fact in facts),
        tag("nav", tag("p", "Not kept, by reason:", class_="small"), tag("ul", *links)) if links else "",
    )


def _sample(sample: PreferenceSample, responses: Sequence[tuple[DecisionRow, int]], judge: JudgeSettings) -> Html:
    stems = _stems(sample.answers)
    critical = sum(chunk.critical for chunk in sample.chunks)
    held = sample.answer_in_critical
    where = "" if held is None else f", which {'hold' if held else 'do not hold'} every content word of a reference"
    return tag(
        "section",
        tag("p", f"{sample.id}, {in_words(sample.kind)}, {len(sample.prompt_ids)} prompt tokens", class_="small facts"),
        tag("p", sample.question or "", class_="question"),
        _reference(sample.answers) if sample.answers else "",
        tag(
            "div",
            *(
                _answer(row, "preferred", sample.question or "", stems, judge, num_tokens)
                for row, num_tokens in responses
            ),
            class_="answers",
        ),
        tag(
            "p",
            f"The context: {len(sample.chunks)} chunks, {critical} of them critical (open){where}.",
            class_="small",
        ),
        *(chunk_view(chunk, stems) for chunk in sample.chunks),
        class_="sample",
    )


def _imported(sample: PreferenceSample, prompt: str) -> Html:
    """Show an imported pair: the prompt as text, and the responses."""

    def answer(title: str, role: str, response: Response) -> Html:
        said, measures = response.text.strip(), f"{len(response.token_ids)} tokens"
        return tag(
            "div",
            tag("h4", f"{title}: {response.strategy}"),
            tag("p", said, class_="said"),
            tag("span", measures, class_="measures"),
            class_=f"answer {role}",
        )

    return tag(
        "section",
        tag("p", f"{sample.id}, {len(sample.prompt_ids)} prompt tokens", class_="small facts"),
        tag(
            "div",
            answer("preferred", "preferred", sample.chosen),
            *(answer("dis-preferred", "dis-preferred", response) for response in sample.rejected),
            class_="answers",
        ),
        tag("details", tag("summary", "the prompt"), tag("div", prompt, class_="chunk")),
        class_="sample",
    )


def _answer(
    row: DecisionRow,
    preferred: str,
    question: str,
    stems: set[str],
    judge: JudgeSettings,
    num_tokens: int | None = None,
) -> Html:
    """Show a response with the decision on it. ``preferred`` is the title of one that was meant to be preferred."""
    title = preferred if row.role == "preferred" else role_in_words(row)
    role = title if title in ("preferred", "dis-preferred") else "unused"
    measures = f"{make_up(row, num_tokens)}; F1 {percent(row.token_f1)}"
    return tag(
        "div",
        tag("h4", f"{title}: {row.strategy}"),
        tag("p", _mark_words(row.text.strip(), stems), class_="said"),
        tag("p", ruling(row, question, judge), class_="verdict"),
        tag("span", measures, class_="measures"),
        class_=f"answer {role}",
    )


def _reason(
    number: int,
    reason: str,
    rows: Sequence[RejectedQuestion],
    limit: int,
    decisions: Mapping[str, Sequence[DecisionRow]],
    judge: JudgeSettings,
) -> Html:
    """Show the questions that one reason kept out."""
    shown = rows[:limit]
    some = "" if len(shown) == len(rows) else f", the first {len(shown)}"
    return tag(
        "section",
        tag("h2", f"Not kept: {in_words(reason)} ({len(rows)}{some})", id=f"reason-{number}"),
        *(_unkept(row, decisions.get(row.id, ()), judge) for row in shown),
    )


def _unkept(row: RejectedQuestion, decisions: Sequence[DecisionRow], judge: JudgeSettings) -> Html:
    answers = row.answers or []
    stems = _stems(answers)
    detail = f": {row.detail}" if row.detail else ""
    question = row.question or ""
    cards = [_answer(decision, "candidate for the preferred", question, stems, judge) for decision in decisions]
    return tag(
        "div",
        tag("p", f"{row.id}, {row.where}, {in_words(row.reason)}{detail}", class_="small facts"),
        tag("p", question or "(no question)", class_="question") if row.stage != "import" else "",
        _reference(answers) if answers else "",
        tag("div", *cards, class_="answers") if cards else "",
        class_="sample",
    )


def _reference(answers: Sequence[str]) -> Html:
    return tag("p", "Reference: ", tag("strong", " / ".join(answers)), class_="reference")


def _stems(answers: Sequence[str]) -> set[str]:
    return {part for answer in answers for part in content_stems(answer)}
