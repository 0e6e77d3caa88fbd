"""Held-out pairs: log-probabilities against separate rows, answers against the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from logodata.common.errors import UserError
from logodata.dataset.samples import read_samples
from logodata.engines.reasoning import Reasoning
from logodata.engines.settings import EngineSettings
from logodata.judge.measures import token_f1, word_share
from logoeval.tasks import pairs
from logoeval.tasks.pairs import EVALUATOR, PairsSettings, run
from tests.logoeval.conftest import FakeEngine


def make_session(model: Any, tokenizer: Any, answer: Any) -> Any:
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        stop_ids=(2,),
        engine=FakeEngine(answer),
        window=2048,
        engine_window=2048,
        bare_tokenizer=tokenizer,
        check_room=lambda *_: None,
        reasoning=Reasoning(tokenizer),
        settings=SimpleNamespace(model="tiny", chat_template_args={}, engine=EngineSettings()),
    )


def mean_logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    """A row of its own, transformers' attention, all logits."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    predictions = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(predictions[range(len(response)), response].mean())


def test_log_probabilities_equal_separate_rows(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    folder = make_build()
    outcome = run(PairsSettings(data=folder), make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
    for sample, row in zip(read_samples(folder), outcome.samples, strict=True):
        chosen = mean_logprob(tiny_model, sample.prompt_ids, sample.chosen.token_ids)
        rejected = [mean_logprob(tiny_model, sample.prompt_ids, response.token_ids) for response in sample.rejected]
        assert row.id == sample.id
        assert row.scores["chosen"] == pytest.approx(chosen, abs=1e-5)
        assert row.scores["rejected"] == pytest.approx(sum(rejected) / 2, abs=1e-5)
        assert row.scores["margin"] == pytest.approx(chosen - sum(rejected) / 2, abs=1e-5)
        assert row.scores["prefers_chosen"] == float(chosen > sum(rejected) / 2)
    assert len({round(row.scores["margin"], 3) for row in outcome.samples}) > 1
    # The model goes on as before: the seam is closed again.
    assert not tiny_model.config._attn_implementation.startswith("logo_")


def test_of_two_equally_likely_responses_none_is_preferred(
    tiny_model: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    make_build: Callable[..., Path],
    fake_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs, "mean_logprobs", lambda *_: [-1.0, -1.0, -1.0])
    settings = PairsSettings(data=make_build(), max_samples=1)
    [row] = run(settings, make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path).samples
    assert (row.scores["margin"], row.scores["prefers_chosen"]) == (0.0, 0.0)


def test_answers_are_scored_by_the_judges_measures(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    import json

    outcome = run(PairsSettings(data=make_build()), make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
    records = {record["id"]: record for record in map(json.loads, (tmp_path / "pairs.jsonl").open(encoding="utf-8"))}
    for row in outcome.samples:
        record = records[row.id]
        assert row.scores["word_share"] == word_share(record["response"], ["the bridge"])
        assert row.scores["token_f1"] == token_f1(record["response"], ["the bridge"])
        assert row.scores["ended"] == float(record["finish_reason"] == "stop")
        assert row.scores["answer_tokens"] == record["num_response_tokens"]
        assert record["template"] == "f00d"
    assert len({row.scores["word_share"] for row in outcome.samples}) == 2
    assert [row.cluster for row in outcome.samples] == [f"heldout-doc-{number // 2}" for number in range(6)]


def test_max_samples_takes_the_first(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    settings = PairsSettings(data=make_build(), max_samples=3)
    outcome = run(settings, make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
    assert [row.id for row in outcome.samples] == ["q0", "q1", "q2"]


def test_settings_follow_the_contents_not_the_place(make_build: Callable[..., Path], tmp_path: Path) -> None:
    first = make_build(name="a")
    moved = first.rename(tmp_path / "moved")

    def described(folder: Path) -> dict[str, Any]:
        return EVALUATOR.describe(PairsSettings(data=folder), EngineSettings())

    assert described(moved) != described(make_build(name="b"))
    fingerprint = described(moved)
    assert described(moved.rename(tmp_path / "again")) == fingerprint


def test_data_of_another_tokenizer_are_refused(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path], fake_answer: Any
) -> None:
    folder = make_build()
    manifest = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(manifest.replace('"tokenizer_fingerprint": "', '"tokenizer_fingerprint": "0'))
    with pytest.raises(UserError, match="another tokenizer"):
        run(PairsSettings(data=folder), make_session(tiny_model, tiny_tokenizer, fake_answer), tmp_path)
