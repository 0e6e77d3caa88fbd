"""RULER's section of the report: scores by task and length, a map and a table a run, and the effective length."""

from __future__ import annotations

from collections.abc import Iterator

from logodata.common.markup import Html, join, raw, tag
from logoeval.compare.compare import Comparison
from logoeval.intervals import is_cell
from logoeval.records import TaskResult
from logoeval.report import figures
from logoeval.report.measures import measures_table
from logoeval.report.tables import Section, Table, details, figure, not_whole, titled
from logoeval.tasks.ruler.summary import cell_scores, cells, effective_length, grid_of
from logoeval.tasks.ruler.task_table import TASKS


def ruler_section(comparison: Comparison) -> Section:
    """Return the section: what was measured, the maps, the table of each run, and all measures with their changes."""
    grid = grid_of(comparison.runs[0].results.tasks["ruler"])
    results = {run.label: run.results.tasks["ruler"] for run in comparison.runs}
    tables = [score_table(result, f"{label}: score by task and length") for label, result in results.items()]
    rows = [row for row in comparison.rows if row.task == "ruler" and not is_cell(row.slice)]
    changes = measures_table(comparison, rows, "RULER: averages and tasks")
    found = {label: effective_length(result) for label, result in results.items()}
    effective = [tag("li", tag("strong", label), f": {length}") for label, length in found.items() if length]
    cuts, notes = comparison.limits.get("ruler", ()), comparison.runs[0].results.tasks["ruler"].notes
    body = join(
        not_whole(cuts),
        tag(
            "p",
            "Synthetic tasks over texts of a given length, with RULER's prompts and its scores: whether the references "
            "occur in the answer. Each prompt with its answer fills its length in tokens of the model. A cell stands "
            f"for {grid.num_samples} {'prompt' if grid.num_samples == 1 else 'prompts'}.",
        ),
        tag("ul", *(tag("li", note) for note in notes), class_="small") if notes else raw(""),
        tag("p", "Effective length, up to which every length reaches the threshold:") if effective else raw(""),
        tag("ul", *effective) if effective else raw(""),
        figure(list(_maps(comparison)), "RULER's score in percent, by task and length."),
        *map(titled, tables),
        details(changes, "averages and tasks, with their intervals"),
    )
    return Section("RULER: how far the window carries", body, [*tables, changes])


def score_table(result: TaskResult, title: str) -> Table:
    """Return the scores of a run in percent by task and length, with two decimals as officially, and dashes where a
    task was left out for want of a file; under them the mean of each length, and how many answers are empty (RULER's
    nulls)."""
    grid, scores = grid_of(result), cell_scores(result)
    lines = [
        [task, *_with_mean([scores[task, length] for length in grid.lengths])]
        if task in grid.tasks
        else [task, *["-"] * (len(grid.lengths) + 1)]
        for task in TASKS
        if task in (*grid.tasks, *grid.left_out)
    ]
    if grid.is_whole:
        means = [sum(scores[task, length] for task in grid.tasks) / len(grid.tasks) for length in grid.lengths]
        lines.append([f"mean of {len(grid.tasks)}", *_with_mean(means)])
    nulls = _nulls(result)
    asked = len(result.samples) // len(grid.lengths)
    counts = [f"{nulls[length]}/{asked}" for length in grid.lengths]
    lines.append(["empty", *counts, f"{sum(nulls.values())}/{len(result.samples)}"])
    return Table(title, ["task", *figures.token_labels(grid.lengths), "mean"], lines)


def _with_mean(values: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in (*values, sum(values) / len(values))]


def _nulls(result: TaskResult) -> dict[int, int]:
    counts: dict[int, int] = {}
    for (_, length), samples in cells(result).items():
        counts[length] = counts.get(length, 0) + sum(int(sample.scores["nulls"]) for sample in samples)
    return counts


def _maps(comparison: Comparison) -> Iterator[Html]:
    for run in comparison.runs:
        result = run.results.tasks["ruler"]
        grid, scores = grid_of(result), cell_scores(result)
        values = [[scores[task, length] / 100 for length in grid.lengths] for task in grid.tasks]
        columns = figures.token_labels(grid.lengths)
        yield figures.heat_map(run.label, grid.tasks, columns, values, row_label="task", of="RULER score")
