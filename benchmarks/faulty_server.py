"""A server that misbehaves in every way we know of, between a real vLLM server and our client, against a clean run.

``python benchmarks/faulty_server.py --vllm PYTHON --json FILE``

``requests``: 2,000 short prompts through the engine, once as they are and once through :mod:`fault_proxy` with late
answers, resets, half answers, error pages, storms of 429, 500 and 503, and the server killed (SIGKILL to its process
group) and started again in the middle; then once more as they are. ``paced``: the same with a stub server whose answers
take half a second each, and which is down for 40 s: time that no other program on the machine changes. ``build``: a
whole ``logodata build`` with vLLM; a build that gives up is started again, as a user would.

Wanted: every request answered or reported; none answered twice, nor asked again once its answer had arrived (the proxy
counts answers that went out whole, by the request's bytes; vLLM's own count of finished requests must be the proxy's
count of answers that came back); token ids equal to the clean run's; the memory of this process (client and proxy) the
same in the last quarter of the time as in the first; at most twice the time that the faults cost any client. The exit
code is 1 otherwise.

What the faults cost any client: the clean run's time; for each answer that the server had to give again, its share of
the clean run; the time in which nobody could have had an answer or everybody was asked to wait (storms,
``Retry-After``, the server's restart; overlaps count once); and outside of it the time that single answers were held
back, over the number of requests in flight. A client that knew when each fault ends would need that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence import environment
from fault_proxy import IN_VAIN, Counts, FaultProxy, Plan, draw_faults, outside, seconds, union
from logodata.common.errors import UserError, run_command
from logodata.common.turn_end import turn_end_ids
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.openai_engine import OpenAIEngine
from logodata.engines.settings import EngineSettings
from logodata.models.loading import load_tokenizer, resolve_model
from logodata.prompts import encode_text
from process_state import anonymous_mib
from recovery import compare, finished_requests
from serving import end_group, start_vllm, stub_server

STORMS = (
    (0.10, "503", 4.0),
    (0.20, "429", 4.0),
    (0.30, "500", 8.0),
    (0.40, "reset", 4.0),
    (0.60, "429 with Retry-After", 4.0),
    (0.70, "HTML with 502", 4.0),
    (0.80, "hang up", 4.0),
)
"""After which share of the requests, which fault, for how many seconds."""
KILL_AT = 0.5
PARTS = ("requests", "paced", "build")
ANSWER_S = 0.5
DOWN_S = 40.0
ENGINE = {"concurrency": 16, "timeout_s": 30.0, "max_retries": 14}
RECIPE = {
    "model": "embedded",
    "source.path": "embedded:eval",
    "source.max_questions_per_document": 2,
    "chunking.chunk_tokens": 48,
    "contexts.num_chunks": 3,
    "contexts.critical_threshold": None,
    "contexts.critical_top": 1,
    "evaluator.name": "lexical",
    "generation.preferred": "guided",
    "generation.num_candidates": 4,
    "generation.max_new_tokens": 24,
    "generation.group_size": 8,  # several groups, so that faults fall between submissions, too
}
FLAT_MIB = 4.0


@dataclass(slots=True)
class Run:
    """What came of asking for all requests."""

    answers: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    """The error lines of calls that gave up; what they had not answered was asked for in another call."""
    seconds: float = 0.0
    anonymous_mib: list[float] = field(default_factory=list)
    """Twice a second."""
    counts: Counts = field(default_factory=Counts)


def run_requests(engine: OpenAIEngine, requests: Sequence[GenerationRequest], proxy: FaultProxy, plan: Plan) -> Run:
    """Ask for all of them under the plan. A call that gives up is followed by another, five times at most."""
    run = Run()
    proxy.start(plan)
    started = time.monotonic()
    with sampled(anonymous_mib) as run.anonymous_mib:
        while (left := [request for request in requests if request.id not in run.answers]) and len(run.reported) < 5:
            try:
                for result in engine.generate(left):
                    if result.id in run.answers:
                        run.doubled.append(result.id)
                    run.answers[result.id] = (result.token_ids, result.finish_reason)
            except UserError as error:
                run.reported.append(str(error))
    run.seconds = time.monotonic() - started
    proxy.join_events()
    run.counts = proxy.counts
    return run


@contextlib.contextmanager
def sampled(measure: Callable[[], float], every_s: float = 0.5) -> Iterator[list[float]]:
    """A list that grows by a value every so many seconds."""
    values: list[float] = []
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(every_s):
            values.append(measure())

    thread = threading.Thread(target=work, name="sampler", daemon=True)
    thread.start()
    try:
        yield values
    finally:
        is_over.set()
        thread.join()


class Vllm:
    """A vLLM server behind a proxy, killed and started again on demand, and what each of its lives finished."""

    def __init__(self, python: str, model: str, log: Path) -> None:
        self._start = lambda: start_vllm(python, model, log)
        self.process, self.url = self._start()
        self.proxy = FaultProxy(self.url.removesuffix("/v1"))
        self.lives: list[dict[str, Any]] = []
        self._begin_life()

    def _begin_life(self) -> None:
        self._finished_before, self._came_back_before = self._finished(), self.proxy.counts.came_back

    def _finished(self) -> int:
        return sum(count for reason, count in finished_requests(self.url).items() if reason in ("stop", "length"))

    def begin(self) -> list[dict[str, Any]]:
        """Count anew; the lives until now."""
        lives, self.lives = self.lives, []
        self._finished_before, self._came_back_before = self._finished(), 0
        return lives

    def end_life(self) -> None:
        """Note what this life finished; the server must be idle."""
        self.lives.append(
            {
                "server_finished": self._finished() - self._finished_before,
                "came_back": self.proxy.counts.came_back - self._came_back_before,
            }
        )

    def kill_and_restart(self) -> None:
        """Count at rest, then kill in the middle of requests, and start again behind the same address."""
        proxy, began = self.proxy, time.monotonic()
        proxy.hold()
        self.end_life()
        counted = proxy.counts.came_back
        proxy.release()
        released = time.monotonic()
        # Most of what fits, or what there is: a build's group may be nearly through.
        while proxy.in_flight < (ENGINE["concurrency"] // 2 if time.monotonic() < released + 5 else 1):
            if time.monotonic() > released + 60:
                break
            time.sleep(0.01)
        in_flight = proxy.in_flight
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        proxy.go_down()
        self.lives[-1] |= {"killed_with_in_flight": in_flight, "came_back_after": proxy.counts.came_back - counted}
        self.process, self.url = self._start()
        proxy.upstream = self.url.removesuffix("/v1")
        self._begin_life()
        proxy.come_up()
        proxy.counts.outages.append((began, time.monotonic()))
        self.lives[-1]["down_s"] = time.monotonic() - began
        print(f"killed with {in_flight} requests in flight, back after {self.lives[-1]['down_s']:.1f} s", flush=True)

    def close(self) -> None:
        """End both."""
        self.proxy.close()
        end_group(self.process)


def make_plan(seed: int, count: int, events: Mapping[float, Callable[[], None]], share: float = 0.12) -> Plan:
    """Single faults, :data:`STORMS`, and events after shares of ``count`` requests."""

    def number(part: float) -> int:
        return max(1, round(part * count))

    return Plan(
        faults=draw_faults(seed, round(count * (1 + share)), share),
        storms={number(part): (kind, length) for part, kind, length in STORMS},
        events={number(part): event for part, event in events.items()},
    )


def cost(counts: Counts, clean_s: float, num_requests: int, concurrency: int) -> dict[str, float]:
    """Seconds that the faults cost any client; see the module."""
    outages = union(counts.outages)
    again = counts.came_back - sum(counts.delivered.values()) + counts.cut_off
    parts = {
        "clean_s": clean_s,
        "work_done_again_s": clean_s * again / num_requests,
        "outages_s": seconds(outages),
        "delays_s": sum(outside(delay, outages) for delay in counts.delays) / concurrency,
    }
    return {**parts, "own_cost_s": sum(parts.values())}


def tell(counts: Counts) -> dict[str, Any]:
    """The proxy's counts, for the file of results."""
    return {
        "faults": dict(sorted(counts.faults.items())),
        "passed_on": counts.passed_on,
        "came_back": counts.came_back,
        "cut_off": counts.cut_off,
        "given_up": counts.given_up,
        "spoilt": sum(counts.faults[kind] for kind in IN_VAIN),
        "delivered": sum(counts.delivered.values()),
        "delivered_twice": sum(1 for times in counts.delivered.values() if times > 1),
    }


def memory(values: Sequence[float]) -> dict[str, float]:
    """Medians of the first and the last quarter of the time, MiB."""
    quarter = max(1, len(values) // 4)
    first, last = (statistics.median(part) for part in (values[:quarter], values[-quarter:]))
    return {"first_quarter_mib": first, "last_quarter_mib": last, "growth_mib": last - first, "peak_mib": max(values)}


def faults_of_counting(counts: Counts, num_requests: int, lives: Sequence[Mapping[str, int]]) -> list[str]:
    """What the counts of client, proxy and server say is wrong."""
    wrong = []
    if twice := sum(1 for times in counts.delivered.values() if times > 1):
        wrong.append(f"{twice} requests were asked again after their answer had arrived")
    if len(counts.delivered) != num_requests:
        wrong.append(f"{len(counts.delivered)} requests were answered, {num_requests} were needed")
    wrong += [
        f"life {number} of the server: it finished {life['server_finished']}, {life['came_back']} came back"
        for number, life in enumerate(lives, 1)
        if life["server_finished"] != life["came_back"]
    ]
    return wrong


def check_run(run: Run, clean: Run, requests: Sequence[GenerationRequest]) -> list[str]:
    """What is wrong with the answers."""
    lost = [request.id for request in requests if request.id not in run.answers]
    differing = [i for i, answer in run.answers.items() if clean.answers.get(i) != answer]
    wrong = [f"{len(lost)} requests without an answer"] if lost else []
    wrong += [f"{len(run.doubled)} results came twice"] if run.doubled else []
    return wrong + ([f"{len(differing)} answers differ from the clean run's"] if differing else [])


def draw_requests(count: int, seed: int) -> list[GenerationRequest]:
    """Pieces of the embedded documents of 16 to 40 tokens, each another one, to be continued by 4 to 8."""
    rng, tokenizer = random.Random(seed), load_tokenizer("embedded")
    file = Path(__file__).parents[1] / "logodata" / "sources" / "embedded" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ids = [encode_text(tokenizer, row["context"]) for row in rows]
    stops = tuple(turn_end_ids(tokenizer))
    drawn: dict[tuple[int, ...], int] = {}
    while len(drawn) < count:
        text, length = rng.choice(ids), rng.randint(16, 40)
        start = rng.randrange(len(text) - length)
        drawn[tuple(text[start : start + length])] = rng.randint(4, 8)
    return [
        GenerationRequest(f"r{number}", prompt, Sampling(most, stops, 0.0))
        for number, (prompt, most) in enumerate(drawn.items())
    ]


def run_three(
    engine: OpenAIEngine, requests: Sequence[GenerationRequest], proxy: FaultProxy, plan: Plan, begin: Callable[[], Any]
) -> dict[str, Run]:
    """Clean, spoilt, clean; ``begin`` is called before each."""
    list(engine.generate(requests[:32]))  # what is loaded on first use, here and there
    runs: dict[str, Run] = {}
    for name in ("clean", "spoilt", "clean again"):
        begin()
        runs[name] = run_requests(engine, requests, proxy, plan if name == "spoilt" else Plan())
        print(f"{name}: {runs[name].seconds:.1f} s, {len(runs[name].answers)} answers", flush=True)
    return runs


def assess(
    runs: Mapping[str, Run], requests: Sequence[GenerationRequest], lives: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What came out of :func:`run_three`, and what is wrong with it."""
    clean, spoilt, again = runs["clean"], runs["spoilt"], runs["clean again"]
    clean_s = statistics.mean((clean.seconds, again.seconds))
    costs = cost(spoilt.counts, clean_s, len(requests), ENGINE["concurrency"])
    grown = memory(spoilt.anonymous_mib)
    ratio = spoilt.seconds / costs["own_cost_s"]
    wrong = check_run(spoilt, clean, requests) + faults_of_counting(spoilt.counts, len(requests), lives)
    wrong += [f"the clean runs: {line}" for line in check_run(again, clean, requests)]
    wrong += [f"memory grew by {grown['growth_mib']:.1f} MiB"] if grown["growth_mib"] > FLAT_MIB else []
    wrong += [f"{ratio:.2f} times the faults' own cost"] if ratio > 2 else []
    return {
        "requests": len(requests),
        "engine": ENGINE,
        "storms": STORMS,
        "seconds": {name: run.seconds for name, run in runs.items()},
        "answered": len(spoilt.answers),
        "reported": spoilt.reported,
        "proxy": tell(spoilt.counts),
        "server_lives": lives,
        "memory": grown,
        "cost": costs,
        "over_own_cost": ratio,
        "wrong": wrong,
    }


def measure_requests(arguments: argparse.Namespace, vllm: Vllm, model: str) -> dict[str, Any]:
    """Against vLLM."""
    requests = draw_requests(arguments.requests, arguments.seed)
    engine = OpenAIEngine(EngineSettings(base_urls=(vllm.proxy.url,), **ENGINE), model)
    plan = make_plan(arguments.seed, len(requests), {KILL_AT: vllm.kill_and_restart})
    lives: list[list[dict[str, Any]]] = []

    def begin() -> None:
        vllm.end_life()
        lives.append(vllm.begin())

    runs = run_three(engine, requests, vllm.proxy, plan, begin)
    begin()
    return assess(runs, requests, lives[2])


def measure_paced(arguments: argparse.Namespace) -> dict[str, Any]:
    """Against a server that gives every answer after the same time, whatever else this machine does, and is down for
    :data:`DOWN_S`: nothing but the client's own waiting tells the two runs apart."""
    rng = random.Random(arguments.seed)
    requests = [
        GenerationRequest(f"r{number}", tuple(rng.choices(range(9, 9000), k=40)), Sampling(32, (2,), 0.0))
        for number in range(arguments.requests)
    ]
    with stub_server("stub", ANSWER_S) as url, contextlib.closing(FaultProxy(url.removesuffix("/v1"))) as proxy:

        def be_down() -> None:
            began = time.monotonic()
            proxy.go_down()
            time.sleep(DOWN_S)
            proxy.come_up()
            proxy.counts.outages.append((began, time.monotonic()))

        engine = OpenAIEngine(EngineSettings(base_urls=(proxy.url,), **ENGINE), "stub")
        plan = make_plan(arguments.seed, len(requests), {KILL_AT: be_down})
        return assess(run_three(engine, requests, proxy, plan, lambda: None), requests, [])


def _ids(build: Path) -> list[str]:
    """Of all questions that a build decided on."""
    import pyarrow.parquet as pq

    kept = [i for file in sorted((build / "data").glob("*.parquet")) for i in pq.read_table(file)["id"].to_pylist()]
    return kept + [json.loads(line)["id"] for line in (build / "rejected.jsonl").read_text().splitlines()]


def measure_build(arguments: argparse.Namespace, vllm: Vllm, model: str, folder: Path) -> dict[str, Any]:
    """A clean build, then a spoilt one."""
    recipe = folder / "recipe.yaml"  # empty: no other recipe's settings
    recipe.write_text("build: {}\n")
    engine = {"kind": "openai", "base_urls": [vllm.proxy.url], "served_model": model, **ENGINE, "timeout_s": 120.0}
    settings = {**RECIPE, **{f"engine.{name}": value for name, value in engine.items()}}
    command = [sys.executable, "-m", "logodata", "build", str(recipe)]
    command += [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    found: dict[str, Any] = {"recipe": RECIPE}
    plan, needed = Plan(), 0
    for name in ("clean", "spoilt"):
        vllm.begin()
        vllm.proxy.start(plan)
        started, starts = time.monotonic(), 0
        with open(folder / f"build-{name}.log", "ab") as log:
            code = 2
            while code == 2 and starts < (5 if plan.faults else 1):
                starts += 1
                code = subprocess.run(
                    [*command, "-o", str(folder / name)], stdout=log, stderr=log, check=False
                ).returncode
        if code:
            raise UserError(f"the {name} build ended with {code}", where=log.name, mend="see there")
        took = time.monotonic() - started
        vllm.proxy.join_events()
        vllm.end_life()
        needed = needed or len(vllm.proxy.counts.delivered)
        plan = make_plan(arguments.seed + 1, needed, {KILL_AT: vllm.kill_and_restart})
        found[name] = {"seconds": took, "starts": starts, "proxy": tell(vllm.proxy.counts), "server_lives": vllm.lives}
        print(f"build {name}: {took:.1f} s, {starts} starts, {needed} requests", flush=True)
    places = [folder / name for name in ("clean", "spoilt")]
    asked = sorted({row for place in places for row in _ids(place)})
    comparison = compare(*places, asked)
    counts = vllm.proxy.counts
    costs = cost(counts, found["clean"]["seconds"], needed, ENGINE["concurrency"])
    ratio = found["spoilt"]["seconds"] / costs["own_cost_s"]
    wrong = faults_of_counting(counts, needed, vllm.lives)
    wrong += [f"{name} differs" for name in comparison["differing_files"]]
    for name in ("uninterrupted", "killed"):  # the comparison's names of the two
        wrong += [
            f"{len(comparison[name][fault])} ids {fault}" for fault in ("lost", "doubled") if comparison[name][fault]
        ]
    wrong += [f"{ratio:.2f} times the faults' own cost"] if ratio > 2 else []
    return {**found, "comparison": comparison, "cost": costs, "over_own_cost": ratio, "wrong": wrong}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default all)")
    parser.add_argument("--vllm", metavar="PYTHON", default=sys.executable, help="an interpreter that has vLLM (this)")
    parser.add_argument("--requests", type=int, default=2000, metavar="N", help="(2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws requests and faults (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found here")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        raise UserError(f"no part {unknown.pop()!r}", mend=f"there are {', '.join(PARTS)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if something is wrong."""
    arguments = parse(argv)
    report: dict[str, Any] = environment()
    folder = Path(tempfile.mkdtemp(prefix="faulty-server-"))
    print(f"in {folder}", flush=True)
    model = resolve_model("embedded")
    measures: dict[str, Callable[[Any], dict[str, Any]]] = {
        "requests": lambda vllm: measure_requests(arguments, vllm, model),
        "paced": lambda _: measure_paced(arguments),
        "build": lambda vllm: measure_build(arguments, vllm, model, folder),
    }
    wrong: list[str] = []
    parts = arguments.parts or PARTS
    with contextlib.ExitStack() as stack:
        vllm: Any = None
        if parts != ["paced"]:
            vllm = stack.enter_context(contextlib.closing(Vllm(arguments.vllm, model, folder / "server.log")))
        for part in parts:
            report[part] = found = measures[part](vllm)
            costs = ", ".join(f"{name} {value:.1f}" for name, value in found["cost"].items())
            print(f"{part}: {found['over_own_cost']:.2f} times the faults' own cost ({costs})", flush=True)
            wrong += [f"{part}: {line}" for line in found["wrong"]]
            report["load_average_at_end"] = os.getloadavg()[0]
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(f"WRONG: {line}" for line in wrong) or "as wanted")
    if not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    # An exception, so that server and proxy are ended with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run_command("faulty_server.py", main, resume_hint="nothing was written"))
