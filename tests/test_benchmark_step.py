"""benchmarks/step.py still runs, its variants agree, and its report has what readers take from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

TINY = (
    "--hidden 32 --intermediate 48 --layers 2 --heads 4 --vocabulary 64 --prompt 24 --response 5 --rank 2 --repeats 1"
)


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
