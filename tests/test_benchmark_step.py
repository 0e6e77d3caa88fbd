"""benchmarks/step.py still runs, its variants agree, and its report has what readers take from it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from logodata.common.errors import UserError

TINY = (
    "--hidden 32 --intermediate 48 --layers 2 --heads 4 --vocabulary 64 --prompt 24 --response 5 --rank 2 --repeats 1"
)


@pytest.mark.slow
def test_variants_agree_and_the_report_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import step

    threads = torch.get_num_threads()
    file = tmp_path / "step.json"
    assert step.main([*TINY.split(), "--json", str(file)]) == 0
    torch.set_num_threads(threads)

    report = json.loads(file.read_text())
    assert report["largest_gradient_difference"] < 1e-5
    logo = {name: losses["logo M=2"] for name, losses in report["losses"].items() if "logo M=2" in losses}
    assert logo.keys() == {"reference", "separate_rows", "shared", "shared_no_recompute"}
    assert list(logo.values()) == pytest.approx([logo["reference"]] * 4, rel=1e-5)
    for kind, theirs in (("cpo M=2", "trl_same_data"), ("cpo M=1", "trl_one_pair")):
        cpo = [losses[kind] for losses in report["losses"].values() if kind in losses]
        assert len(cpo) >= 3
        assert cpo == pytest.approx([report["losses"][theirs][kind]] * len(cpo), rel=1e-5)
    assert all(ratio > 0 for ratio in report["ratios"].values())
    assert report["ratios"].keys() >= {
        "shared_vs_reference",
        "shared_no_recompute_vs_reference",
        "shared_vs_trl_same_data",
        "shared_vs_trl_one_pair",
    }


@pytest.mark.slow
def test_a_row_over_two_processes_is_the_row_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(benchmarks.parent), str(benchmarks)]))
    import step

    threads = torch.get_num_threads()
    file = tmp_path / "context.json"
    assert step.main([*TINY.split(), "--context", "2", "--json", str(file)]) == 0
    torch.set_num_threads(threads)
    report = json.loads(file.read_text())["context"]
    assert report["loss_difference"] < 1e-6
    assert report["gradient_difference"] < 1e-5
    assert len(report["seconds"]["split"]) == 1
    assert report["ratio"] > 0


def test_the_driver_of_rivals_compares_before_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import rival_step

    threads = torch.get_num_threads()
    sizes = {"hidden": 32, "intermediate": 48, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 64}
    settings = {**sizes, "rank": 2, "prompt": 24, "response": 5, "device": "cpu", "rounds": 1, "threads": 1}
    found = rival_step.measure("logotrain", settings)
    torch.set_num_threads(threads)
    assert found["losses"]["shared"] == pytest.approx(found["losses"]["separate"], rel=1e-5)
    assert found["losses"]["shared"] != pytest.approx(math.log(2), rel=1e-4), "adapters move the pair"
    assert found["gradient_difference"] < 1e-5
    assert found["ratio"] > 0


def test_a_rival_needs_its_name_and_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import step

    for wrong in ("flash-preference", "unsloth=python"):
        with pytest.raises(UserError, match=r"--rival: no rival .* \(give NAME=PYTHON, NAME one of flash-preference"):
            step.parse(["--rival", wrong])


def test_every_objective_has_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import objectives
    from shape import Shape

    threads = torch.get_num_threads()
    monkeypatch.setattr(objectives, "CPU_SHAPE", Shape(32, 48, 2, 4, 2, 64, rank=2, prompt=24, response=5, rejected=2))
    objectives.main(["--rounds", "1"])
    torch.set_num_threads(threads)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "seconds"
    assert [line[:22].strip() for line in lines] == list(objectives.SAMPLES)
    assert lines[0].split()[-1] == "1.00"
