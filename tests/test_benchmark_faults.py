"""benchmarks/faults.py: which points are drawn, and what the table counts."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from logodata.common.errors import UserError
from tests.faults.layer import Fault, Operation
from tests.faults.points import Point, Result
from tests.faults.scenarios import Comparison


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import faults

    return faults


OPERATIONS = {
    "short": [Operation("open", "a", 0)],
    "long": [Operation("write", str(number), 9) for number in range(30)],
}


def test_a_sample_is_spread_over_commands_and_always_the_same(faults: ModuleType) -> None:
    every = faults.single_faults(OPERATIONS, None, random.Random(0))
    assert Counter(point.scenario for point in every) == {"short": 4, "long": 180}
    some = faults.single_faults(OPERATIONS, 20, random.Random(0))
    assert Counter(point.scenario for point in some) == {"short": 4, "long": 16}
    assert set(some) < set(every)
    assert some == faults.single_faults(OPERATIONS, 20, random.Random(0))
    double = faults.double_faults(OPERATIONS, 10, random.Random(0))
    assert [len(point.faults) for point in double] == [2] * 10


def test_the_table_counts_records_and_starts(faults: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def result(at: int, mode: str, resumes: int, lost: list[str] = [], doubled: list[str] = []) -> Result:  # noqa: B006
        wrong = ["lost"] if lost or doubled else []
        return Result(Point("long", (Fault(at, mode),)), "write x", resumes, Comparison(7, lost, doubled, []), wrong)

    twice = Result(Point("long", (Fault(1, "kill"), Fault(2, "eio"))), "write x", 2, Comparison(7, [], [], []), [])
    found = [result(2, "kill", 1), result(30, "kill", 1, lost=["a", "b"], doubled=["c"]), result(1, "eio", 0), twice]
    report = faults.report_of(found, OPERATIONS)
    assert {key: report[key] for key in ("points", "survived", "inputs", "lost", "doubled")} == {
        "points": 4, "survived": 3, "inputs": 28, "lost": 2, "doubled": 1,
    }  # fmt: skip
    assert report["resumes"] == {"0": 1, "1": 2, "2": 1}
    assert report["commands"]["long"]["kill"]["lost"] == 2
    assert report["commands"]["long"]["double"]["points"] == 1
    assert report["resumes_by_point"]["long"] == {"kill": "-1" + "-" * 27 + "1", "eio": "0" + "-" * 29}
    assert [row["point"] for row in report["wrong"]] == ["long, kill at 30"]
    faults.print_table(report)
    assert capsys.readouterr().out.splitlines()[-1].split()[:6] == ["all", "4", "3", "28", "2", "1"]


def test_what_it_needs_is_said(faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "compile_shim", lambda _: None)
    with pytest.raises(UserError, match="no C compiler"):
        faults.main(["--folder", str(tmp_path / "new")])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        faults.main(["--folder", str(tmp_path)])
