"""Turn scored samples into the reported numbers: tasks by length, averages, the effective length.

Averages and the effective length are reported only if all 13 tasks were measured, so that a part of RULER never looks
like the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from logodata.common.records import Record
from logoeval.records import Excerpt, Metric, SampleRow, TaskResult
from logoeval.tasks.ruler.scores import percent
from logoeval.tasks.ruler.task_table import GROUPS, OFFICIAL_QUESTIONS, OFFICIAL_SAMPLES, TASKS, Questions, Task

AVERAGE, RISING, FALLING, NULLS = "average", "rising", "falling", "nulls"


class RulerFacts(Record):
    """The facts of a sample of RULER."""

    task: str
    length: int
    stratum: str
    """What is resampled by itself: a length, or all lengths of a task whose questions are the same at each."""

    @classmethod
    def of(cls, task: Task, length: int) -> Self:
        """Return the facts of a sample of a task and length."""
        return cls(task=task.name, length=length, stratum="all" if isinstance(task.kind, Questions) else str(length))


class RulerFile(Record):
    """A file of the user's that samples were made of, by its contents, and how much it holds."""

    fingerprint: str
    size: int


class RulerGrid(Excerpt):
    """The settings in a result that say which samples there are."""

    tasks: list[str]
    left_out: list[str]
    lengths: list[int]
    num_samples: int
    threshold: float
    files: dict[str, RulerFile]

    @property
    def is_whole(self) -> bool:
        """Whether all 13 tasks were measured."""
        return TASKS.keys() <= set(self.tasks)


@dataclass(frozen=True, slots=True)
class EffectiveLength:
    """The largest length up to which every length's score reaches the threshold; None where the shortest does not."""

    length: int | None
    shortest: int
    longest: int
    threshold: float

    def __str__(self) -> str:
        """Return it in words, with what was tested beside it."""
        tested = f"tested from {self.shortest:,} to {self.longest:,} tokens"
        if self.shortest == self.longest:
            tested = f"tested at {self.longest:,} tokens alone"
        found = f"{self.length:,} tokens" if self.length else f"below {self.shortest:,} tokens"
        if self.length == self.longest:
            found = f"at least {found}"
        return f"{found} at a threshold of {self.threshold:g} ({tested})"


def metrics(tasks: Sequence[Task], lengths: Sequence[int], names: Mapping[str, str]) -> list[Metric]:
    """Return the metrics that are reported for the measured tasks. ``names`` are those of the user's files."""
    measured = {task.name for task in tasks}
    is_whole = TASKS.keys() <= measured
    return [
        *(_averages(lengths) if is_whole else ()),
        *_groups(measured),
        *(_task_metric(task, names, headline=not is_whole) for task in tasks),
        Metric.share(
            NULLS,
            "RULER, empty answers",
            "Share of the answers that hold nothing but white space and control characters.",
            "lower",
            headline=False,
            decimals=2,
        ),
    ]


def _averages(lengths: Sequence[int]) -> Iterator[Metric]:
    # A question is asked at all lengths: the mean over the samples of its task is the mean over lengths, and its
    # document is resampled with all of them.
    common: dict[str, Any] = {"decimals": 2, "mean_of": ["task", "stratum"]}
    text = "Mean of the 13 tasks' scores at a length, then over lengths."
    yield Metric.share(AVERAGE, "RULER", text, slice_by=["length"], **common)
    if len(lengths) > 1:
        for key, name, order in ((RISING, "inc", "shortest"), (FALLING, "dec", "longest")):
            text = (
                f"The same with the lengths weighted 1 to {len(lengths)} from the {order} on: wAvg. ({name}) of "
                "RULER's table."
            )
            yield Metric.share(key, f"RULER, wAvg. ({name})", text, headline=False, **common)


def _groups(measured: set[str]) -> Iterator[Metric]:
    for group in GROUPS:
        members = [task.name for task in TASKS.values() if task.group == group]
        if len(members) > 1 and measured.issuperset(members):
            text = f"Mean over {', '.join(members)}."
            common: dict[str, Any] = {
                "headline": False,
                "decimals": 2,
                "mean_of": ["task", "stratum"],
                "slice_by": ["length"],
            }
            yield Metric.share(f"group:{group}", f"RULER, {group}", text, **common)


def _task_metric(task: Task, names: Mapping[str, str], *, headline: bool) -> Metric:
    # Prose other than Paul Graham's makes another benchmark, and no program can tell: the label names the file.
    text = f" ({names['essays']})" if task.needs == "essays" else ""
    counted = "any reference occurs" if task.counts_any else "share of the references that occur"
    return Metric.share(
        f"task:{task.name}",
        f"RULER {task.name}{text}",
        f"{task.group.capitalize()}: {counted} in the answer, mean over samples.",
        headline=headline,
        decimals=2,
        mean_of=["stratum"],
        slice_by=["task", "length"],
    )


def scores_of(
    task: Task, length: int, score: float, *, is_null: bool, reported: Sequence[Metric], lengths: Sequence[int]
) -> dict[str, float]:
    """Return the score of a sample under every metric of ``reported`` that counts it.

    A weighted average is a mean of scores times the weight of their length over the mean weight, so these may exceed 1.
    """
    place = sorted(lengths).index(length)
    mean_weight = (len(lengths) + 1) / 2
    found = {
        AVERAGE: score,
        RISING: score * (place + 1) / mean_weight,
        FALLING: score * (len(lengths) - place) / mean_weight,
        f"group:{task.group}": score,
        f"task:{task.name}": score,
        NULLS: float(is_null),
    }
    return {metric.key: found[metric.key] for metric in reported if metric.key in found}


def grid_of(result: TaskResult) -> RulerGrid:
    """Return which samples a result has."""
    return RulerGrid.model_validate(result.settings)


def cells(result: TaskResult) -> dict[tuple[str, int], list[SampleRow]]:
    """Return the samples of each task and length."""
    found: dict[tuple[str, int], list[SampleRow]] = {}
    for sample in result.samples:
        facts = RulerFacts.model_validate(sample.facts)
        found.setdefault((facts.task, facts.length), []).append(sample)
    return found


def cell_scores(result: TaskResult) -> dict[tuple[str, int], float]:
    """Return the score of each task and length in percent, not rounded."""
    return {
        (task, length): percent([sample.scores[f"task:{task}"] for sample in samples])
        for (task, length), samples in cells(result).items()
    }


def length_scores(result: TaskResult) -> dict[int, float]:
    """Return the score of each length in percent, to two decimals: the mean of the 13 tasks' scores before they are
    rounded. It is empty if a task is missing."""
    grid = grid_of(result)
    if not grid.is_whole:
        return {}
    found = cell_scores(result)
    return {
        length: round(sum(found[task, length] for task in grid.tasks) / len(grid.tasks), 2) for length in grid.lengths
    }


def effective_length(result: TaskResult) -> EffectiveLength | None:
    """Return the effective length of a result; None if a task is missing."""
    return find_effective_length(length_scores(result), grid_of(result).threshold)


def find_effective_length(scores: Mapping[int, float], threshold: float) -> EffectiveLength | None:
    """Return the largest length up to which all scores (in percent, by length) reach the threshold; None if there are
    no scores."""
    if not scores:
        return None
    reached = None
    for length in sorted(scores):
        if scores[length] < threshold:
            break
        reached = length
    return EffectiveLength(reached, min(scores), max(scores), threshold)


def limits(result: TaskResult) -> Iterator[str]:
    """Say in what a result covers less than RULER."""
    grid = grid_of(result)
    if not grid.is_whole:
        want = f" (no file for {', '.join(grid.left_out)})" if grid.left_out else ""
        yield f"{len(grid.tasks)} of {len(TASKS)} tasks{want}: no average, no effective length"
    if grid.num_samples != OFFICIAL_SAMPLES:
        yield f"{grid.num_samples} of RULER's {OFFICIAL_SAMPLES} samples a task and length"
    for name, official in OFFICIAL_QUESTIONS.items():
        file = grid.files.get(name)
        if file is not None and file.size != official:
            yield f"ruler.{name} holds {file.size:,} questions with an answer, RULER's file {official:,}"


def total(_result: TaskResult, samples: Sequence[SampleRow], _where: Mapping[str, object]) -> int | None:
    """Return how many samples RULER has of the tasks and lengths of these samples."""
    return OFFICIAL_SAMPLES * len({(sample.facts["task"], sample.facts["length"]) for sample in samples})
