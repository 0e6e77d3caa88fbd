"""How answers go wrong, as people read it: in the terminal, and as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.markup import Html, join, number_cell, raw, tag
from logodata.common.run_dir import write_json
from logoeval import figures
from logoeval.answers import Answer
from logoeval.compare import Comparison, Run, Value
from logoeval.errors import (
    CAUTION,
    OUTCOMES,
    PATTERNS,
    Analysis,
    Group,
    Outcome,
    analyse,
    describe_rule,
    draw_examples,
    read_and_analyse,
    record,
)

_REPORT_EXAMPLES = 3


def show_errors(folders: Sequence[Path], *, wrong_below: float, num_examples: int, out: Path | None) -> None:
    """``logoeval errors``: a table of shares, the lengths of wrong answers, examples; the same as JSON into ``out``.

    Raises:
        UserError: see :func:`logoeval.errors.read_and_analyse`; or a count of examples below 0.
    """
    if num_examples < 0:
        raise UserError(f"--examples is {num_examples}", mend="give 0 for none")
    analysis = read_and_analyse(folders, wrong_below)
    console.print(_shares(analysis))
    console.print()
    console.print(_lengths(analysis))
    console.print()
    for text in (describe_rule(wrong_below), *analysis.notes, CAUTION):
        console.print(text, markup=False, soft_wrap=True)
    for run, answers in zip(analysis.comparison.runs, analysis.answers, strict=True):
        for pattern in PATTERNS:
            shown = draw_examples(answers[pattern], num_examples)
            if shown:
                console.print()
                console.print(Text(_title(run, pattern, len(shown), len(answers[pattern])), style="bold"))
            for answer in shown:
                _print_example(answer)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record(analysis, num_examples))
        console.print(f"wrote {out}", markup=False, soft_wrap=True)


def _shares(analysis: Analysis) -> Table:
    """A row a run, and one for its difference from the first; whole points, which 80 columns hold and the intervals
    allow. The exact ones are in the JSON."""
    labels = [run.label for run in analysis.comparison.runs]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("percent [95 %]", overflow="fold")
    for name in OUTCOMES.values():
        table.add_column(name, justify="right")
    for group in analysis.groups:
        indent = "" if group.part is None else "  "
        table.add_row(Text(f"{indent}{group.title}, {group.num_answers:,}", style="bold"))
        rows = list(group.rows.values())
        for number, label in enumerate(labels):
            values = [_points(row.values[number], "") for row in rows]
            table.add_row(Text(f"{indent}  {label}"), *(Text(value) for value in values))
            if number:
                changes = [_points(row.differences[number - 1].change, "+") for row in rows]
                table.add_row(Text(f"{indent}    - {labels[0]}"), *(Text(change) for change in changes))
    return table


def _points(value: Value, sign: str) -> str:
    return _interval(value, lambda share: f"{round(100 * share):{sign}d}")


def _lengths(analysis: Analysis) -> Table:
    table = Table("words of a wrong answer, median", box=None, pad_edge=False)
    for run in analysis.comparison.runs:
        table.add_column(Text(run.label), justify="right")
    for title, cells in _length_rows(analysis):
        table.add_row(Text(title), *cells)
    return table


def _length_rows(analysis: Analysis) -> Iterator[tuple[str, list[str]]]:
    for group in analysis.groups:
        if group.part is None:
            for outcome, values in group.median_words.items():
                cells = ["-" if value is None else f"{value:g}" for value in values]
                yield f"{group.title}: {OUTCOMES[outcome]}", cells


def _print_example(answer: Answer) -> None:
    entries = (
        ("", _name(answer)),
        ("question", answer.question),
        ("reference", " / ".join(answer.references)),
        ("answer", answer.response),
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=9)
    grid.add_column(overflow="fold")
    for name, text in entries:
        grid.add_row(name, Text(_one_line(text), style="" if name else "dim"))
    console.print(grid)


def _one_line(text: str) -> str:
    """White space collapsed, and what a terminal would obey written out: a response may hold escape sequences."""
    flat = " ".join(text.split())
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in flat
    )


def errors_section(comparison: Comparison) -> Html:
    """The section of the report; nothing where no task asks questions, and a note where answers cannot be read."""
    try:
        analysis = analyse(comparison.runs)
    except UserError as error:
        return join(_HEADING, tag("p", f"Not counted: {error}", class_="note"))
    notes = tag("ul", *(tag("li", note) for note in analysis.notes), class_="small") if analysis.notes else raw("")
    if not analysis.groups:
        return join(_HEADING, notes) if analysis.notes else raw("")
    whole = [group for group in analysis.groups if group.part is None]
    labels = [run.label for run in analysis.comparison.runs]
    return join(
        _HEADING,
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
        _about_pairs(whole),
        notes,
        tag(
            "figure",
            tag("div", *(_bars(group, labels) for group in whole), class_="panels"),
            tag("figcaption", "Each bar is all answers of a run; numbers are percent, written where they fit."),
        ),
        _shares_table(whole, labels),
        _lengths_table(analysis, labels),
        tag(
            "p",
            f"Read the lengths beside the shares: {CAUTION.split(':')[0]}. A model that learns to answer in "
            "fewer words moves from one kind of error to the other without knowing more or less.",
            class_="note",
        ),
        _by_task(analysis, labels),
        *_examples(analysis),
    )


_HEADING = tag("h2", "How answers go wrong")


def _about_pairs(groups: Sequence[Group]) -> Html:
    if not any(group.task == "pairs" for group in groups):
        return raw("")
    return tag(
        "p",
        "Held-out pairs are questions that the model they were built with answered wrong from a poorer context, so "
        "they are hard for it; compare runs on them, but take no share for that of questions in general.",
        class_="note",
    )


def _bars(group: Group, labels: Sequence[str]) -> Html:
    rows = [
        (label, [group.rows[outcome].values[number].value for outcome in OUTCOMES])
        for number, label in enumerate(labels)
    ]
    return figures.stacked_bars(group.title, list(OUTCOMES.values()), rows, unit=f"of {group.num_answers:,} answers")


def _shares_table(groups: Sequence[Group], labels: Sequence[str]) -> Html:
    """Shares and their differences with intervals; on a telephone each row becomes a block."""
    first, *others = labels
    names = [*labels, *(f"{label} - {first}" for label in others)]
    head = [tag("th", ""), *(tag("th", name, class_="n") for name in names)]
    body = []
    for group in groups:
        body.append(_heading_row(f"{group.title}: percent of {group.num_answers:,} answers [95 %]", len(head)))
        for outcome, row in group.rows.items():
            cells = [_interval(value, row.metric.show) for value in row.values]
            cells += [_interval(difference.change, row.metric.show_difference) for difference in row.differences]
            numbers = (number_cell(cell, name) for cell, name in zip(cells, names, strict=True))
            body.append(tag("tr", tag("th", OUTCOMES[outcome], scope="row"), *numbers))
    return _stacking(head, body, wide=len(others) > 1)


def _interval(value: Value, show: Callable[[float], str]) -> str:
    """A share or a difference of shares. Where every resample gives the same there is no interval to speak of."""
    texts = [
        None if share is None else show(share).removesuffix(" %") for share in (value.value, value.low, value.high)
    ]
    if value.low is None or value.high is None or value.low == value.high:
        return f"{texts[0]}"
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _lengths_table(analysis: Analysis, labels: Sequence[str]) -> Html:
    head = [tag("th", ""), *(tag("th", label, class_="n") for label in labels)]
    body = [_heading_row("Median length of a wrong answer, in words", len(head))]
    for title, cells in _length_rows(analysis):
        numbers = (number_cell(cell, label) for cell, label in zip(cells, labels, strict=True))
        body.append(tag("tr", tag("th", title, scope="row"), *numbers))
    return _stacking(head, body, wide=False)


def _heading_row(title: str, width: int) -> Html:
    # In the body, not the head: a telephone shows no head.
    return tag("tr", tag("th", tag("strong", title), colspan=str(width), scope="colgroup"))


def _stacking(head: Sequence[Html], body: Sequence[Html], *, wide: bool) -> Html:
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="stacks")
    return tag("div", table, class_="scroll wide" if wide else "scroll")


def _by_task(analysis: Analysis, labels: Sequence[str]) -> Html:
    parts = [group for group in analysis.groups if group.part is not None]
    if not parts:
        return raw("")
    return tag(
        "details",
        tag("summary", f"each of LongBench’s {len(parts)} tasks"),
        tag("figure", tag("div", *(_bars(group, labels) for group in parts), class_="panels")),
        _shares_table(parts, labels),
    )


def _examples(analysis: Analysis) -> Iterator[Html]:
    for run, answers in zip(analysis.comparison.runs, analysis.answers, strict=True):
        for pattern in PATTERNS:
            if answers[pattern]:
                yield _drawn_examples(run, pattern, answers[pattern])


def _drawn_examples(run: Run, pattern: Outcome, answers: Sequence[Answer]) -> Html:
    shown = draw_examples(answers, _REPORT_EXAMPLES)
    title = _title(run, pattern, len(shown), len(answers))
    return tag("details", tag("summary", title), *(_example(answer) for answer in shown))


def _title(run: Run, pattern: Outcome, num_shown: int, num_found: int) -> str:
    return f"{run.label}, {OUTCOMES[pattern]}: {num_shown} of {num_found:,} answers, drawn by chance"


def _example(answer: Answer) -> Html:
    entries = {
        "question": answer.question,
        "reference": " / ".join(answer.references),
        "answer": answer.response.strip(),
    }
    return tag(
        "div",
        tag("p", _name(answer), class_="small"),
        tag("dl", *(join(tag("dt", name), tag("dd", text)) for name, text in entries.items())),
        class_="sample",
    )


def _name(answer: Answer) -> str:
    return f"held-out pair {answer.id}" if answer.task == "pairs" else f"{answer.part} {answer.id.split('/', 1)[1]}"
