"""Turn scored samples into the reported numbers: means of tasks and categories, averages, LongBench-E's length groups.

An average is reported only if all its tasks were measured, so that a part of LongBench never looks like the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from logoeval.records import Metric, SampleRow
from logoeval.tasks.longbench.metrics import CODE_SIM, METRICS, CodeSimBackend, rouge_overflows
from logoeval.tasks.longbench.task_table import BUCKETS, CATEGORIES, E_SUFFIX, TASKS, Task, bucket, official_rows

_LOGO = [task for task in TASKS.values() if task.in_logo_table]
_E = [task for task in TASKS.values() if task.in_e]


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored sample. Samples of one ``cluster`` share a document and are resampled together. ``prompt_hash`` is ""
    if the prompt is unknown; ``overflow`` is that of :func:`best_score`; ``length`` (in words) and ``truncated`` are
    None if unknown."""

    id: str
    task: Task
    cluster: str
    prompt_hash: str
    score: float
    overflow: bool
    length: int | None
    truncated: bool | None


def best_score(
    task: Task, response: str, answers: Iterable[str], all_classes: Sequence[str] | None, code_sim: CodeSimBackend
) -> tuple[float, bool]:
    """Return the best score over the gold answers, and whether the official script scores one of them 0 only because it
    exceeds Python's recursion limit."""
    metric = CODE_SIM[code_sim] if task.metric == "code_sim" else METRICS[task.metric]
    kept = task.kept(response)
    best, overflow = 0.0, False
    for answer in answers:
        score = metric(kept, answer, all_classes)
        best = max(best, score)
        overflow = overflow or (score == 0 and rouge_overflows(task.metric, kept, answer))
    return best, overflow


def sample_rows(samples: Sequence[Scored], reported: Sequence[Metric], *, e: bool) -> list[SampleRow]:
    """Return the samples as records, each with its score under every metric of ``reported`` that counts it."""
    keys = {
        task.name: [metric.key for metric in reported if metric.key != "truncated" and _counts(metric.key, task)]
        for task in TASKS.values()
    }
    rows = []
    for sample in samples:
        scores = dict.fromkeys(keys[sample.task.name], sample.score)
        if sample.truncated is not None:
            scores["truncated"] = float(sample.truncated)
        facts = {"task": sample.task.name, "category": sample.task.category, "length": sample.length}
        if e:
            facts["words"] = "unknown length" if sample.length is None else f"{bucket(sample.length)} words"
        name, prompt = f"{sample.task.name}/{sample.id}", sample.prompt_hash
        rows.append(SampleRow(id=name, cluster=sample.cluster, prompt_hash=prompt, scores=scores, facts=facts))
    return rows


def _counts(key: str, task: Task) -> bool:
    kind, _, name = key.partition(":")
    if kind == "task":
        return name == task.name
    return (kind != "logo" or task in _LOGO) and name in ("", task.category)


def metrics(tasks: Sequence[Task], *, e: bool, truncation: bool) -> list[Metric]:
    """Return the metrics that are reported for the measured tasks: averages, then categories, then tasks. ``e`` says
    whether their rows are LongBench-E's, ``truncation`` whether it is known which prompts were cut."""
    names = {task.name for task in tasks}
    averages = list(_e_average(names) if e else _averages(names))
    shown = [
        Metric.share(
            f"task:{task.name}",
            f"LongBench {task.name}{E_SUFFIX if e else ''}",
            f"{task.category}, {task.metric}: mean over samples of the best score over the gold answers.",
            headline=not averages,
            decimals=2,
            slice_by=["words"] if e else [],
        )
        for task in TASKS.values()
        if task.name in names
    ]
    cut = Metric.share(
        "truncated",
        "LongBench prompts cut in the middle",
        "Share of the prompts that were longer than what the window leaves them.",
        None,
        headline=False,
        slice_by=["task"],
    )
    return [*averages, *([] if e else _categories(names)), *shown, *([cut] if truncation else [])]


def _averages(names: set[str]) -> Iterator[Metric]:
    if {task.name for task in _LOGO} <= names:
        text = "Mean of the five category means over the 14 English tasks without code, as in the LOGO paper's table."
        yield Metric.share("logo", "LongBench, LOGO's table", text, decimals=2, mean_of=["category", "task"])
    if TASKS.keys() <= names:
        text = "Mean of the six category means over all 21 tasks, Chinese and code among them."
        yield Metric.share("all", "LongBench, all tasks", text, decimals=2, mean_of=["category", "task"])


def _e_average(names: set[str]) -> Iterator[Metric]:
    if {task.name for task in _E} <= names:
        text = f"Mean of the means of LongBench-E's {len(_E)} tasks."
        yield Metric.share("e", "LongBench-E", text, decimals=2, mean_of=["task"], slice_by=["words"])


def _categories(names: set[str]) -> Iterator[Metric]:
    for kind, pool, title in (("logo", _LOGO, "LOGO's table"), ("all", list(TASKS.values()), "all tasks")):
        for category in CATEGORIES:
            members = [task.name for task in pool if task.category == category]
            if members and names.issuperset(members):
                text = f"Mean over {', '.join(members)}."
                label = f"LongBench {category}, {title}"
                yield Metric.share(f"{kind}:{category}", label, text, decimals=2, mean_of=["task"], headline=False)


def notes(samples: Sequence[Scored], *, e: bool, code_sim: CodeSimBackend) -> Iterator[str]:
    """Yield notes for readers of the numbers: missing tasks and rows, the ``code_sim`` used, lengths, cut prompts."""
    by_task = {name: [sample for sample in samples if sample.task.name == name] for name in TASKS}
    present = [TASKS[name] for name, members in by_task.items() if members]
    absent = [task.name for task in (_E if e else TASKS.values()) if not by_task[task.name]]
    benchmark = "LongBench-E" if e else "LongBench"
    if absent:
        yield f"a part of {benchmark}, without averages over: {', '.join(absent)}"
    total = official_rows((task.name for task in present), e=e)
    if len(samples) != total:
        yield f"{len(samples):,} samples, where {benchmark} has {total:,} of these tasks: no official scores"
    if any(task.metric == "code_sim" for task in present):
        yield f"code_sim by {code_sim}"
    if e:
        for task in present:
            held = {bucket(sample.length) for sample in by_task[task.name] if sample.length is not None}
            for empty in (name for name in BUCKETS if name not in held):
                yield f"{task.name}{E_SUFFIX}: no samples of {empty} words"
        unknown = sum(sample.length is None for sample in samples)
        if unknown:
            yield f"{unknown} samples have no length, so they are in no length group"
    overflows = sum(sample.overflow for sample in samples)
    if overflows:
        yield (
            f"{overflows} samples meet a gold answer whose ROUGE-L is 0 only because the official script runs into "
            "Python's recursion limit there"
        )
    cut = [sample.truncated for sample in samples if sample.truncated is not None]
    if cut:
        yield f"{sum(cut):,} of {len(cut):,} prompts were cut in the middle ({100 * sum(cut) / len(cut):.1f} %)"
