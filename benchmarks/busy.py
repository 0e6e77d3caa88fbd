"""What a training step costs beside other busy processes, by how the threads of torch wait for each other.

``python benchmarks/busy.py --json FILE``: seconds of a step of the embedded model (forward and backward pass of a row)
alone, and beside as many busy loops as there are cores, for each way of waiting. The ways take turns within a round;
figures are medians over rounds, as ratios to the default of torch's OpenMP runtime (libgomp) on the quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 0": {"GOMP_SPINCOUNT": "0"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""The variables of the environment that libgomp reads when it is loaded."""

_CHILD = """
import sys, time
import torch
from logodata.models.loading import load_model
model = load_model("embedded")
ids = torch.arange(int(sys.argv[1]))[None] * 7 % 40000
def step():
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
step()
started = time.perf_counter()
for _ in range(int(sys.argv[2])):
    step()
print((time.perf_counter() - started) / int(sys.argv[2]))
"""


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that only compute, while the block runs."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def step_seconds(way: dict[str, str], tokens: int, steps: int) -> float:
    """Seconds of a step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", _CHILD, str(tokens), str(steps)]
    done = subprocess.run(command, env={**environment, **way}, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="of the row (512)")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="that are timed in each process (4)")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    seconds: dict[str, dict[str, list[float]]] = {way: {"quiet": [], "busy": []} for way in WAYS}
    for number in range(arguments.rounds):
        order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
        for state, loops in (("quiet", 0), ("busy", cores)):
            with busy_loops(loops):
                for way in order:
                    seconds[way][state].append(step_seconds(WAYS[way], arguments.tokens, arguments.steps))
    quiet = statistics.median(seconds["default"]["quiet"])
    report = {"machine": platform.processor() or platform.machine(), "cores": cores, "seconds": seconds, "ratios": {}}
    for way, found in seconds.items():
        ratios = {state: statistics.median(values) / quiet for state, values in found.items()}
        report["ratios"][way] = ratios
        print(f"{way:12} quiet {ratios['quiet']:5.2f}, beside {cores} busy loops {ratios['busy']:5.2f}")
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
