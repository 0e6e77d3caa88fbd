"""How much of a task a number covers, so that a part never looks like the whole."""

from __future__ import annotations

from logoeval.compare.compare import Comparison, Row
from logoeval.records import TaskResult
from logoeval.tasks.table import find_task


def limits(result: TaskResult) -> list[str]:
    """In what a task was cut short; empty where it was not."""
    return list(find_task(result.task).evaluator.limits(result))


def all_limits(comparison: Comparison) -> dict[str, list[str]]:
    """The limits of each task that has some; the runs of a comparison have them in common."""
    tasks = comparison.runs[0].results.tasks
    return {task: found for task in comparison.tasks if (found := limits(tasks[task]))}


def show_count(row: Row, result: TaskResult) -> str:
    """The number of samples; where the benchmark has more of them, out of how many."""
    total_of, total = find_task(row.task).evaluator.total, None
    if total_of is not None:
        members = [
            sample
            for sample in result.samples
            if row.metric.key in sample.scores and row.slice.items() <= sample.facts.items()
        ]
        total = total_of(result, members, row.slice)
    return f"{row.num_samples:,}" if total in (None, row.num_samples) else f"{row.num_samples:,} of {total:,}"
