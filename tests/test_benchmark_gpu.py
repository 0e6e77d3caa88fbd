"""benchmarks/gpu.py goes on where its file ends, in order of value, within its budget. No part runs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import gpu

    monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part("m:f", 20, 40) for name in ("first", "second", "third")})
    return gpu


def test_parts_are_continued_and_those_never_begun_come_first(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    verdicts = {"first": "done", "second": "out of memory", "third": "done"}

    def fake(name: str, seconds: float, whole: dict[str, Any], *_: Any) -> dict[str, Any]:
        begun.append(name)
        ratios = {f"{name}_ratio": 2.0} if verdicts[name] == "done" else {}
        return {"status": verdicts[name], "result": {"ratios": ratios, "left": seconds}, "seconds": 1.0}

    monkeypatch.setattr(gpu, "_run_part", fake)
    file = tmp_path / "out.json"
    gpu.run_parts(["first", "second"], file, budget=100, small=True)
    assert begun == ["first", "second"]

    verdicts["second"] = "done"
    whole = gpu.run_parts(["first", "second", "third"], file, budget=100, small=True)
    assert begun[2:] == ["third", "second"]
    assert whole["ratios"] == {"first_ratio": 2.0, "second_ratio": 2.0, "third_ratio": 2.0}
    assert json.loads(file.read_text()) == whole
    gpu.run_parts(["first", "second", "third"], file, budget=100, small=True)
    assert len(begun) == 4

    with pytest.raises(UserError, match="holds figures of the shape 'small'"):
        gpu.run_parts(["first"], file, budget=100, small=False)


def test_a_part_without_time_is_not_begun_and_an_earlier_result_is_kept(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []

    def fake(name: str, left: float, whole: dict[str, Any], *_: Any) -> dict[str, Any]:
        seconds.append(left)
        return {"status": "out of time", "result": {"partial": 1} if len(seconds) == 1 else {}, "seconds": 1.0}

    monkeypatch.setattr(gpu, "_run_part", fake)
    file = tmp_path / "out.json"
    assert gpu.run_parts(["first"], file, budget=25, small=False)["parts"] == {}
    gpu.run_parts(["first"], file, budget=35, small=False)
    whole = gpu.run_parts(["first"], file, budget=1000, small=False)
    assert seconds == [pytest.approx(25, abs=1), 40]
    assert whole["parts"]["first"]["result"] == {"partial": 1}


def test_the_largest_that_fits_is_found(gpu: Any) -> None:
    from gpu_memory import bisect

    for answer in range(8):
        assert bisect(lambda size, answer=answer: size <= answer, 0, 7) == answer
