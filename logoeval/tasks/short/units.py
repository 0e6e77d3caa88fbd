"""What is reported: the tasks, and the groups that the harness gives one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from logodata.common.errors import UserError
from logoeval.tasks.short.settings import ShortSettings, ShortTask


@dataclass(frozen=True, slots=True)
class Unit:
    """A number of the harness's: of one task, or of a group over all samples or over its tasks' means."""

    name: str
    asked: ShortTask
    metrics: tuple[str, ...]
    """Names without filters."""
    parts: dict[str, str]
    """The part of the group that each task belongs to, by task; a task alone is its own part."""
    by_task: bool
    """Whether each task of the group counts the same, whatever its size."""


def units(asked: ShortTask, item: Any, settings: ShortSettings) -> Iterator[Unit]:
    """Yield the units of a task or group of the harness that the entry ``asked`` of a recipe names. A group that
    aggregates the metric is one unit; of other groups each member is.

    Raises:
        UserError: a task has no such metric, or one that is no mean over samples; it is multimodal, runs code that
            models write, or its shots are fixed.
    """
    if not hasattr(item, "get_all_tasks"):
        _check_task(asked, item)
        name = item.task_name
        yield Unit(name, asked, _metrics(asked, list(item.aggregation()), settings), {name: name}, by_task=False)
        return
    combined = {metric.metric: metric for metric in item.aggregate_metric_list or ()}
    metrics = _metrics(asked, list(combined), settings) if combined else ()
    if not metrics or not set(metrics) <= combined.keys():
        for child in item:
            yield from units(asked, child, settings)
        return
    for task in item.get_all_tasks():
        _check_task(asked, task)
    parts = {
        task.task_name: (child.alias or child.name) if hasattr(child, "get_all_tasks") else child.task_name
        for child in item
        for task in (child.get_all_tasks() if hasattr(child, "get_all_tasks") else [child])
    }
    yield Unit(item.name, asked, metrics, parts, by_task=not combined[metrics[0]].weight_by_size)


def _metrics(asked: ShortTask, known: Sequence[str], settings: ShortSettings) -> tuple[str, ...]:
    """The metric asked for, or the first; of tasks that have a metric for each length (RULER), all lengths made."""
    if asked.metric is not None:
        return (asked.metric.partition(",")[0],)
    if all(name.isdigit() for name in known):
        lengths = settings.metadata.get("max_seq_lengths", known[0])
        return tuple(str(length) for length in (lengths if isinstance(lengths, list) else [lengths]))
    return (known[0],)


def _check_task(asked: ShortTask, task: Any) -> None:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    name = task.task_name
    known = task.aggregation()
    if asked.metric is not None:
        wanted = asked.metric.partition(",")[0]
        # A function of the task's own may give more numbers than it lists.
        if wanted not in known and task.get_config("process_results") is None:
            raise UserError(f"has no metric {wanted!r}", where=name, mend=f"its metrics: {', '.join(known)}")
    else:
        wanted = next(iter(known), "")
    registered = {function: key for key, function in AGGREGATION_REGISTRY.items()}
    kind = registered.get(known.get(wanted), "mean")
    if kind not in ("mean", "nanmean"):
        raise UserError(
            f"its metric {wanted!r} is no mean over samples but {kind}: it has no interval and no paired comparison",
            where=name,
            mend=f"give a metric with {{name: {asked.name}, metric: ...}}; its metrics: {', '.join(known)}",
        )
    if getattr(task, "MULTIMODAL", False):
        raise UserError("needs images or sound", where=name, mend="leave it out: short reads text")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError("runs code that the model writes", where=name, mend="leave it out: nothing here isolates it")
    if task.get_config("num_fewshot") == 0 and asked.shots:
        raise UserError(
            f"lm-eval fixes its examples at 0, {asked.shots} were asked for", where=name, mend="leave shots out"
        )
    pool = len(task.sampler.df) if hasattr(task, "sampler") else 0
    # Where examples are drawn from the questions themselves, the one that is asked is left out.
    others = pool - int(pool > 0 and task.fewshot_cfg.split == task.get_config("test_split"))
    if asked.shots and asked.shots > others:
        raise UserError(
            f"has {others} solved examples, {asked.shots} were asked for", where=name, mend="ask for fewer shots"
        )
