"""How answers go wrong, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.files import make_folder_of, write_json
from logoeval.compare.answers import Answer
from logoeval.compare.compare import Value
from logoeval.compare.wrong_answers import (
    CAUTION,
    OUTCOMES,
    PATTERNS,
    Analysis,
    describe_rule,
    draw_examples,
    read_and_analyse,
    record,
)
from logoeval.report.sections.wrong_answers import answer_name, examples_title, interval, length_rows
from logoeval.report.terminal import say


def show_errors(
    folders: Sequence[Path] | Mapping[str, Path], *, wrong_below: float, num_examples: int, out: Path | None
) -> None:
    """Print a table of shares, the lengths of wrong answers, and examples, and write the same as JSON into ``out``.

    Raises:
        UserError: see :func:`logoeval.compare.wrong_answers.read_and_analyse`; or the number of examples is below 0.
    """
    if num_examples < 0:
        raise UserError(f"--examples is {num_examples}", mend="give 0 for none")
    analysis = read_and_analyse(folders, wrong_below)
    console.print(_shares(analysis))
    console.print()
    console.print(_lengths(analysis))
    console.print()
    for text in (describe_rule(wrong_below), *analysis.notes, CAUTION):
        say(text)
    for run, answers in zip(analysis.comparison.runs, analysis.answers, strict=True):
        for pattern in PATTERNS:
            shown = draw_examples(answers[pattern], num_examples)
            if shown:
                console.print()
                console.print(Text(examples_title(run, pattern, len(shown), len(answers[pattern])), style="bold"))
            for answer in shown:
                _print_example(answer)
    if out is not None:
        make_folder_of(out)
        write_json(out, record(analysis, num_examples).to_json())
        say(f"wrote {out}")


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
            table.add_row(f"{indent}  {label}", *values)
            if number:
                changes = [_points(row.differences[number - 1].change, "+") for row in rows]
                table.add_row(f"{indent}    - {labels[0]}", *changes)
    return table


def _points(value: Value, sign: str) -> str:
    return interval(value, lambda share: f"{round(100 * share):{sign}d}")


def _lengths(analysis: Analysis) -> Table:
    table = Table("words of a wrong answer, median", box=None, pad_edge=False)
    for run in analysis.comparison.runs:
        table.add_column(run.label, justify="right")
    for title, cells in length_rows(analysis):
        table.add_row(title, *cells)
    return table


def _print_example(answer: Answer) -> None:
    entries = (
        ("", answer_name(answer)),
        ("question", answer.question),
        ("reference", " / ".join(answer.references)),
        ("answer", answer.response),
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=9)
    grid.add_column(overflow="fold")
    for name, text in entries:
        grid.add_row(name, Text(" ".join(text.split()), style="" if name else "dim"))
    console.print(grid)
