"""What ``logoeval`` costs: perplexity, needles, metrics, starting.

``python benchmarks/eval.py [perplexity] [niah] [metrics] [startup] --json FILE``; without a part, all four. ``--help``
lists every size.

- ``perplexity``: a curve of six doubling lengths in one pass over each document, against one run for each length. The
  values are compared.
- ``niah``: the prompts of a needle grid in one submission to vLLM with its prefix cache, in the order of their tokens
  against random order. Responses are compared. Needs vLLM: ``--vllm PYTHON`` names an interpreter that has it.
- ``metrics``: ``logoeval score`` on 10,000 predictions, LongBench's 4,750 rows and 5,250 of LongBench-E, of the lengths
  that its tasks allow.
- ``startup``: ``--help`` of the three commands in fresh processes.

Ways that are compared take turns; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logodata.common.errors import UserError, run_command
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.settings import EngineSettings
from logodata.models.loading import resolve_model
from logoeval.recipe.settings import EvalRecipe
from logoeval.session import Session
from logoeval.tasks.longbench.task_table import E_SUFFIX, TASKS, Task
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.needles.task import build_samples, shared_prefix_tokens
from logoeval.tasks.perplexity import PerplexitySettings, documents, token_nlls
from parts import parse_parts, parser_of_parts, run_parts
from serving import requests_to_json

TARGETS = {"perplexity": 1.5, "niah": 1.4, "metrics_s": 60.0, "startup_s": 0.5}
NUM_LENGTHS = 6
NUM_PREDICTIONS = 10_000


def _session(arguments: argparse.Namespace) -> Session:
    return Session(EvalRecipe(model=arguments.model, engine=EngineSettings(dtype="float32", device="cpu")))


def measure_perplexity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one pass and of a run for each length, by document."""
    longest = arguments.longest
    lengths = tuple(longest >> power for power in reversed(range(NUM_LENGTHS)))
    session = _session(arguments)
    settings = PerplexitySettings(lengths=lengths, num_documents=arguments.documents)
    found, _ = documents(settings, session.tokenizer)
    token_nlls(session.model, next(iter(found.values()))[: lengths[0]])  # what is loaded on first use
    rows, worst = [], 0.0
    for number, ids in enumerate(found.values()):
        seconds = {}
        values: dict[str, list[float]] = {}
        for way in ("one_pass", "one_run_a_length") if number % 2 == 0 else ("one_run_a_length", "one_pass"):
            started = time.perf_counter()
            if way == "one_pass":
                nlls = token_nlls(session.model, ids)
                values[way] = [float(nlls[: length - 1].mean()) for length in lengths]
            else:
                values[way] = [float(token_nlls(session.model, ids[:length]).mean()) for length in lengths]
            seconds[way] = time.perf_counter() - started
        worst = max(worst, float(np.abs(np.subtract(values["one_pass"], values["one_run_a_length"])).max()))
        rows.append(seconds)
        print(f"document {number + 1}/{len(found)}: " + ", ".join(f"{way} {s:.1f} s" for way, s in seconds.items()))
    np.testing.assert_array_less(worst, 1e-4)
    ratios = [row["one_run_a_length"] / row["one_pass"] for row in rows]
    report = {"lengths": lengths, "seconds": rows, "worst_difference_nats": worst, **_ratio(ratios, "perplexity")}
    _say("perplexity, one pass", report)
    return report


def measure_niah(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a grid in the order of its tokens and in random order, by round."""
    session = _session(arguments)
    settings = NiahSettings(
        variant="single",
        lengths=arguments.grid_lengths,
        num_samples=arguments.grid_samples,
        haystacks=("essay",),
        max_new_tokens=arguments.grid_new_tokens,
    )
    requests = [
        GenerationRequest(item.id, item.prompt_ids, Sampling(settings.max_new_tokens, session.stop_ids))
        for _, item in build_samples(settings, session)
    ]
    prompts = [request.prompt_ids for request in requests]
    tokens, shared = sum(map(len, prompts)), shared_prefix_tokens(prompts)
    print(f"needles: {len(requests)} prompts, {tokens} tokens, {shared} in a beginning shared with another prompt")
    random.Random(0).shuffle(requests)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "requests.json", Path(folder) / "result.json"
        source.write_text(json.dumps(requests_to_json(requests)))
        command = [arguments.vllm, str(Path(__file__).with_name("serving.py")), "orders", str(arguments.rounds)]
        ended = subprocess.run([*command, resolve_model(arguments.model), str(source), str(target)], check=False)
        if ended.returncode:
            raise UserError(f"vLLM's process ended with {ended.returncode}", mend="see above; --vllm names its Python")
        result = json.loads(target.read_text())
    ways = result["ways"]
    pairs = zip(ways["random"]["seconds"], ways["sorted"]["seconds"], strict=True)
    report = {
        "engine": result["engine"],
        "prompts": len(requests),
        "prompt_tokens": tokens,
        "shared_tokens": shared,
        "ways": {
            way: {key: found[key] for key in ("seconds", "cached_tokens")}
            | {"responses_equal_to_sorted": _num_equal(found["token_ids"], ways["sorted"]["token_ids"])}
            for way, found in ways.items()
        },
        **_ratio([slow / fast for slow, fast in pairs], "niah"),
    }
    _say("needles, sorted for the prefix cache", report)
    return report


def _num_equal(found: dict[str, Any], expected: dict[str, Any]) -> int:
    return sum(found[key] == value for key, value in expected.items())


def _ratio(by_round: Sequence[float], part: str) -> dict[str, Any]:
    middle = statistics.median(by_round)
    low, high = min(by_round), max(by_round)
    target = TARGETS[part]
    return {"ratio": middle, "ratio_rounds": [low, high], "target": target, "reached": middle >= target}


def _say(what: str, report: dict[str, Any]) -> None:
    low, high = report["ratio_rounds"]
    print(f"{what}: {report['ratio']:.2f}x ({low:.2f}-{high:.2f}), target {report['target']}")


# Metrics


def write_predictions(folder: Path, *, e: bool, count: int) -> int:
    """Predictions of so many rows over all tasks in LongBench's proportions, in its official format."""
    tasks = [task for task in TASKS.values() if task.in_e or not e]
    total = sum(task.num_rows for task in tasks)
    rng = random.Random(int(e))
    written = 0
    for number, task in enumerate(tasks):
        last = number == len(tasks) - 1
        rows = count - written if last else round(count * task.num_rows / total)
        name = f"{task.name}{E_SUFFIX if e else ''}.jsonl"
        lines = [json.dumps(_prediction(task, rng), ensure_ascii=False) for _ in range(rows)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        written += rows
    return written


_LEXICON = [f"word{number}" for number in range(2000)]
_WEIGHTS = [1 / (number + 1) for number in range(2000)]
_HAN = [chr(0x4E00 + number) for number in range(2000)]


def _prediction(task: Task, rng: random.Random) -> dict[str, Any]:
    """As long as the task's cap allows; words with Zipf's frequencies."""
    size = task.max_new_tokens
    classes = [f"class {number} of fifty" for number in range(50)] if task.metric == "classification" else None
    if task.language == "zh":
        text, gold = ("".join(rng.choices(_HAN, _WEIGHTS, k=size)) + "。" for _ in range(2))
    else:
        text, gold = (
            " ".join(word + "." * (rng.random() < 0.05) for word in rng.choices(_LEXICON, _WEIGHTS, k=size))
            for _ in range(2)
        )
    if task.metric == "classification":
        gold = rng.choice(classes or [])
    elif task.metric in ("retrieval", "retrieval_zh"):
        gold = f"Paragraph {rng.randint(1, 30)}" if task.language == "en" else f"段落{rng.randint(1, 30)}"
    elif task.metric == "count":
        gold = str(rng.randint(1, 30))
    return {"pred": text, "answers": [gold], "all_classes": classes, "length": rng.randint(1000, 12000)}


def measure_metrics(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of ``logoeval score`` on all predictions, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        parts = {False: 4750, True: NUM_PREDICTIONS - 4750}
        for e, count in parts.items():
            where = Path(folder) / str(e)
            where.mkdir()
            assert write_predictions(where, e=e, count=count) == count
        seconds = []
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            for e in parts:
                command = [sys.executable, "-m", "logoeval", "score", str(Path(folder) / str(e))]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    found = statistics.median(seconds)
    print(f"metrics of {NUM_PREDICTIONS:,} predictions: {found:.1f} s, target {TARGETS['metrics_s']:.0f} s")
    target = TARGETS["metrics_s"]
    return {"predictions": NUM_PREDICTIONS, "seconds": seconds, "target_s": target, "reached": found < target}


def measure_startup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds until ``--help`` has ended, by command."""
    report: dict[str, Any] = {}
    for program in ("logoeval", "logodata", "logotrain"):
        seconds = []
        for _ in range(max(5, arguments.rounds)):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", program, "--help"], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        found, target = statistics.median(seconds), TARGETS["startup_s"]
        report[program] = {"seconds": seconds, "target_s": target, "reached": found < target}
        print(f"{program} --help: {found:.2f} s, target {target} s")
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of_parts(__doc__, MEASURES, threads=2)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of needles, metrics, start-up (3)")
    group = parser.add_argument_group("perplexity")
    group.add_argument("--longest", type=int, default=4096, metavar="N", help="the last of six lengths (4096)")
    group.add_argument("--documents", type=int, default=4, metavar="N", help="each is a round (4)")
    group = parser.add_argument_group("niah")
    group.add_argument("--vllm", default=sys.executable, metavar="PYTHON", help="that has vLLM (default: this one)")
    group.add_argument("--grid-lengths", default="512-2048/512", metavar="A-B/STEP", help="(512-2048/512)")
    group.add_argument("--grid-samples", type=int, default=2, metavar="N", help="for each length and depth (2)")
    group.add_argument("--grid-new-tokens", type=int, default=16, metavar="N", help="(16)")
    return parse_parts(parser, argv, MEASURES)


MEASURES = {
    "perplexity": measure_perplexity,
    "niah": measure_niah,
    "metrics": measure_metrics,
    "startup": measure_startup,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run_parts(parse(argv), MEASURES)


if __name__ == "__main__":
    sys.exit(run_command("eval.py", main, resume_hint="nothing was written"))
