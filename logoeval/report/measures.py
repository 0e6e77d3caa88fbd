"""Tables of the metrics of a comparison, for the page, its Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from logoeval.compare.compare import Comparison, Difference, Row, show_change
from logoeval.intervals import is_cell
from logoeval.records import TaskResult
from logoeval.report.tables import Cell, Table
from logoeval.tasks.table import find_task


def judged(row: Row, difference: Difference) -> str:
    """Return ``better`` or ``worse``, ``moved`` if neither direction is better, or the verdict if nothing moved."""
    moved = {"rose": "higher", "fell": "lower"}.get(difference.verdict)
    if moved is None:
        return difference.verdict
    return "moved" if row.metric.better is None else "better" if moved == row.metric.better else "worse"


def measures_table(comparison: Comparison, rows: Sequence[Row], title: str, *, explain: bool = False) -> Table:
    """Return a table with a line for each of ``rows``. With two runs the difference has its own columns; with more,
    each run's difference stands in the cell of its value. ``explain`` adds to each metric its explanation and what its
    task leaves out."""
    first, *others = comparison.labels
    two = len(others) == 1
    changes = ["difference [95 %]", "verdict"] if two else []
    cuts = comparison.limits
    lines: list[list[str | Cell]] = []
    for row in rows:
        name = _explained(row, cuts.get(row.task, [])) if explain else row.label
        count = _show_count(row, comparison.runs[0].results.tasks[row.task])
        line: list[str | Cell] = [name, count, row.metric.show(row.values[0].value)]
        for value, difference in zip(row.values[1:], row.differences, strict=True):
            shown, change = row.metric.show(value.value), show_change(row, difference.change)
            style = judged(row, difference).replace(" ", "-")
            if two:
                line += [shown, change, Cell("", mark=difference.verdict, style=style)]
            else:
                line.append(Cell(shown, change.removesuffix(" points"), difference.verdict, style))
        lines.append(line)
    head = ["measure", "n", first, *others, *changes]
    style = "stacks compared" if two else "stacks compared many"
    return Table(title, head, lines, text_columns={len(head) - 1} if two else (), style=style, wide=not two)


def _show_count(row: Row, result: TaskResult) -> str:
    """The number of samples; where the benchmark has more of them, out of how many."""
    members = [
        sample
        for sample in result.samples
        if row.metric.key in sample.scores and row.slice.items() <= sample.facts.items()
    ]
    total = find_task(row.task).evaluator.total(result, members, row.slice)
    return f"{row.num_samples:,}" if total in (None, row.num_samples) else f"{row.num_samples:,} of {total:,}"


def _explained(row: Row, limits: Sequence[str]) -> Cell:
    better = f" {row.metric.better.capitalize()} is better." if row.metric.better else ""
    return Cell(row.label, row.metric.explanation + better, "; ".join(limits), "limit")


def markdown_table(comparison: Comparison) -> str:
    """Return all rows of a comparison as a Markdown table, without the cells of maps."""
    rows = [row for row in comparison.rows if not is_cell(row.slice)]
    return measures_table(comparison, rows, "All measures").markdown()


def headline_rows(comparison: Comparison) -> list[Row]:
    """Return the rows of the first table of a report: headline metrics over all samples."""
    return [row for row in comparison.rows if row.metric.headline and not row.slice]


def terminal_table(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """Return a table for a terminal, which may be narrow. With more than two runs, each has a line below the metric."""
    if len(comparison.runs) == 2:
        return measures_table(comparison, rows, "Measures")
    lines: list[list[str | Cell]] = []
    first, *others = comparison.labels
    for row in rows:
        lines.append([row.label, _show_count(row, comparison.runs[0].results.tasks[row.task]), "", "", ""])
        lines.append([f"  {first}", "", row.metric.show(row.values[0].value), "", ""])
        for label, value, difference in zip(others, row.values[1:], row.differences, strict=True):
            shown, change = row.metric.show(value.value), show_change(row, difference.change)
            lines.append([f"  {label}", "", shown, change, difference.verdict])
    head = ["measure", "n", "mean", f"change from {first} [95 %]", "verdict"]
    return Table("Measures", head, lines, text_columns={4})


def changes_table(comparison: Comparison, task: str) -> Table | None:
    """Return a table of a task's rows that are neither in the first table nor cells of maps; None if there are none."""
    rows = [
        row
        for row in comparison.rows
        if row.task == task and (row.slice or not row.metric.headline) and not is_cell(row.slice)
    ]
    return measures_table(comparison, rows, f"All points of {task}") if rows else None
