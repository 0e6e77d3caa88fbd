"""Everything that needs a GPU, in order of value, so that an early end still leaves numbers.

    python benchmarks/gpu.py --json FILE [--parts a,b] [--budget-s 570] [--shape small]

Each part runs in a process of its own under a time limit, and its figures are in FILE as soon as it has any: one that
runs out of memory or time ends alone. The same command goes on where the file ends; parts that are done are not run
again. Random weights, drawn on the GPU. ``--shape small`` tries everything in minutes on a CPU. benchmarks/GPU.md has
the commands for a machine that is lent for minutes, and what to take there.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError, run_command
from logodata.common.files import write_json

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A part of the whole.

    Attributes:
        function: ``module:function``, called with a :class:`gpu_part.Bench`; returns what goes into the file.
        least: seconds that it is not begun without, at the 8B shape on an H200.
        most: seconds that it may take.
    """

    function: str
    least: float
    most: float


PARTS = {
    "ceilings": Part("gpu_speed:ceilings", 15, 60),
    "step": Part("gpu_speed:step", 150, 380),
    "attention": Part("gpu_speed:attention", 25, 90),
    "tests": Part("gpu_tests:tests", 60, 200),
    "memory": Part("gpu_memory:memory", 120, 220),
    "full": Part("gpu_memory:full", 40, 100),
    "long_context": Part("gpu_eval:long_context", 50, 120),
    "generate": Part("gpu_eval:generate", 60, 130),
    "profile": Part("gpu_speed:profile", 40, 100),
    "recipe": Part("gpu_recipe:recipe", 240, 500),
}
"""In order of value."""

_GRACE = 10.0
"""Seconds between a part's deadline, which it minds itself, and its end by force."""


def run_parts(
    names: Sequence[str], file: Path, *, budget: float, small: bool, device: str = "auto", attention: str = "auto"
) -> dict[str, Any]:
    """Run what is not done yet, parts that were never begun first.

    Returns:
        What the file holds.
    """
    ends = time.monotonic() + budget
    shape = "small" if small else "8b"
    whole: dict[str, Any] = (
        json.loads(file.read_text()) if file.exists() else {"shape": shape, "parts": {}, "ratios": {}}
    )
    if whole["shape"] != shape:
        raise UserError(f"holds figures of the shape {whole['shape']!r}", where=str(file), mend="give another --json")
    waiting = [name for name in names if whole["parts"].get(name, {}).get("status") != "done"]
    for name in sorted(waiting, key=lambda name: name in whole["parts"]):  # stable: in order of value
        part, left = PARTS[name], ends - time.monotonic() - _GRACE
        if left < (0 if small else part.least):
            print(f"== {name}: not begun, {left:.0f} s are left", flush=True)
            continue
        print(f"== {name}", flush=True)
        before = whole["parts"].get(name, {})

        def keep(found: dict[str, Any], name: str = name) -> None:
            write_json(file, {**whole, "parts": {**whole["parts"], name: {**found, "status": "running"}}})

        found = _run_part(name, min(part.most, left), whole, keep, device, attention)
        if found["status"] != "done" and not found["result"] and before.get("result"):
            found = {**found, "result": before["result"]}  # what an earlier try left
        whole["parts"][name] = found
        whole["ratios"] |= found["result"].get("ratios", {})
        write_json(file, whole)
    return whole


def _run_part(
    name: str,
    seconds: float,
    whole: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
    device: str,
    attention: str,
) -> dict[str, Any]:
    """Run a part in a process of its own, ``keep`` what it saves on the way, and end it ``_GRACE`` after its time."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-", dir=os.environ.get("GPU_SCRATCH")) as folder:
        earlier, out = Path(folder) / "earlier.json", Path(folder) / "part.json"
        write_json(earlier, {key: value["result"] for key, value in whole["parts"].items()})
        options = ["--child", name, "--json", str(out), "--budget-s", str(seconds), "--earlier", str(earlier)]
        options += ["--shape", whole["shape"], "--device", device, "--attention", attention]
        with subprocess.Popen([sys.executable, __file__, *options], start_new_session=True) as process:
            try:
                kept = 0
                while process.poll() is None and time.monotonic() - started < seconds + _GRACE:
                    time.sleep(0.5)
                    changed = out.stat().st_mtime_ns if out.exists() else 0
                    if changed != kept:
                        kept = changed
                        keep({**json.loads(out.read_text()), "seconds": round(time.monotonic() - started, 1)})
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its compilers and commands too
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"result": {}}
    if "status" not in found:
        forced = process.returncode == -signal.SIGKILL
        found["status"] = "out of time" if forced else f"ended with {process.returncode}"
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def _child(arguments: argparse.Namespace) -> int:
    """One part, in this process."""
    started = time.monotonic()
    found: dict[str, Any] = {"result": {}}

    def save(result: dict[str, Any]) -> None:
        found["result"] = result
        write_json(arguments.json, found)

    try:
        import torch

        from gpu_part import Bench

        device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)
        bench = Bench(
            device=torch.device(device),
            small=arguments.shape == "small",
            attention=arguments.attention,
            deadline=started + arguments.budget_s,
            save=save,
            scratch=arguments.json.parent / "scratch",
            earlier=json.loads(arguments.earlier.read_text()),
        )
        bench.scratch.mkdir()
        module, _, function = PARTS[arguments.child].function.partition(":")
        found["result"] = getattr(import_module(module), function)(bench)
        found["status"] = "done"
    except Exception as error:
        traceback.print_exc()
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        found |= {
            "status": "out of memory" if out_of_memory else "failed",
            "error": f"{type(error).__name__}: {error}"[:500],
        }
    write_json(arguments.json, found)
    return 0


def print_table(whole: dict[str, Any]) -> None:
    """A line a part, and what it found."""
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
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="what was measured; continued")
    parser.add_argument("--parts", metavar="A,B", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--budget-s", type=float, default=570, metavar="N", help="seconds for all (default 570)")
    parser.add_argument(
        "--shape", choices=("8b", "small"), default="8b", help="small: a trial in minutes, on a CPU too"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--attention", choices=("auto", "flash", "flex", "sdpa"), default="auto", help="of logotrain's training"
    )
    parser.add_argument("--child", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--earlier", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one of them is not done."""
    arguments = parse(argv)
    if arguments.child:
        return _child(arguments)
    names = arguments.parts.split(",") if arguments.parts else list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(f"no part {unknown[0]!r}", where="--parts", mend=f"some of {', '.join(PARTS)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    small = arguments.shape == "small"
    where: dict[str, str] = {"device": arguments.device, "attention": arguments.attention}
    whole = run_parts(names, arguments.json, budget=arguments.budget_s, small=small, **where)
    print_table(whole)
    return int(any(whole["parts"].get(name, {}).get("status") != "done" for name in names))


if __name__ == "__main__":
    sys.exit(run_command("gpu.py", main))
