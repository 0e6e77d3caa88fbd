"""Imported pairs are evaluated for what they have: no reference answers, no documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logodata.cli import main as logodata
from logoeval.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    rows = [
        {"prompt": f"How many, {n}?", "chosen": f" There are {n}.", "rejected": [" No.", " Owls."]} for n in range(6)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["import", str(folder / "pairs.jsonl"), "--model", str(tiny_model_dir), "-o", str(folder / "data")]
    assert logodata(words) == 0
    return folder / "data"


def test_pairs_are_measured_and_compared(
    data: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("before", "after"):
        words = ["pairs", "--model", str(tiny_model_dir), "--data", str(data), "-o", str(tmp_path / name)]
        assert main([*words, "pairs.max_new_tokens=4"]) == 0
    task = json.loads((tmp_path / "before" / "results.json").read_text())["tasks"]["pairs"]
    keys = [metric["key"] for metric in task["metrics"]]
    assert sorted(keys) == sorted(task["samples"][0]["scores"])
    assert "margin" in keys
    assert not {"word_share", "token_f1"} & {*keys}
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(["compare", *folders, "--data", str(data), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "The 6 pairs were imported" in page
    assert "6 of 6 held-out prompts stand in the training data too" in page
    assert "6 of 6 pairs were imported. Nothing was generated or judged here." in page
    assert "None" not in page.partition("<body>")[2].replace("None of", "")
    capsys.readouterr()
    assert main(["errors", *folders]) == 2
    assert "holds no answers to questions" in capsys.readouterr().err


def test_qa_needs_references(
    data: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qa", "--model", str(tiny_model_dir), "--data", str(data), "-o", str(tmp_path / "qa")]) == 2
    assert "samples have no reference answer (measure them with logoeval pairs" in capsys.readouterr().err
