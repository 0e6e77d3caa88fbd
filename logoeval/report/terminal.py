"""What the commands of ``logoeval`` print: tables of means, of changes, and of a curve."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from logodata.common.console import console
from logoeval.compare.compare import Comparison, Row, compare
from logoeval.compare.limits import all_limits
from logoeval.intervals import is_cell, slice_label, summarise
from logoeval.records import Metric, Outcome, Results, SummaryRow
from logoeval.report.measures import terminal_table


def say(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, soft_wrap=True)


def show_results(results: Results, tasks: Sequence[str], folder: Path) -> None:
    """Print the means of some tasks with their intervals."""
    _print_means([(results.tasks[task].metrics, results.tasks[task].summary) for task in tasks])
    for task in tasks:
        for text in results.tasks[task].notes:
            say(f"{task}: {text}")
    say(f"wrote {folder / 'results.json'}")


def show_scores(outcome: Outcome) -> None:
    """Print the means of scored predictions."""
    _print_means([(outcome.metrics, summarise(outcome.metrics, outcome.samples))])
    for text in outcome.notes:
        say(text)


def show_change(base: Path, adapter: Path, tasks: Sequence[str]) -> None:
    """Print what the adapter changes, sample by sample, and how to make a page of it."""
    comparison = compare([base, adapter])
    show_rows(comparison, [row for row in comparison.rows if row.task in tasks and not row.slice])
    for task in tasks:
        notes = {run.label: run.results.tasks[task].notes for run in comparison.runs}
        for text in dict.fromkeys(text for texts in notes.values() for text in texts):
            whose = [label for label, texts in notes.items() if text in texts]
            of = "" if len(whose) == len(notes) else f", {whose[0]}"
            say(f"{task}{of}: {text}")
    report = shlex.join(["logoeval", "compare", str(base), str(adapter), "-o", str(base.parent / "report.html")])
    say(f"wrote {base / 'results.json'} and {adapter / 'results.json'}")
    say(f"for a page: {report}")


def show_curve(results: Results, folder: Path) -> None:
    """Print a row for each step of a curve over checkpoints."""
    curve = results.curve
    assert curve is not None
    table = Table("step", *(f"{metric.label} [95 %]" for metric in curve.shown), box=None, pad_edge=False)
    for point in curve.points:
        values = [(metric, point.of(metric)) for metric in curve.shown]
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
    for task, limits in all_limits(comparison).items():
        if any(row.task == task for row in rows):
            say(f"{task}: {'; '.join(limits)}")


def _print_means(parts: Sequence[tuple[Sequence[Metric], Sequence[SummaryRow]]]) -> None:
    table = Table("measure", "mean", "95 % interval", "samples", box=None, pad_edge=False)
    for metrics, summary in parts:
        by_key = {metric.key: metric for metric in metrics}
        for row in summary:
            if is_cell(row.slice):
                continue
            metric = by_key[row.metric]
            label = f"  {slice_label(row.slice)}" if row.slice else metric.label
            interval = metric.show_interval(row.low, row.high)
            table.add_row(label, metric.show(row.value), interval, str(row.num_samples))
    console.print(table)
