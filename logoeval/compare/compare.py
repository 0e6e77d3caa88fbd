"""Compare two or more runs on the same samples: paired differences between the first run and each other run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Self

from logodata.common.errors import UserError
from logodata.common.records import ABSENT, Record
from logoeval.compare.labels import label_folders
from logoeval.intervals import Estimate, estimate, estimate_difference, groups, slice_label, slices
from logoeval.records import PREDICTIONS_DIR, Metric, Provenance, Results, SampleRow, read_results
from logoeval.tasks.table import find_task, task_names

Verdict = Literal["rose", "fell", "no clear change", "too few to tell"]

MIN_CLUSTERS = 6
"""The smallest number of clusters for a verdict.

Five independent differences have the same sign by chance one time in 16 (two-sided sign test), and the interval from
resampling so few is too narrow (``benchmarks/intervals.py``)."""


@dataclass(frozen=True, slots=True)
class Run:
    """A folder of results and its name in the report."""

    label: str
    folder: Path
    results: Results

    @property
    def unfinished(self) -> list[str]:
        """The tasks that were begun in this folder and have no results."""
        begun = {path.stem for path in (self.folder / PREDICTIONS_DIR).glob("*.json")}
        return [task for task in task_names() if task in begun and task not in self.results.tasks]


class RunRecord(Record):
    """A run in a JSON file: its folder, and by task what produced its results and what its notes say."""

    label: str
    folder: str
    unfinished: list[str] | None = ABSENT
    tasks: dict[str, Provenance]
    notes: dict[str, list[str]] | None = ABSENT


class Value(Record):
    """A mean with its 95 % interval, which is None if all samples are of one cluster."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """Make a value from an estimate."""
        low, high = found.interval or (None, None)
        return cls(value=found.value, low=low, high=high)

    def percent(self) -> Value:
        """Return a share in percent."""
        low, high = (None if end is None else 100 * end for end in (self.low, self.high))
        return Value(value=100 * self.value, low=low, high=high)


class Difference(Record):
    """The difference of a run from the first one over the same samples, and the verdict that its interval allows."""

    change: Value
    verdict: Verdict


class Row(Record):
    """One metric, or one slice of it, of all runs: a value per run and a difference per run but the first."""

    task: str
    metric: Metric
    slice: Mapping[str, object]
    num_samples: int
    num_clusters: int
    values: list[Value]
    differences: list[Difference]

    @property
    def label(self) -> str:
        """The label of the metric, followed by the slice if the row is one."""
        return f"{self.metric.label}, {slice_label(self.slice)}" if self.slice else self.metric.label


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparable runs, and the rows of their comparison."""

    runs: list[Run]
    rows: list[Row]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the comparison, which all runs have."""
        return list(self.runs[0].results.tasks)

    @property
    def labels(self) -> list[str]:
        """The labels of the runs."""
        return [run.label for run in self.runs]

    @property
    def limits(self) -> dict[str, list[str]]:
        """In what some tasks were cut short, by task. All runs have this in common."""
        tasks = self.runs[0].results.tasks.items()
        found = {task: list(find_task(task).evaluator.limits(result)) for task, result in tasks}
        return {task: limits for task, limits in found.items() if limits}

    def whole(self, task: str) -> dict[str, Row]:
        """The rows of a task over all samples, by the keys of their metrics."""
        return {row.metric.key: row for row in self.rows if row.task == task and not row.slice}


def compare(folders: Sequence[Path] | Mapping[str, Path]) -> Comparison:
    """Compare each run with the first. ``folders`` may be given by label.

    Raises:
        UserError: a folder holds no results, or runs differ in tasks, settings, engine or prompts; the message names
            the difference.
    """
    runs = read_runs(folders)
    if not runs[0].results.tasks:
        raise UserError("holds no finished task", where=str(runs[0].folder), mend="run logoeval again to finish it")
    rows = [
        row
        for task, result in runs[0].results.tasks.items()
        for row in measured_rows(task, result.metrics, [run.results.tasks[task].samples for run in runs])
    ]
    return Comparison(runs, rows)


def read_runs(folders: Sequence[Path] | Mapping[str, Path], tasks: Sequence[str] | None = None) -> list[Run]:
    """Read the results of ``tasks`` from each folder and check that the runs can be compared.

    Raises:
        UserError: see :func:`compare`; or a task is unknown.
    """
    runs = []
    for label, folder in label_folders(folders).items():
        results = read_results(folder)
        unknown = [task for task in results.tasks if task not in task_names()]
        if unknown:
            raise UserError(
                f"holds a task that this version does not know: {unknown[0]}",
                where=str(folder),
                mend="compare it with the version that measured it",
            )
        held = {task: results.tasks[task] for task in task_names() if task in results.tasks}
        wanted = {task: result for task, result in held.items() if tasks is None or task in tasks}
        runs.append(Run(label, folder, results.model_copy(update={"tasks": wanted})))
    _check_tasks(runs)
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    return runs


def _check_tasks(runs: Sequence[Run]) -> None:
    """Refuse runs that do not have the same tasks. The error names all tasks that each run lacks."""
    held = [task for task in task_names() if any(task in run.results.tasks for run in runs)]
    faults, folders = [], []
    for run in runs:
        absent = [task for task in held if task not in run.results.tasks]
        begun = [task for task in absent if task in run.unfinished]
        if begun:
            faults.append(f"{run.label} has not finished {', '.join(begun)}")
        if len(begun) < len(absent):
            faults.append(f"{run.label} lacks {', '.join(task for task in absent if task not in begun)}")
        folders += [str(run.folder)] if absent else []
    if faults:
        raise UserError(
            f"the runs hold different tasks: {'; '.join(faults)}",
            where=", ".join(folders),
            mend="evaluate the missing tasks into the same folder, with the recipe of the others",
        )


def _check_comparable(first: Run, other: Run) -> None:
    where = f"{first.folder} and {other.folder}"
    mend = "evaluate both with the same recipe; only model and adapter may differ"
    for task, before in first.results.tasks.items():
        after = other.results.tasks[task]
        made = (r.provenance.model_dump(include={"engine", "tokenizer_fingerprint"}) for r in (before, after))
        for name, old, new in chain(differing(before.settings, after.settings), differing(*made)):
            raise UserError(f"{task}: {name} is {old!r} in one and {new!r} in the other", where=where, mend=mend)
        if [sample.id for sample in before.samples] != [sample.id for sample in after.samples]:
            raise UserError(f"{task}: the runs hold different samples", where=where, mend=mend)
        for old_sample, new_sample in zip(before.samples, after.samples, strict=True):
            if old_sample.prompt_hash != new_sample.prompt_hash:
                raise UserError(f"{task}: sample {old_sample.id!r} has different prompts", where=where, mend=mend)


def differing(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    """Yield the keys under which two records differ, in alphabetical order, with both values."""
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def measured_rows(task: str, metrics: Sequence[Metric], columns: Sequence[Sequence[SampleRow]]) -> Iterator[Row]:
    """Yield a row for every metric and each of its slices. ``columns`` are the samples of each run, in equal order."""
    for metric in metrics:
        for where, members in slices(metric, columns[0]):
            ids = {sample.id for sample in members}
            parts = [[sample for sample in column if sample.id in ids] for column in columns]
            first = estimate(metric, parts[0])
            yield Row(
                task=task,
                metric=metric,
                slice=where,
                num_samples=first.num_samples,
                num_clusters=first.num_clusters,
                values=[Value.of(estimate(metric, part)) for part in parts],
                differences=[_difference(metric, parts[0], part) for part in parts[1:]],
            )


def _difference(metric: Metric, before: Sequence[SampleRow], after: Sequence[SampleRow]) -> Difference:
    found = estimate_difference(
        [sample.scores[metric.key] for sample in before],
        [sample.scores[metric.key] for sample in after],
        [sample.cluster for sample in before],
        groups=groups(metric, before),
        transform=metric.transform,
    )
    return Difference(change=Value.of(found), verdict=_verdict(found))


def _verdict(found: Estimate) -> Verdict:
    if found.interval is None or found.fewest_clusters < MIN_CLUSTERS:
        return "too few to tell"
    low, high = found.interval
    return "rose" if low > 0 else "fell" if high < 0 else "no clear change"


def show_change(row: Row, change: Value) -> str:
    """Format a difference with its interval, such as ``+3.1 [+0.4, +5.9] points``."""
    text = row.metric.show_change(change.value, change.low, change.high)
    return f"{text} points" if row.metric.kind == "share" else text
