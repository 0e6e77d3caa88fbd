"""Results of all tasks that no model made, for reports of any number of runs. To look at them:

    python -m tests.logoeval.synthetic FOLDER [--rows N] RUN [RUN ...]

writes FOLDER/RUN/results.json, a run better than the one before it, N rows a LongBench task (all of them by default).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logoeval.intervals import summarise
from logoeval.records import (
    Curve,
    CurvePoint,
    CurveValue,
    Metric,
    Outcome,
    Provenance,
    Results,
    SampleRow,
    TaskResult,
    write_results,
)
from logoeval.tasks.longbench.summary import Scored, notes, sample_rows
from logoeval.tasks.longbench.summary import metrics as longbench_metrics
from logoeval.tasks.longbench.task_table import TASKS
from logoeval.tasks.needles import saw_said, scores
from logoeval.tasks.pairs import METRICS as PAIRS_METRICS
from logoeval.tasks.perplexity import PerplexitySettings
from logoeval.tasks.perplexity import metrics as ppl_metrics
from logoeval.tasks.ruler.summary import RulerFacts, scores_of
from logoeval.tasks.ruler.summary import metrics as ruler_metrics
from logoeval.tasks.ruler.task_table import TASKS as RULER_TASKS

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536)
DEPTHS = (0, 22, 44, 66, 88)


def longbench(effect: float, rows: int | None, tasks: Sequence[str] | None = None, e: bool = False) -> Outcome:
    rng, noise = np.random.default_rng(1), np.random.default_rng(100 + round(100 * effect))
    chosen = [task for name, task in TASKS.items() if (task.in_e or not e) and (tasks is None or name in tasks)]
    level = dict(zip(TASKS, np.random.default_rng(2).uniform(0.2, 0.6, len(TASKS)), strict=True))
    samples = []
    for task in chosen:
        for number in range(task.num_rows if rows is None else rows):
            base = np.clip(rng.normal(level[task.name], 0.3), 0, 1)
            score = float(np.clip(base + noise.normal(effect / 8, 0.12), 0, 1))
            truncated = bool(rng.random() < 0.3)
            samples.append(
                Scored(str(number), task, f"{task.name}/{number}", "h", score, False, 3000 * number, truncated)
            )
    reported = longbench_metrics(chosen, e=e, truncation=True)
    said = list(notes(samples, e=e, code_sim="rapidfuzz"))
    settings = {"tasks": [task.name for task in chosen], "e": e, "max_prompt_tokens": None, "code_sim": "rapidfuzz"}
    return Outcome(reported, sample_rows(samples, reported, e=e), said, settings=settings)


def niah(effect: float, haystacks: Sequence[str] = ("noise", "essay")) -> Outcome:
    rng, noise = np.random.default_rng(3), np.random.default_rng(200 + round(100 * effect))
    wanted = [*scores.metrics("single"), *saw_said.METRICS]
    rows = []
    for haystack in haystacks:
        for length in LENGTHS:
            for depth in DEPTHS:
                for number in range(2):
                    hard = np.log2(length / 1024) / 7 + 0.3 * np.sin(depth / 30) + rng.normal(0, 0.15)
                    found = bool(hard - 0.5 * effect + noise.normal(0, 0.05) < 0.6)
                    seen = bool(hard - 0.3 * effect < 0.7)
                    table = saw_said.saw_said([seen], [found])
                    values: dict[str, float] = {"recall": found, "precision": found, "distinct_values": found}
                    values |= {"retrieval": 0.8 * found, "retrieval_forced": 0.6 * seen, "saw": seen}
                    values |= {"retrieval_own": 0.8 * found, "retrieval_forced_own": 0.6 * seen, **table}
                    values["said_minus_saw"] = found - seen
                    sample_id = f"{haystack}-{length}-{depth}-{number}"
                    facts = {"haystack": haystack, "length": length, "depth": depth, "depths": [depth]}
                    facts |= {"found": [found], "seen": [seen]}
                    values = {key: float(value) for key, value in values.items()}
                    cluster = sample_id if haystack == "noise" else f"{haystack}/{number}"
                    rows.append(SampleRow(id=sample_id, cluster=cluster, prompt_hash="h", scores=values, facts=facts))
    settings = {"variant": "single", "num_values": 1, "num_samples": 2, "lengths": list(LENGTHS)}
    settings |= {"depths": list(DEPTHS), "haystacks": dict.fromkeys(haystacks, "f"), "retrieval_heads": "f"}
    said = ["31 retrieval heads", "the haystack 'noise' is shorter than 65536 tokens and was repeated at that length"]
    return Outcome(wanted, rows, said, settings=settings)


def ruler(effect: float, tasks: Sequence[str] | None = None, count: int = 4) -> Outcome:
    rng, noise = np.random.default_rng(6), np.random.default_rng(500 + round(100 * effect))
    chosen = [task for task in RULER_TASKS.values() if tasks is None or task.name in tasks]
    wanted = ruler_metrics(chosen, LENGTHS, {"essays": "PaulGrahamEssays"})
    rows = []
    for place, length in enumerate(LENGTHS):
        for number, task in enumerate(chosen):
            for index in range(count):
                hard = 0.12 * place + 0.05 * number + rng.normal(0, 0.2)
                score = float(np.clip(1.3 - hard + 0.2 * effect + noise.normal(0, 0.05), 0, 1))
                given = {"reported": wanted, "lengths": LENGTHS, "is_null": hard > 1.2}
                values = scores_of(task, length, round(score), **given)
                sample_id, facts = f"{task.name}-{length}-{index}", RulerFacts.of(task, length).to_json()
                cluster = f"{task.name}/{index}" if task.counts_any else sample_id
                rows.append(SampleRow(id=sample_id, cluster=cluster, prompt_hash="h", scores=values, facts=facts))
    files = {"squad": {"fingerprint": "f", "size": 5928}, "hotpot": {"fingerprint": "f", "size": 7405}}
    settings = {"tasks": [task.name for task in chosen], "left_out": [], "lengths": list(LENGTHS), "num_samples": count}
    return Outcome(wanted, rows, [], settings={**settings, "threshold": 85.6, "files": files})


def pairs(effect: float, max_samples: int | None) -> Outcome:
    rng, noise = np.random.default_rng(4), np.random.default_rng(300 + round(100 * effect))
    rows = []
    for number in range(64 if max_samples is None else max_samples):
        margin = float(rng.normal(0.2, 0.8) + 0.6 * effect + noise.normal(0, 0.25))
        values = {"margin": margin, "prefers_chosen": float(margin > 0), "chosen": margin - 2, "rejected": -2.0}
        values |= {"word_share": float(rng.uniform(0.3, 0.8)), "token_f1": float(rng.uniform(0.2, 0.5))}
        values |= {"ended": float(rng.random() < 0.5 + effect / 3), "answer_tokens": float(rng.integers(8, 64))}
        facts = {"origin": "live", "kind": "single_detail"}
        rows.append(SampleRow(id=f"q{number}", cluster=f"d{number // 2}", prompt_hash="h", scores=values, facts=facts))
    settings = {"max_samples": max_samples, "max_new_tokens": 64}
    return Outcome(PAIRS_METRICS, rows, [], {"data": "/gone/heldout"}, settings)


def ppl(effect: float) -> Outcome:
    rng, noise = np.random.default_rng(5), np.random.default_rng(400 + round(100 * effect))
    wanted = ppl_metrics(PerplexitySettings(lengths=LENGTHS))
    rows = []
    for number in range(12):
        level = rng.normal(2.4, 0.2)
        values = {
            metric.key: float(level - 0.03 * (place // 2) + 0.02 * effect + noise.normal(0, 0.004))
            for place, metric in enumerate(wanted)
        }
        rows.append(SampleRow(id=f"b{number}", cluster=f"b{number}", prompt_hash="h", scores=values))
    return Outcome(wanted, rows, ["beginning-of-sequence token: yes"], settings={"lengths": list(LENGTHS)})


def outcomes(effect: float, rows: int | None, max_samples: int | None) -> Iterator[tuple[str, Outcome]]:
    yield "longbench", longbench(effect, rows)
    yield "niah", niah(effect)
    yield "ruler", ruler(effect)
    yield "pairs", pairs(effect, max_samples)
    yield "ppl", ppl(effect)


def task_result(task: str, outcome: Outcome, *, adapter: str | None) -> TaskResult:
    provenance = Provenance(
        logo_align="0",
        python="3",
        torch="2.13.0",
        transformers="5.19.0",
        engine="vllm 0.32.0",
        device="cuda",
        model="meta-llama/Meta-Llama-3-8B-Instruct",
        model_fingerprint="5e8d7a0b",
        adapter=adapter,
        adapter_fingerprint=adapter and "0c1d2e3f",
        tokenizer_fingerprint="t",
        date="2026-11-23T00:00:00+00:00",
        seconds=1234.0,
    )
    return TaskResult(
        task=task,
        settings={"task_version": 1, "seed": 0, **outcome.settings},
        notes=outcome.notes,
        sources=outcome.sources,
        provenance=provenance,
        metrics=outcome.metrics,
        summary=summarise(outcome.metrics[:1], outcome.samples),
        samples=outcome.samples,
    )


def curve(effect: float) -> Curve:
    """Recall and retrieval over five checkpoints."""
    metrics: list[Metric] = [scores.METRICS[0], *saw_said.METRICS[:2]]
    points = []
    for step in (0, 50, 100, 150, 200):
        values = []
        for number, metric in enumerate(metrics):
            value = 0.4 + 0.1 * number + effect * step / 2000
            interval = {"low": value - 0.05, "high": value + 0.05}
            change = {"change": value - 0.4 - 0.1 * number, "change_low": 0.0, "change_high": 0.1}
            values.append(CurveValue(metric=metric.key, value=value, num_samples=20, **interval, **change))
        points.append(CurvePoint(step=step, adapter_fingerprint=None, values=values))
    return Curve(checkpoints="run/checkpoints", settings={"seed": 0}, metrics=metrics, points=points)


def write_runs(
    root: Path, names: Sequence[str], *, rows: int | None = 2, max_samples: int | None = None, tasks: Any = None
) -> list[Path]:
    """Write a folder a name; ``tasks`` keeps only some. Each holds a curve, too."""
    folders = []
    for number, name in enumerate(names):
        effect = number / 2
        adapter = f"runs/{name}/final" if number else None
        found = {
            task: task_result(task, outcome, adapter=adapter)
            for task, outcome in outcomes(effect, rows, max_samples)
            if tasks is None or task in tasks
        }
        folder = root / name
        folder.mkdir(parents=True)
        write_results(folder, Results(tasks=found, curve=curve(effect)))
        folders.append(folder)
    return folders


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    for path in write_runs(given.folder, given.runs, rows=given.rows):
        print(path)
