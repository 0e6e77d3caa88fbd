"""What is said before a build about questions that cannot become samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import logodata.build.responses
from logodata.cli import main

SIZES = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "generation.max_new_tokens=8"]


def filler(number: int) -> str:
    return f"On day {number} nothing was written down but wind and weather of kind {number * 7}. "


def write_documents(folder: Path, *, days: int, count: int = 3) -> Path:
    """Documents of about ``days`` chunks, each with one sentence that the question shares three words with."""
    rows = []
    for number in range(count):
        fact = f"The harbour of Vell{number} holds seven lanterns. "
        text = "".join(map(filler, range(days // 2))) + fact + "".join(map(filler, range(days // 2, days)))
        question = {"question": f"What does the harbour of Vell{number} hold?", "answers": ["seven lanterns"]}
        rows.append({"doc_id": f"d{number}", "context": text, "questions": [question]})
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class NoEngine:
    name = "none"

    def generate(self, _: object) -> object:
        raise KeyboardInterrupt


def warning(
    documents: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> str:
    """What the build says of losses until it would generate, or finds that there is nothing to generate."""
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: NoEngine())
    output = documents.parent / f"out{len(list(documents.parent.iterdir()))}"
    code = main(["build", str(documents), *SIZES, *overrides, "--model", str(model), "-o", str(output)])
    lines = capsys.readouterr().err.splitlines()
    found = [line for line in lines if line.startswith("warning: ")]
    # 130: the engine was reached, after the warning; 2: no question was left to generate for.
    assert code in (2, 130)
    assert len(found) <= 1
    return found[0] if found else ""


def advised(line: str) -> list[str]:
    return re.findall(r"[\w.]+=[\w.]+", line)


@pytest.mark.parametrize(
    ("days", "overrides", "reason", "advice"),
    [
        (40, ["contexts.critical_threshold=6"], "no_critical_chunk 3", ["contexts.critical_threshold=null"]),
        (
            40,
            ["contexts.critical_threshold=0.9", "evaluator.name=embedding"],
            "no_critical_chunk 3",
            ["contexts.critical_top=4"],
        ),
        (20, ["chunking.chunk_tokens=512"], "too_few_irrelevant_chunks 3", ["chunking.chunk_tokens="]),
        (4, [], "too_few_irrelevant_chunks 3", ["contexts.num_chunks=2 contexts.critical_top=2"]),
        (12, ["contexts.num_chunks=16"], "too_few_irrelevant_chunks 3", ["source.join_tokens=2048"]),
        (80, ["contexts.num_chunks=40"], "prompt_exceeds_window 3", ["contexts.num_chunks="]),
    ],
)
def test_what_stands_in_the_way_is_said_with_settings_that_work(
    tmp_path: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    overrides: list[str],
    reason: str,
    advice: list[str],
) -> None:
    documents = write_documents(tmp_path, days=days)
    line = warning(documents, tiny_model_dir, capsys, monkeypatch, *overrides)
    assert line.startswith("warning: 0 of the first 3 questions (0%) have the chunks for a sample")
    assert reason in line
    assert all(part in line for part in advice)
    assert "3 would with" in line
    # The advice, given after what was typed, does what it says: no warning is left.
    assert warning(documents, tiny_model_dir, capsys, monkeypatch, *overrides, *advised(line)) == ""


def test_nothing_is_said_where_most_questions_can_be_used(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warning(write_documents(tmp_path, days=40), tiny_model_dir, capsys, monkeypatch) == ""


def test_where_no_setting_helps_that_is_said(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chunk cannot be critical and irrelevant."""
    documents = write_documents(tmp_path, days=0, count=1)
    line = warning(documents, tiny_model_dir, capsys, monkeypatch)
    assert "too_few_irrelevant_chunks 1" in line
    assert "change little" in line
