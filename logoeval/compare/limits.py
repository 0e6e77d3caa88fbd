"""How much of a task a number covers, so that a part never looks like the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from logoeval.compare.compare import Comparison, Row
from logoeval.records import SampleRow, TaskName, TaskResult
from logoeval.tasks.longbench.rules import official_rows
from logoeval.tasks.short.outcome import is_partial


def limits(task: TaskName, result: TaskResult) -> list[str]:
    """In what a task was cut short; empty where it was not."""
    if task in ("qa", "pairs"):
        return list(_held_out(task, result))
    found = {"longbench": _longbench, "short": _short}.get(task)
    return list(found(result)) if found else []


def all_limits(comparison: Comparison) -> dict[TaskName, list[str]]:
    """The limits of each task that has some; the runs of a comparison have them in common."""
    tasks = comparison.runs[0].results.tasks
    return {task: found for task in comparison.tasks if (found := limits(task, tasks[task]))}


def _longbench(result: TaskResult) -> Iterator[str]:
    total, count = _official(result.samples, result), len(result.samples)
    if count != total:
        yield f"{count:,} of {total:,} rows: not the benchmark's score"


def _held_out(task: TaskName, result: TaskResult) -> Iterator[str]:
    most = result.settings.get("max_samples")
    if most is not None and most == len(result.samples):  # fewer: there were no more
        yield f"the first {most} held-out {'questions' if task == 'qa' else 'pairs'} only ({task}.max_samples)"


def _short(result: TaskResult) -> Iterator[str]:
    if any(is_partial(metric) for metric in result.metrics):
        yield f"the first {result.settings['limit']} samples of each of the harness's tasks only (short.limit)"


def _official(samples: Sequence[SampleRow], result: TaskResult) -> int:
    """How many rows LongBench, or LongBench-E, has of the tasks that these samples are of."""
    return official_rows((sample.facts["task"] for sample in samples), e=result.settings["e"])


def show_count(row: Row, result: TaskResult) -> str:
    """The number of samples; where LongBench has more of them, out of how many."""
    if row.task == "longbench" and "words" not in row.slice:
        members = [
            sample
            for sample in result.samples
            if row.metric.key in sample.scores and row.slice.items() <= sample.facts.items()
        ]
        if members and (total := _official(members, result)) != row.num_samples:
            return f"{row.num_samples:,} of {total:,}"
    return f"{row.num_samples:,}"
