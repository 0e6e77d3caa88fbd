"""What the commands of ``logoeval`` print: tables of means, of changes, of a curve, and of wrong answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.files import make_folder_of, write_json
from logodata.common.printable import printable
from logoeval.compare.answers import Answer
from logoeval.compare.compare import Comparison, Row, Value, compare
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
from logoeval.intervals import is_cell, slice_label, summarise
from logoeval.records import Metric, Outcome, Results, SummaryRow, TaskResult
from logoeval.report.headline import notes
from logoeval.report.measures import terminal_table
from logoeval.report.sections.ruler import score_table
from logoeval.report.sections.wrong_answers import answer_name, examples_title, interval, length_rows
from logoeval.tasks.ruler.summary import effective_length
from logoeval.tasks.ruler.summary import limits as ruler_limits
from logoeval.tasks.table import curve_metrics

_MOST_COLUMNS = 5


def say(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, soft_wrap=True)


def show_results(results: Results, tasks: Sequence[str], folder: Path) -> None:
    """Print the means of some tasks with their intervals."""
    _print_means([(results.tasks[task].metrics, results.tasks[task].summary) for task in tasks])
    if "ruler" in tasks:
        _print_ruler(results.tasks["ruler"])
    for task in tasks:
        for text in results.tasks[task].notes:
            say(f"{task}: {text}")
    say(f"wrote {folder / 'results.json'}")


def _print_ruler(result: TaskResult) -> None:
    """Print RULER's scores by task and length, and the effective length."""
    shown = score_table(result, "RULER")
    table = Table(shown.head[0], box=None, pad_edge=False)
    for name in shown.head[1:]:
        table.add_column(name, justify="right")
    for row in shown.rows:
        table.add_row(*map(str, row))
    console.print()
    console.print(table)
    console.print()
    effective = effective_length(result)
    if effective is not None:
        say(f"ruler: effective length {effective}")
    for text in ruler_limits(result):
        say(f"ruler: {text}")


def show_scores(outcome: Outcome) -> None:
    """Print the means of scored predictions."""
    _print_means([(outcome.metrics, summarise(outcome.metrics, outcome.samples))])
    for text in outcome.notes:
        say(text)


def show_change(base: Path, adapter: Path, tasks: Sequence[str]) -> None:
    """Print what the adapter changes, sample by sample, and how to make a page of it."""
    comparison = compare([base, adapter])
    show_rows(comparison, [row for row in comparison.rows if row.task in tasks and not row.slice])
    for text in notes(comparison, tasks):
        say(text)
    report = shlex.join(["logoeval", "compare", str(base), str(adapter), "-o", str(base.parent / "report.html")])
    say(f"wrote {base / 'results.json'} and {adapter / 'results.json'}")
    say(f"for a page: {report}")


def show_curve(results: Results, folder: Path) -> None:
    """Print a row for each step of a curve over checkpoints."""
    curve = results.curve
    assert curve is not None
    shown = curve_metrics(curve)
    table = Table("step", *(f"{metric.label} [95 %]" for metric in shown), box=None, pad_edge=False)
    for point in curve.points:
        values = [(metric, point.of(metric)) for metric in shown]
        cells = (f"{metric.show(here.value)} [{metric.show_interval(here.low, here.high)}]" for metric, here in values)
        table.add_row(str(point.step), *cells)
    console.print(table)
    say(f"wrote {folder / 'results.json'}")


def show_rows(comparison: Comparison, rows: Sequence[Row]) -> None:
    """Print some rows of a comparison, and what of a task they leave out."""
    shown = terminal_table(comparison, rows)
    table = Table(*shown.head, box=None, pad_edge=False)
    for row in shown.rows:
        table.add_row(*map(str, row))
    console.print(table)
    for task, limits in comparison.limits.items():
        if any(row.task == task for row in rows):
            say(f"{task}: {'; '.join(limits)}")


def _print_means(parts: Sequence[tuple[Sequence[Metric], Sequence[SummaryRow]]]) -> None:
    table = Table("measure", "mean", "95 % interval", "samples", box=None, pad_edge=False)
    grids = []
    for metrics, summary in parts:
        by_key = {metric.key: metric for metric in metrics}
        shared = _shared_slices(summary)
        for row in summary:
            if is_cell(row.slice) or tuple(row.slice) in shared:
                continue
            metric = by_key[row.metric]
            label = f"  {slice_label(row.slice)}" if row.slice else metric.label
            interval = metric.show_interval(row.low, row.high)
            table.add_row(label, metric.show(row.value), interval, str(row.num_samples))
        grids += [_grid(by_key, [row for row in summary if tuple(row.slice) in ((), facts)]) for facts in shared]
    console.print(table)
    for grid in grids:
        console.print()
        console.print(grid)


def _shared_slices(summary: Sequence[SummaryRow]) -> list[tuple[str, ...]]:
    """Return the facts by which several measures are sliced into the same few parts: their values fit into columns, a
    row a measure."""
    measures: dict[tuple[str, ...], set[str]] = {}
    parts: dict[tuple[str, ...], set[str]] = {}
    for row in summary:
        if len(row.slice) == 1:
            facts = tuple(row.slice)
            measures.setdefault(facts, set()).add(row.metric)
            parts.setdefault(facts, set()).add(slice_label(row.slice))
    return [facts for facts, found in measures.items() if len(found) > 1 and len(parts[facts]) <= _MOST_COLUMNS]


def _grid(metrics: Mapping[str, Metric], rows: Sequence[SummaryRow]) -> Table:
    """A row a measure: its mean, and its value in each part."""
    columns = list(dict.fromkeys(slice_label(row.slice) for row in rows if row.slice))
    means = {row.metric: row for row in rows if not row.slice}
    values: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.slice:
            values.setdefault(row.metric, {})[slice_label(row.slice)] = metrics[row.metric].show(row.value)
    table = Table("by part", box=None, pad_edge=False)
    for name in ("mean", *columns):
        table.add_column(name, justify="right")
    for key, found in values.items():
        mean = metrics[key].show(means[key].value) if key in means else "-"
        table.add_row(metrics[key].label, mean, *(found.get(column, "-") for column in columns))
    return table


def show_errors(folders: Mapping[str, Path], *, wrong_below: float, num_examples: int, out: Path | None) -> None:
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
    for run, answers in zip(analysis.runs, analysis.answers, strict=True):
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
    labels = [run.label for run in analysis.runs]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("percent [95 %]", overflow="fold")
    for name in OUTCOMES.values():
        table.add_column(name, justify="right")
    for group in analysis.groups:
        indent = "" if group.part is None else "  "
        table.add_row(Text(f"{indent}{group.title}, {group.num_answers:,}", style="bold"))
        rows = list(group.outcomes.values())
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
    for run in analysis.runs:
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
        grid.add_row(name, Text(printable(" ".join(text.split())), style="" if name else "dim"))
    console.print(grid)
