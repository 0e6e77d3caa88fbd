"""From the harness's results to ours: the same number, with its samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.common.finite import check_finite
from logodata.common.records import Record
from logoeval.records import Metric, SampleRow
from logoeval.tasks.short.known import KNOWN, MEASURES
from logoeval.tasks.short.units import Unit
from logoeval.tasks.texts import text_fingerprint

OWN_LONGBENCH_NOTE = (
    "lm-eval's own LongBench tasks differ from the official ones in prompts, truncation and scores: never compare "
    "these numbers with published LongBench scores; logoeval longbench measures those"
)

_PARTIAL = "(PARTIAL:"


class HarnessSample(Record):
    """One document of a task. ``answers`` are the log-likelihoods of its choices, or the responses to its prompt."""

    task: str
    part: str
    doc_id: int
    prompt_hash: str
    target: str
    answers: list[object]
    score: float


class HarnessScore(Record):
    """A number that the harness says of a unit, and the samples that say it. ``asked`` is the name in the recipe,
    ``metric`` the harness's name with its filter."""

    name: str
    asked: str
    metric: str
    value: float
    stderr: float | None
    better: Literal["higher", "lower"] | None
    shots: list[int]
    version: str
    by_task: bool
    num_measured: int
    num_all: int
    samples: list[HarnessSample]

    @property
    def metric_name(self) -> str:
        """The metric, with its filter if it has one."""
        return self.metric.removesuffix(",none")

    @property
    def key(self) -> str:
        """The key of the metric in ``results.json``."""
        return f"{self.name}/{self.metric_name}"


class HarnessCall(Record):
    """A finished call of the harness: a line of ``short.jsonl``. ``num_cut`` prompts were longer than ``window``.
    Before ``num_reasoned`` responses the model reasoned, and was cut in ``num_reasoning_cut`` of these."""

    id: str
    units: list[HarnessScore]
    num_requests: int
    num_cut: int
    window: int
    num_reasoned: int = 0
    num_reasoning_cut: int = 0


def is_partial(metric: Metric) -> bool:
    """Return whether a limit cut what a metric is taken over."""
    return _PARTIAL in metric.label


def collect(unit: Unit, results: Mapping[str, Any]) -> list[HarnessScore]:
    """Return a record for each metric of a unit, from what ``simple_evaluate`` returned.

    Raises:
        UserError: the harness's number is not the mean of its samples.
    """
    records, numbers = [], results["results"][unit.name]
    for name in unit.metrics:
        key = _key(unit, name, numbers)
        better = results["higher_is_better"].get(unit.name, {}).get(name)
        stderr = numbers.get(f"{name}_stderr,{key.partition(',')[2]}")
        counts = [results["n-samples"][task] for task in unit.parts]
        record = HarnessScore(
            name=unit.name,
            asked=unit.asked.name,
            metric=key,
            value=float(numbers[key]),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            better=None if better is None else "higher" if better else "lower",
            shots=sorted({results["n-shot"][task] for task in unit.parts}),
            version=str(results["versions"][unit.name]),
            by_task=unit.by_task,
            num_measured=sum(count["effective"] for count in counts),
            num_all=sum(count["original"] for count in counts),
            samples=[sample for task in unit.parts for sample in _samples(unit, task, key, results)],
        )
        _check_mean(record)
        records.append(record)
    return records


def _key(unit: Unit, name: str, numbers: Mapping[str, Any]) -> str:
    """The harness's name of the metric with its filter."""
    known = [key for key in numbers if "," in key and "_stderr," not in key]
    wanted = unit.asked.metric if unit.asked.metric is not None and "," in unit.asked.metric else None
    for key in known:
        if key == wanted or (wanted is None and key.partition(",")[0] == name):
            return key
    raise UserError(f"gave no {wanted or name!r}", where=unit.name, mend=f"its metrics: {', '.join(known)}")


def _samples(unit: Unit, task: str, key: str, results: Mapping[str, Any]) -> Iterator[HarnessSample]:
    name, _, filtered = key.partition(",")
    for sample in results["samples"][task]:
        if sample["filter"] != filtered or name not in sample:
            continue
        score = sample[name]
        if not isinstance(score, int | float) and not hasattr(score, "item"):
            raise UserError(f"{name!r} is no number a sample", where=task, mend="give another metric")
        check_finite({name: float(score)}, where=f"{task}, document {sample['doc_id']}")
        if name.isdigit() and score == -1:  # RULER's mark of a sample that has another length
            continue
        said = sample["filtered_resps"]
        yield HarnessSample(
            task=task,
            part=unit.parts[task],
            doc_id=sample["doc_id"],
            prompt_hash=text_fingerprint(json.dumps([sample["arguments"], sample["target"]], default=str)),
            target=str(sample["target"]),
            answers=[answer[0] if isinstance(answer, list | tuple) else answer for answer in said],
            score=float(score),
        )


def _check_mean(record: HarnessScore) -> None:
    where = f"{record.name}: {record.metric}"
    if not record.samples:
        raise UserError("no sample has this metric", where=where, mend="give another metric")
    by_task: dict[str, list[float]] = {}
    for sample in record.samples:
        by_task.setdefault(sample.task if record.by_task else "", []).append(sample.score)
    value = fmean(fmean(scores) for scores in by_task.values())
    if not math.isclose(value, record.value, rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"lm-eval says {record.value}, the mean over its samples is {value}: this metric is no mean, so it has "
            "no interval and no paired comparison",
            where=where,
            mend="give another metric",
        )


def metric(record: HarnessScore, *, limit: int | None) -> Metric:
    """Return the metric of a record. If a limit left samples out, its label says so."""
    name, measure = record.name, record.metric.partition(",")[0]
    known = KNOWN.get(name)
    title = known.title if known else name
    if is_own_longbench(name):
        title = f"{name} (lm-eval's own, not LongBench's official score)"
    explanation = f"lm-evaluation-harness's {name}, metric {record.metric_name}"
    explanation += ", mean of its tasks' means." if record.by_task else "."
    words = MEASURES.get(measure, measure)
    if known and known.metric == measure:
        explanation, words = known.explanation, known.measure
    shots = "-".join(map(str, record.shots))
    label = f"{title} at {int(measure):,} tokens" if measure.isdigit() else f"{title}, {shots}-shot {words}"
    if record.num_measured < record.num_all:
        label += f" {_PARTIAL} first {limit} of each task)"
    return Metric(
        key=record.key,
        label=label,
        explanation=explanation,
        kind="share" if all(0 <= sample.score <= 1 for sample in record.samples) else "count",
        better=record.better,
        slice_by=["part"] if len({sample.part for sample in record.samples}) > 1 else [],
        mean_of=["task"] if record.by_task else [],
    )


def sample_rows(records: Sequence[HarnessScore]) -> list[SampleRow]:
    """Return a row for each document of each task, with its score under every metric of its unit."""
    rows: dict[str, SampleRow] = {}
    for record in records:
        for sample in record.samples:
            name = f"{sample.task}/{sample.doc_id}"
            scores = rows[name].scores if name in rows else {}
            rows[name] = SampleRow(
                id=name,
                cluster=name,
                prompt_hash=sample.prompt_hash,
                scores={**scores, record.key: sample.score},
                facts={"part": sample.part, "task": sample.task},
            )
    return list(rows.values())


def is_own_longbench(name: str) -> bool:
    """Return whether a task or group is the harness's own version of LongBench."""
    return name == "longbench" or name.startswith("longbench_")


def notes(records: Sequence[HarnessScore], *, limit: int | None) -> Iterator[str]:
    """Yield what a reader of the numbers should know."""
    counts = {record.name: (record.num_measured, record.num_all) for record in records}
    measured, existing = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    if measured < existing:
        yield (
            f"PARTIAL: the first {limit} samples of each task, {measured:,} of {existing:,}: "
            "for trying out, not a result of these benchmarks"
        )
    if any(is_own_longbench(sample.task) for record in records for sample in record.samples):
        yield OWN_LONGBENCH_NOTE
    numbers = (
        f"{record.name} {record.metric_name} {record.value:.4f}"
        + (f" ± {record.stderr:.4f}" if record.stderr is not None else "")
        for record in records
    )
    yield f"lm-eval's own words (± its standard error): {'; '.join(numbers)}"
