"""``--json``: one object on stdout, and nothing else there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main


@pytest.fixture
def arguments(tmp_path: Path, tiny_model_dir: Path) -> list[str]:
    """A build of four questions whose preferred answers need no engine; one document is empty."""
    rows = [{"doc_id": "empty", "context": " ", "question": "What?", "answers": ["x"]}]
    for place in ("mill", "tower", "bridge", "loft"):
        filler = [f"On day {day} nothing was written down but wind of kind {day * 7}. " for day in range(20)]
        filler.insert(9, f"The {place} holds seven lanterns. ")
        question = {"question": f"What does the {place} hold?", "answers": ["seven lanterns"]}
        rows.append({"doc_id": place, "context": "".join(filler), **question})
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
    small += ["contexts.critical_top=2", "generation.max_new_tokens=4", "generation.preferred=reference"]
    return ["build", str(file), *small, "--model", str(tiny_model_dir)]


def stats_of(folder: Path) -> dict[str, Any]:
    return {"output": str(folder), **json.loads((folder / "stats.json").read_text())}


def test_build(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for said in ("", "is finished already"):
        assert main([*arguments, "-o", str(tmp_path / "out"), "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == stats_of(tmp_path / "out")
        assert said in printed.err
    assert stats_of(tmp_path / "out")["questions"] == 5


def test_merge(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    for number, part in enumerate(parts, 1):
        assert main([*arguments, "-o", str(part), "--shard", f"{number}/2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == stats_of(part)
    assert main(["merge", *map(str, parts), "-o", str(tmp_path / "all"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == stats_of(tmp_path / "all")


def test_dry_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["build"]["chunking"]["chunk_tokens"] == 48
