"""A sample of the points that ``benchmarks/faults.py`` tries in full: broken off, started again, the same outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.layer import Fault, ForkServer, Operation, run_process
from tests.faults.points import Point, Trial, points_of
from tests.faults.scenarios import Scenario, compare

# Four faults a command, every kind at least three times; which operation each meets is drawn, always the same.
SAMPLE = {
    "build": ("kill", "torn", "full", "cut"),
    "train in background": ("kill", "lost", "cut", "eio"),
    "longbench": ("torn", "lost", "full", "eio"),
    "niah retrieval": ("kill", "torn", "cut", "full"),
    "ppl": ("kill", "lost", "cut", "eio"),
}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in SAMPLE.items() for mode in modes])
def test_broken_off_and_started_again(trial: Callable[[str], Trial], name: str, mode: str) -> None:
    command = trial(name)
    points = [point for point in points_of(name, command.operations) if point.faults[0].mode == mode]
    point = random.Random(f"{name} {mode}").choice(points)
    result = command.run(point)
    assert result.wrong == [], f"{point.faults}: {result.operation}"
    assert result.comparison.inputs > 0


def test_a_restart_that_is_broken_off_too(trial: Callable[[str], Trial]) -> None:
    command = trial("build")
    torn = [at for at, operation in enumerate(command.operations, 1) if operation.path == "work/responses.jsonl"]
    result = command.run(Point("build", (Fault(torn[1], "torn"), Fault(8, "kill"))))
    assert result.wrong == []
    assert result.resumes == 2


def test_a_process_of_its_own_does_the_same(
    shim: Path, trial: Callable[[str], Trial], scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    """The fork server hides nothing: operation by operation, and the kill falls where it does there."""
    ppl, plain, out = scenarios["ppl"], trial("ppl"), tmp_path / "out"
    names = [operation.name for operation in plain.operations]
    ended = run_process(shim, ppl.program, ppl.command(out), out, Fault(20, "kill"))
    assert ended.code == -9
    assert [operation.name for operation in ended.operations] == names[:20]
    assert not (out / "results.json").exists()


def test_what_is_lost_doubled_or_left_is_told(
    trial: Callable[[str], Trial], server: ForkServer, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    """The comparison is no rubber stamp: each kind of damage to a finished folder is found."""
    ppl, plain = scenarios["ppl"], trial("ppl").plain
    out = tmp_path / "out"
    assert server.run(ppl.program, ppl.command(out), out).code == 0
    assert compare(ppl, plain, out).equal
    predictions = out / "predictions" / "ppl.jsonl"
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.write_text("".join([*lines[:-1], lines[0]]))
    (out / ".results.json.1.tmp").touch()
    found = compare(ppl, plain, out)
    assert found.lost == ["prediction ppl 2.txt"]
    assert found.doubled == ["prediction ppl 0.txt"]
    assert ".results.json.1.tmp exists" in found.differing
    assert found.inputs == 6


def test_points_thin_out_only_inside_a_file() -> None:
    writes = [Operation("write", "a", 10)] * 7
    operations = [Operation("open", "a", 0), *writes, Operation("fsync", "a", 0), Operation("unlink", "a", 0)]
    tried: dict[str, list[int]] = {}
    for point in points_of("x", operations):
        (fault,) = point.faults
        tried.setdefault(fault.mode, []).append(fault.at)
    assert tried["kill"] == list(range(1, 11))
    assert tried["torn"] == [2, 3, 7, 8]
    assert tried["cut"] == [2, 3, 7, 8, 9]
    assert tried["full"] == [1, 2, 3, 7, 8, 9]


@pytest.mark.parametrize("name", ["build", "train", "niah retrieval"])
def test_names_are_on_disk_before_the_next_thing_is_done(trial: Callable[[str], Trial], name: str) -> None:
    """A rename or a new log is followed by an fsync of its folder; what is inside a folder not yet in its place waits
    for that."""
    operations, opened = trial(name).operations, set[str]()
    checked = 0
    for number, operation in enumerate(operations):
        path, is_new = Path(operation.path), operation.kind == "open" and operation.path not in opened
        if operation.kind == "open":
            opened.add(operation.path)
        if ".tmp/" in operation.path or not (operation.kind == "rename" or (path.suffix == ".jsonl" and is_new)):
            continue
        after = operations[number + (1 if operation.kind == "rename" else 3)]
        # A checkpoint that is deleted is renamed, too, to be gone all at once.
        if path.name != ".step-1.0.tmp":
            assert (after.kind, after.path) == ("fsync", str(path.parent)), operation
            checked += 1
    assert checked > 5
