"""How answers go wrong, as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from logodata.common.errors import UserError
from logodata.common.markup import Html, join, raw, tag
from logoeval.compare.answers import Answer
from logoeval.compare.compare import Comparison, Run, Value
from logoeval.compare.wrong_answers import (
    CAUTION,
    OUTCOMES,
    PATTERNS,
    Analysis,
    Group,
    Outcome,
    analyse,
    draw_examples,
)
from logoeval.records import Metric
from logoeval.report import figures
from logoeval.report.tables import Section, Table, titled

_TITLE = "How answers go wrong"
_EXAMPLES = 3
_SHARE = Metric.share("share", "Share", "Share of the answers.")


def errors_section(comparison: Comparison) -> Section | None:
    """Return the section; None if no task asks questions. It is a note if answers cannot be read."""
    try:
        analysis = analyse(comparison.runs)
    except UserError as error:
        return Section(_TITLE, tag("p", f"Not counted: {error}", class_="note"))
    notes = tag("ul", *(tag("li", note) for note in analysis.notes), class_="small") if analysis.notes else raw("")
    if not analysis.groups:
        return Section(_TITLE, notes) if analysis.notes else None
    whole = [group for group in analysis.groups if group.part is None]
    parts = [group for group in analysis.groups if group.part is not None]
    labels = [run.label for run in analysis.runs]
    shares = _shares_table("Right and wrong answers", whole, labels)
    medians = [[title, *cells] for title, cells in length_rows(analysis)]
    lengths = Table("Median length of a wrong answer, in words", ["", *labels], medians, style="stacks")
    by_task = _shares_table("Right and wrong answers by task of LongBench", parts, labels)
    bars = tag("figure", tag("div", *(_bars(group, labels) for group in parts), class_="panels"))
    summary = tag("summary", f"each of LongBench’s {len(parts)} tasks")
    about_pairs = (
        "Held-out pairs are questions that the model they were built with answered wrong from a poorer context, so "
        "they are hard for it; compare runs on them, but take no share for that of questions in general."
    )
    body = join(
        tag(
            "p",
            "An answer to a question is right, or wrong in one of three ways (LOGO, Appendix C). It speaks of what the "
            "question speaks of and says what is false: a hallucination. It shares no name, number or other content "
            "word with the question: instruction unfollowing. Or it is empty, without a word; such answers are counted "
            "by themselves, since a model that ends at once has another fault.",
        ),
        tag(
            "p",
            f"An answer is wrong that holds under {100 * analysis.wrong_below:g} % of the content words of every "
            "reference, which is how the training data are judged too. It is not LongBench’s F1: that takes a right "
            "answer in a whole sentence for a wrong one.",
        ),
        tag("p", about_pairs, class_="note") if any(group.task == "pairs" for group in whole) else "",
        notes,
        tag(
            "figure",
            tag("div", *(_bars(group, labels) for group in whole), class_="panels"),
            tag("figcaption", "Each bar is all answers of a run; numbers are percent, written where they fit."),
        ),
        shares.html(),
        titled(lengths),
        tag(
            "p",
            f"Read the lengths beside the shares: {CAUTION.split(':')[0]}. A model that learns to answer in "
            "fewer words moves from one kind of error to the other without knowing more or less.",
            class_="note",
        ),
        tag("details", summary, bars, by_task.html()) if parts else "",
        *_examples(analysis),
    )
    return Section(_TITLE, body, [shares, lengths, *([by_task] if parts else [])])


def _bars(group: Group, labels: Sequence[str]) -> Html:
    rows = [(label, [found.values[i].value for found in group.outcomes.values()]) for i, label in enumerate(labels)]
    return figures.stacked_bars(group.title, list(OUTCOMES.values()), rows, unit=f"of {group.num_answers:,} answers")


def _shares_table(title: str, groups: Sequence[Group], labels: Sequence[str]) -> Table:
    first, *others = labels
    rows: list[list[str]] = []
    for group in groups:
        rows.append([f"{group.title}: percent of {group.num_answers:,} answers [95 %]"])
        for outcome, found in group.outcomes.items():
            cells = [interval(value, _SHARE.show) for value in found.values]
            cells += [interval(difference.change, _SHARE.show_difference) for difference in found.differences]
            rows.append([OUTCOMES[outcome], *cells])
    head = ["", *labels, *(f"{label} - {first}" for label in others)]
    return Table(title, head, rows, style="stacks", wide=len(others) > 1)


def interval(value: Value, show: Callable[[float], str]) -> str:
    """Return a share or a difference of shares with its interval. If every resample gave the same, there is none."""

    def shown(share: float) -> str:
        return show(share).removesuffix(" %")

    if value.low is None or value.high is None or value.low == value.high:
        return shown(value.value)
    return f"{shown(value.value)} [{shown(value.low)}, {shown(value.high)}]"


def length_rows(analysis: Analysis) -> Iterator[tuple[str, list[str]]]:
    """Yield what was counted over all answers of a task, with a median for each run."""
    for group in analysis.groups:
        if group.part is None:
            for pattern in PATTERNS:
                medians = group.outcomes[pattern].median_words or ()
                cells = ["-" if value is None else f"{value:g}" for value in medians]
                yield f"{group.title}: {OUTCOMES[pattern]}", cells


def _examples(analysis: Analysis) -> Iterator[Html]:
    for run, answers in zip(analysis.runs, analysis.answers, strict=True):
        for pattern in PATTERNS:
            shown = draw_examples(answers[pattern], _EXAMPLES)
            title = examples_title(run, pattern, len(shown), len(answers[pattern]))
            if shown:
                yield tag("details", tag("summary", title), *map(_example, shown))


def examples_title(run: Run, pattern: Outcome, num_shown: int, num_found: int) -> str:
    """Return a heading that says which examples follow."""
    return f"{run.label}, {OUTCOMES[pattern]}: {num_shown} of {num_found:,} answers, drawn by chance"


def _example(answer: Answer) -> Html:
    said = {"question": answer.question, "reference": " / ".join(answer.references), "answer": answer.response.strip()}
    entries = (join(tag("dt", name), tag("dd", text)) for name, text in said.items())
    return tag("div", tag("p", answer_name(answer), class_="small"), tag("dl", *entries), class_="sample")


def answer_name(answer: Answer) -> str:
    """Return the name of an answer's task and sample."""
    if answer.task == "longbench":
        return f"{answer.part} {answer.id.split('/', 1)[1]}"
    return f"held-out {'question' if answer.task == 'qa' else 'pair'} {answer.id}"
