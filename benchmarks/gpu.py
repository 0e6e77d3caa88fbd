"""Measure everything that needs a GPU.

    python benchmarks/gpu.py --json gpu.json

Each part runs in a process of its own and writes its figures into the file as soon as it has any, so a part that runs
out of memory or time ends alone, and a command that is killed leaves what it had measured. The same command continues:
it does not repeat parts that are done. Parts that do not fit into ``--minutes`` are left for the next call. All weights
are random. ``--shape small`` tries every part on a CPU in seven minutes. GPU.md tells how to install.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError, run_command
from logodata.common.files import write_json


@dataclass(frozen=True)
class Part:
    """A measurement that can be run alone.

    Attributes:
        function: ``module:function``. It gets a :class:`gpu_part.Bench` and returns the part's result.
        seconds: how long it is expected to take at the 8B shape on an H200. With less left, the part is not begun.
    """

    function: str
    seconds: float


PARTS = {
    "ceilings": Part("gpu_speed:ceilings", 20),
    "step": Part("gpu_speed:step", 150),
    "largest": Part("gpu_memory:largest", 100),
    "attention": Part("gpu_speed:attention", 40),
    "tests": Part("gpu_tests:tests", 100),
    "memory": Part("gpu_memory:memory", 130),
    "step_all": Part("gpu_speed:step_all", 330),
    "full": Part("gpu_memory:full", 60),
    "long_context": Part("gpu_eval:long_context", 60),
    "generate": Part("gpu_eval:generate", 90),
    "profile": Part("gpu_speed:profile", 60),
    "recipe": Part("gpu_recipe:recipe", 300),
}
"""The most valuable part comes first: a first call of ten minutes has the ratios of the step, the share of the card's
rate, and the largest M."""

_MINUTES = 10.0

_GRACE = 10.0
"""Seconds between a part's deadline, which it knows, and its end by force."""


def run_parts(names: Sequence[str], file: Path, *, shape: str, attention: str, budget: float) -> dict[str, Any]:
    """Run the parts that are not done. Parts that were never begun come first.

    Args:
        names: of :data:`PARTS`.
        file: holds what was measured, and gets what will be.
        shape: ``8b`` or ``small``.
        attention: the back end of logotrain's training, as a recipe names it.
        budget: seconds for all parts together.

    Returns:
        The content of the file.

    Raises:
        UserError: the file holds figures of the other shape.
    """
    ends = time.monotonic() + budget
    whole = _read(file) if file.exists() else {"shape": shape, "parts": {}, "ratios": {}}
    if whole["shape"] != shape:
        raise UserError(f"holds figures of the shape {whole['shape']!r}", where=str(file), mend="give another --json")
    write_json(file, whole)
    waiting = [name for name in names if whole["parts"].get(name, {}).get("status") != "done"]
    for name in sorted(waiting, key=lambda name: name in whole["parts"]):  # stable: the order of value remains
        left = ends - time.monotonic()
        if shape == "8b" and left < PARTS[name].seconds:
            needed = f"it takes about {PARTS[name].seconds:.0f} s, and {max(left, 0):.0f} s are left"
            print(f"== {name}: left for the next call: {needed}", flush=True)
            continue
        print(f"== {name}", flush=True)
        run_part(name, file, attention, left)
    return _read(file)


def run_part(name: str, file: Path, attention: str, seconds: float) -> None:
    """Run a part in a process of its own, and kill it if it is not done ``_GRACE`` seconds after its time."""
    started, status = time.monotonic(), "interrupted"
    record(file, name, status="running", error=None)
    with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-") as scratch:
        options = ["--json", str(file), "--child", name, "--scratch", scratch, "--budget-s", str(seconds)]
        command = [sys.executable, __file__, *options, "--attention", attention]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                process.wait(seconds + _GRACE)
                status = f"ended with {process.returncode}"
            except subprocess.TimeoutExpired:
                status = "out of time"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its compilers and commands end too
                    process.wait()
                said = _read(file)["parts"][name]["status"]
                took = round(time.monotonic() - started, 1)
                record(file, name, status=status if said == "running" else said, seconds=took)


def record(file: Path, name: str, **facts: Any) -> None:
    """Set some facts of a part in the file. What an earlier try measured stays until there is a new result."""
    whole = _read(file)
    part = {"result": {}, **whole["parts"].get(name, {}), **facts}
    whole["parts"][name] = {key: value for key, value in part.items() if value is not None}
    whole["ratios"] |= part["result"].get("ratios", {})
    write_json(file, whole)


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def _measure(arguments: argparse.Namespace) -> None:
    """Run one part in this process."""
    name, file = arguments.child, arguments.json
    try:
        import torch

        from gpu_part import Bench

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(1)
        whole = _read(file)
        bench = Bench(
            device=torch.device("cuda" if on_gpu else "cpu"),
            small=whole["shape"] == "small",
            attention=arguments.attention,
            deadline=time.monotonic() + arguments.budget_s,
            save=lambda result: record(file, name, result=result),
            scratch=arguments.scratch,
            earlier={key: part["result"] for key, part in whole["parts"].items()},
        )
        module, _, function = PARTS[name].function.partition(":")
        result = getattr(import_module(module), function)(bench)
        record(file, name, status="done", result=result)
    except Exception as error:
        traceback.print_exc()
        status = "out of memory" if type(error).__name__ == "OutOfMemoryError" else "failed"
        record(file, name, status=status, error=f"{type(error).__name__}: {error}"[:500])


def print_table(whole: dict[str, Any]) -> None:
    """Print a line for each part, and what it found."""
    for name in PARTS:
        part = whole["parts"].get(name)
        if part is None:
            print(f"{name:13} not run")
            continue
        error = f": {part['error']}" if "error" in part else ""
        print(f"{name:13} {part['status']}{error}, {part['seconds']:.0f} s")
        for line in part["result"].get("summary", []):
            print(f"    {line}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go; continued")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument(
        "--minutes", type=float, default=_MINUTES, metavar="N", help=f"for all parts together (default {_MINUTES:g})"
    )
    parser.add_argument("--budget-s", type=float, default=3600, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=("8b", "small"), default="8b", help="small: to try the parts on a CPU")
    parser.add_argument(
        "--attention",
        choices=("auto", "flash", "flex", "sdpa"),
        default="auto",
        help="the back end of logotrain's training (default auto)",
    )
    parser.add_argument("--child", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one of them is not done."""
    arguments = parse(argv)
    if arguments.child:
        _measure(arguments)
        return 0
    names = arguments.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(f"no part {unknown[0]!r}", where="--parts", mend=f"some of {', '.join(PARTS)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    whole = run_parts(
        names, arguments.json, shape=arguments.shape, attention=arguments.attention, budget=60 * arguments.minutes
    )
    print_table(whole)
    return int(any(whole["parts"].get(name, {}).get("status") != "done" for name in names))


if __name__ == "__main__":
    sys.exit(run_command("gpu.py", main))
