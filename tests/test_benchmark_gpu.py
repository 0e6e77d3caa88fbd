"""benchmarks/gpu.py continues where its file ends, the most valuable part first, within its budget."""

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

    return gpu


@pytest.fixture
def begun(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Three parts that run nowhere: their names and seconds as they were begun. The second one runs out of memory."""
    calls: list[tuple[str, float]] = []

    def run_part(name: str, file: Path, attention: str, seconds: float) -> None:
        calls.append((name, seconds))
        done = name != "second"
        result = {"ratios": {f"{name}_ratio": 2.0}} if done else {}
        gpu.record(file, name, status="done" if done else "out of memory", result=result)

    monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part("m:f", 40) for name in ("first", "second", "third")})
    monkeypatch.setattr(gpu, "run_part", run_part)
    return calls


def test_parts_are_continued_and_those_never_begun_come_first(
    gpu: Any, begun: list[tuple[str, float]], tmp_path: Path
) -> None:
    file, options = tmp_path / "out.json", {"shape": "small", "attention": "auto", "budget": 100}
    gpu.run_parts(["first", "second"], file, **options)
    assert [name for name, _ in begun] == ["first", "second"]

    whole = gpu.run_parts(["first", "second", "third"], file, **options)
    assert [name for name, _ in begun[2:]] == ["third", "second"]
    assert whole["ratios"] == {"first_ratio": 2.0, "third_ratio": 2.0}
    assert json.loads(file.read_text()) == whole

    with pytest.raises(UserError, match="holds figures of the shape 'small'"):
        gpu.run_parts(["first"], file, **{**options, "shape": "8b"})


def test_a_part_without_time_is_left_for_the_next_call(
    gpu: Any, begun: list[tuple[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = tmp_path / "out.json", {"shape": "8b", "attention": "auto"}
    assert gpu.run_parts(["first"], file, **options, budget=39)["parts"] == {}
    assert "== first: left for the next call: it takes about 40 s, and 39 s are left\n" in capsys.readouterr().out
    gpu.run_parts(["first"], file, **options, budget=42)
    assert begun == [("first", pytest.approx(42, abs=1))]


def test_a_part_that_is_killed_keeps_what_it_had_measured(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_GRACE", 0)
    file = tmp_path / "out.json"
    file.write_text('{"shape": "small", "parts": {}, "ratios": {}}')
    gpu.record(file, "step", status="failed", error="a fault", result={"partial": 1})
    whole = gpu.run_parts(["step"], file, shape="small", attention="auto", budget=0.01)
    assert whole["parts"]["step"] == {
        "status": "out of time",
        "result": {"partial": 1},
        "seconds": pytest.approx(0, abs=5),
    }


def test_a_first_call_has_the_most_telling_figures(gpu: Any) -> None:
    """Within the default minutes: the step's ratios, the share of the card's rate, and the largest M."""
    seconds = 0.0
    for name, part in gpu.PARTS.items():
        seconds += part.seconds
        if name == "largest":
            break
    assert seconds < 60 * gpu.parse(["--json", "out.json"]).minutes / 2
    assert max(part.seconds for part in gpu.PARTS.values()) < 60 * gpu.parse(["--json", "out.json"]).minutes
    from gpu_speed import MOST_TELLING
    from step import MORE_RATIOS, RATIOS

    compared = {name for name, ways in (RATIOS | MORE_RATIOS).items() if set(ways) <= set(MOST_TELLING)}
    assert compared >= {
        "separate_rows_vs_reference",
        "shared_vs_reference",
        "shared_no_recompute_compiled_vs_reference",
    }


FAULTY = """
def measure(bench):
    bench.save({"summary": ["half of it"], "small": bench.small, "earlier": bench.earlier["ceilings"]})
    raise ValueError("a fault")
"""


def test_a_part_gets_earlier_results_and_its_fault_is_kept(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty_part.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)  # of the tests' own process
    monkeypatch.setitem(gpu.PARTS, "step", gpu.Part("faulty_part:measure", 1))
    file = tmp_path / "out.json"
    file.write_text('{"shape": "small", "parts": {}, "ratios": {}}')
    gpu.record(file, "ceilings", status="done", result={"known": 1}, seconds=2.0)
    gpu.record(file, "step", status="running")
    gpu.main(["--json", str(file), "--child", "step", "--scratch", str(tmp_path)])
    part = json.loads(file.read_text())["parts"]["step"]
    assert (part["status"], part["error"]) == ("failed", "ValueError: a fault")
    assert part["result"] == {"summary": ["half of it"], "small": True, "earlier": {"known": 1}}

    gpu.record(file, "step", seconds=3.0)
    gpu.print_table(json.loads(file.read_text()))
    assert "step          failed: ValueError: a fault, 3 s\n    half of it\n" in capsys.readouterr().out


def test_the_largest_that_fits_is_found(gpu: Any) -> None:
    from gpu_memory import bisect

    for answer in range(8):
        assert bisect(lambda size, answer=answer: size <= answer, 0, 7) == answer
