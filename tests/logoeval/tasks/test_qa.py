"""Questions on held-out documents: the model's own answers, resumed, and counted by the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.judge.measures import token_f1, word_share
from logoeval.cli import main
from logoeval.tasks.qa import METRICS, QaSettings, run
from tests.logoeval.tasks.test_pairs import make_session


def test_every_question_is_answered_and_scored(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    outcome = run(QaSettings(data=make_build()), make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
    records = {record["id"]: record for record in map(json.loads, (tmp_path / "qa.jsonl").open(encoding="utf-8"))}
    assert [row.id for row in outcome.samples] == [f"q{number}" for number in range(6)]
    for row in outcome.samples:
        record = records[row.id]
        assert set(row.scores) == {metric.key for metric in METRICS}
        assert row.scores["word_share"] == word_share(record["response"], ["the bridge"])
        assert row.scores["token_f1"] == token_f1(record["response"], ["the bridge"])
        assert row.cluster == f"heldout-doc-{int(row.id[1:]) // 2}"
    assert len({row.scores["token_f1"] for row in outcome.samples}) > 1


def test_a_stopped_run_answers_the_rest_only(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    settings, session = QaSettings(data=make_build()), make_session(tiny_model, tiny_tokenizer, fake_answer)
    session.engine.limit = 4
    with pytest.raises(KeyboardInterrupt):
        run(settings, session, tmp_path / "stopped")
    again = make_session(tiny_model, tiny_tokenizer, fake_answer)
    outcome = run(settings, again, tmp_path / "stopped")
    assert again.engine.answered == 2
    whole = run(settings, make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path / "whole")
    assert outcome.samples == whole.samples


def test_the_command_and_its_errors(
    tiny_model_dir: Path, tmp_path: Path, make_build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_build()
    command = ["qa", "--model", str(tiny_model_dir), "--data", str(data), "qa.max_new_tokens=4", "qa.max_samples=4"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "Held-out answer: word F1" in shown
    assert main(["errors", str(tmp_path / "run")]) == 0
    assert "Held-out questions" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "again")]) == 0
    report = tmp_path / "report.html"
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "again"), "-o", str(report)]) == 0
    assert "Held-out answer: word F1" in report.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["qa", "--model", str(tiny_model_dir), "-o", str(tmp_path / "run3")]) == 2
    assert "'qa.data' is missing" in capsys.readouterr().err


def test_data_of_another_tokenizer_are_refused(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    folder = make_build()
    manifest = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(manifest.replace('"tokenizer_fingerprint": "', '"tokenizer_fingerprint": "0'))
    with pytest.raises(UserError, match="another tokenizer"):
        run(QaSettings(data=folder), make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
