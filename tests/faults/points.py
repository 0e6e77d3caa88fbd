"""One point: a command with a fault at one of its operations, the restart, and what became of its work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.layer import MODES, Ended, Fault, Operation, Start
from tests.faults.scenarios import Comparison, Scenario, compare

FAILS = ("full", "eio")
"""Modes in which the operation fails and the process lives: it has to say so in one line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A scenario, and a fault for its first start and perhaps one for the restart."""

    scenario: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a point came to."""

    point: Point
    operation: str
    """The one that the first fault hit."""
    resumes: int
    """Starts after the first one until the command was done."""
    comparison: Comparison
    wrong: list[str]
    """Why it did not survive; empty if it did."""


def points_of(scenario: str, operations: Sequence[Operation]) -> Iterator[Point]:
    """Every operation with every fault that differs from those beside it."""
    for at, operation in enumerate(operations, 1):
        inside = _is_inside(operations, at - 1)
        for mode in MODES:
            if operation.takes(mode) and not (inside and mode != "kill"):
                yield Point(scenario, (Fault(at, mode),))


def _is_inside(operations: Sequence[Operation], index: int) -> bool:
    """Whether it is one of many writes to one file, neither of the first two nor of the last two."""
    around = operations[max(index - 2, 0) : index + 3]
    return len(around) == 5 and len({(operation.kind, operation.path) for operation in around}) == 1


class Trial:
    """Runs points of one scenario.

    Args:
        start: runs the commands.
        scenario: the command.
        folder: of this trial's outputs; ``plain`` in it is what an uninterrupted run leaves.
    """

    def __init__(self, start: Start, scenario: Scenario, folder: Path) -> None:
        self._run, self._scenario, self._folder = start, scenario, folder
        folder.mkdir(parents=True)
        self.plain = folder / "plain"
        ended = self._start(self.plain, Fault())
        if ended.code or ended.unseen:
            how = f"ended with {ended.code}, wrote {ended.unseen} bytes past the shim"
            raise RuntimeError(f"{scenario.name} without a fault {how}:\n{ended.output}")
        self.operations = ended.operations

    def _start(self, output: Path, fault: Fault) -> Ended:
        return self._run(self._scenario.program, self._scenario.command(output), output, fault)

    def run(self, point: Point) -> Result:
        """Start with each fault, then without one, and compare. The folder is kept only if something is wrong."""
        names = [f"{fault.mode}-{fault.at}" for fault in point.faults]
        output = self._folder / "-".join(names)
        shutil.rmtree(output, ignore_errors=True)
        wrong: list[str] = []
        operation, resumes = "not reached", 0
        for number, fault in enumerate(point.faults):
            ended = self._start(output, fault)
            if number == 0 and len(ended.operations) >= fault.at:
                hit = ended.operations[fault.at - 1]
                operation = hit.name
            wrong += [f"start with {names[number]}: {text}" for text in _faults_of_end(ended, fault)]
            resumes = number + 1
            if ended.code == 0:
                resumes = number
                break
        else:
            ended = self._start(output, Fault())
            if ended.code:
                wrong.append(f"the restart ended with {ended.code}: {_last_lines(ended)}")
        comparison = self._compare(output, wrong)
        if not wrong:
            shutil.rmtree(output)
        return Result(point, operation, resumes, comparison, wrong)

    def _compare(self, output: Path, wrong: list[str]) -> Comparison:
        try:
            comparison = compare(self._scenario, self.plain, output)
        except (OSError, ValueError, KeyError) as error:  # what must be there is missing or damaged
            wrong.append(f"the outcome cannot be read: {error!r}")
            lost = sorted(self._scenario.records(self.plain).elements())
            return Comparison(len(lost), lost, [], [])
        for name in ("lost", "doubled", "differing"):
            if found := getattr(comparison, name):
                wrong += [f"{name}: {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}"]
        return comparison


def _faults_of_end(ended: Ended, fault: Fault) -> Iterator[str]:
    """What is wrong with how a start ended in which a fault came."""
    if ended.hung:
        yield "it hangs"
    elif ended.code == 0:
        if fault.mode not in FAILS and len(ended.operations) >= fault.at:
            yield "it was not killed"
    elif fault.mode not in FAILS:
        if ended.code != -9:
            yield f"it ended with {ended.code} before the fault: {_last_lines(ended)}"
    else:
        errors = [line for line in ended.output.splitlines() if " error: " in line]
        if ended.code != 2 or len(errors) != 1 or "Traceback" in ended.output or "Exception" in ended.output:
            yield f"it ended with {ended.code} and not in one clear line: {_last_lines(ended)}"


def _last_lines(ended: Ended) -> str:
    return " / ".join(ended.output.strip().splitlines()[-6:])
