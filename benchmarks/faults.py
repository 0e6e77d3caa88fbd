"""Every command broken off at every one of its file operations, and started again: the same outcome, nothing lost.

``python benchmarks/faults.py --json benchmarks/results/faults-DATE.json``; with ``--points N`` a sample of them.

A command (``tests/faults/scenarios.py``: builds, trainings and evaluations of a tiny model) runs once through, which
counts its file operations: files opened to be written, writes, fsyncs, renames, folders made, files deleted,
whichever library makes them. Then, for each operation and each fault of ``tests/faults/shim.c``, it is started in a
folder of its own, meets the fault, is started again without one, and is compared with the one that ran through: data
sets and weights by their bytes, results by value, and no file too many. The faults: killed at once; killed in the midst
of a write; half of the last write gone, though it was synced; everything gone that no fsync had brought to disk; a disk
that is full from there on; one error of the disk. After the last two the command must end in one line and code 2.
``--double N`` points more break the restart off, too.

Commands run in children of one process that has imported everything. ``--processes N`` points a command run as a user
starts it, and its operations are compared with those in the child: the short way must hide nothing.

The exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evidence import environment
from logodata.common.errors import UserError, run_command
from tests.faults.layer import MODES, Fault, ForkServer, Operation, Start, compile_shim, run_process
from tests.faults.points import Point, Result, Trial, points_of
from tests.faults.scenarios import Scenario, make_scenarios

_SAY_EVERY_S = 60.0


def single_faults(operations: dict[str, Sequence[Operation]], num: int | None, rng: random.Random) -> list[Point]:
    """All points, or ``num`` of them: from each command equally many, as far as it has them."""
    every = {name: list(points_of(name, found)) for name, found in operations.items()}
    if num is None:
        return [point for points in every.values() for point in points]
    for points in every.values():
        rng.shuffle(points)
    turns = (
        points[place]
        for place in range(max(map(len, every.values())))
        for points in every.values()
        if place < len(points)
    )
    chosen = {id(point) for _, point in zip(range(num), turns, strict=False)}
    return [point for points in every.values() for point in points if id(point) in chosen]


def double_faults(operations: dict[str, Sequence[Operation]], num: int, rng: random.Random) -> list[Point]:
    """``num`` points whose restart meets a fault, too, early on: a restart has fewer operations."""
    points = []
    for number in range(num):
        name = list(operations)[number % len(operations)]
        (first,) = rng.choice(list(points_of(name, operations[name]))).faults
        left = max(len(operations[name]) - first.at, 10)
        points.append(Point(name, (first, Fault(rng.randint(1, left), rng.choice(MODES)))))
    return sorted(points, key=lambda point: list(operations).index(point.scenario))


def try_all(trials: dict[str, Trial], points: Sequence[Point]) -> Iterator[Result]:
    """The points in turn; what is wrong is said at once, and the rest now and then."""
    start = said = time.monotonic()
    for number, point in enumerate(points, 1):
        result = trials[point.scenario].run(point)
        if result.wrong:
            print(f"WRONG: {name_of(point)} ({result.operation}): {'; '.join(result.wrong)}", flush=True)
        now = time.monotonic()
        if now - said > _SAY_EVERY_S or number == len(points):
            said = now
            print(f"{number} of {len(points)} points, {(now - start) / number:.2f} s each", flush=True)
        yield result


def name_of(point: Point) -> str:
    """In words."""
    return f"{point.scenario}, {' then '.join(f'{fault.mode} at {fault.at}' for fault in point.faults)}"


def totals(results: Iterable[Result]) -> dict[str, Any]:
    """What became of some points and of their records, and how many starts they took to be done after the first."""
    found = list(results)
    return {
        "points": len(found),
        "survived": sum(not result.wrong for result in found),
        "inputs": sum(result.comparison.inputs for result in found),
        "lost": sum(len(result.comparison.lost) for result in found),
        "doubled": sum(len(result.comparison.doubled) for result in found),
        "resumes": dict(sorted(Counter(str(result.resumes) for result in found).items())),
    }


def report_of(results: Sequence[Result], operations: dict[str, Sequence[Operation]]) -> dict[str, Any]:
    """All points together; each command and fault; and the starts of each point, a digit for each operation."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.point.scenario, _mode(result.point)].append(result)
    report: dict[str, Any] = {**totals(results), "commands": {}, "resumes_by_point": {}}
    order = {mode: place for place, mode in enumerate((*MODES, "double"))}
    for (name, mode), found in sorted(
        groups.items(), key=lambda group: (list(operations).index(group[0][0]), order[group[0][1]])
    ):
        command = report["commands"].setdefault(name, {"operations": len(operations[name])})
        command[mode] = totals(found)
        if mode in MODES:
            digits = ["-"] * len(operations[name])
            for result in found:
                digits[result.point.faults[0].at - 1] = str(result.resumes)
            report["resumes_by_point"].setdefault(name, {})[mode] = "".join(digits)
    report["wrong"] = [
        {"point": name_of(result.point), "operation": result.operation, "wrong": result.wrong}
        for result in results
        if result.wrong
    ]
    return report


def _mode(point: Point) -> str:
    return point.faults[0].mode if len(point.faults) == 1 else "double"


def print_table(report: dict[str, Any]) -> None:
    """A row for each command and fault."""
    columns = ("points", "survived", "inputs", "lost", "doubled")
    print(f"{'command':22}{'fault':10}" + "".join(f"{column:>10}" for column in columns) + "  resumes")
    rows = [
        (name, mode, row)
        for name, modes in report["commands"].items()
        for mode, row in modes.items()
        if mode != "operations"
    ]
    for name, mode, row in (*rows, ("all", "", report)):
        resumes = ", ".join(f"{count} x {starts}" for starts, count in row["resumes"].items())
        print(f"{name:22}{mode:10}" + "".join(f"{row[column]:>10,}" for column in columns) + f"  {resumes}")


def try_processes(
    start: Start, trials: dict[str, Trial], scenarios: dict[str, Scenario], folder: Path, num: int, rng: random.Random
) -> Iterator[Result]:
    """``num`` points of each command in processes of their own, after a comparison of what the command does there."""
    for name, trial in trials.items():
        own = Trial(start, scenarios[name], folder / name)
        # Sorted: the thread that writes a checkpoint takes turns with the training as it likes.
        if sorted(operation.name for operation in own.operations) != sorted(op.name for op in trial.operations):
            raise UserError(f"{name} does other things in a process of its own", where=str(folder), mend="see there")
        points = rng.sample(list(points_of(name, own.operations)), num)
        yield from try_all({name: own}, points)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All points, and their report."""
    shim = compile_shim(folder)
    if shim is None:
        raise UserError("no C compiler, which the fault layer needs", mend="install gcc, on Linux")
    scenarios = make_scenarios(folder / "inputs")
    names = arguments.commands or list(scenarios)
    if unknown := [name for name in names if name not in scenarios]:
        raise UserError(f"no command {unknown[0]!r}", mend=f"there are {', '.join(scenarios)}")
    rng = random.Random(arguments.seed)
    with ForkServer(shim) as server:
        trials = {name: Trial(server.run, scenarios[name], folder / "trials" / name) for name in names}
        operations = {name: trial.operations for name, trial in trials.items()}
        points = [
            *single_faults(operations, arguments.points, rng),
            *double_faults(operations, arguments.double, rng),
        ]
        print(f"{sum(map(len, operations.values()))} operations, {len(points)} points", flush=True)
        results = list(try_all(trials, points))
        report = report_of(results, operations)
        if arguments.processes:
            start = partial(run_process, shim)
            chosen = {name: scenarios[name] for name in names}
            report["in_processes"] = totals(
                try_processes(start, trials, chosen, folder / "processes", arguments.processes, rng)
            )
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="of tests/faults/scenarios.py (default all)")
    parser.add_argument("--points", type=int, metavar="N", help="a sample of N points (default all)")
    parser.add_argument("--double", type=int, default=60, metavar="N", help="points more with two faults (60)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="points a command in real processes (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws samples (0)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="empty; kept. Default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if anything was wrong."""
    arguments = parse(argv)
    facts = environment()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError("is not empty", where=str(folder), mend="choose another --folder")
    print(f"in {folder}", flush=True)
    start = time.monotonic()
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "folder")}
    found = run(arguments, folder)
    report = {"settings": settings, **facts, "seconds": round(time.monotonic() - start), **found}
    print_table(report)
    if own := report.get("in_processes"):
        print(f"in processes of their own: {own['survived']} of {own['points']} survived, operations as above")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    tried = (report, report.get("in_processes", report))
    whole = all(part["survived"] == part["points"] for part in tried)
    if arguments.folder is None and whole:
        shutil.rmtree(folder)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(run_command("faults.py", main, resume_hint="nothing was written"))
