"""One pass against separate runs and transformers' own loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from logodata.common.errors import UserError
from logoeval import perplexity
from logoeval.perplexity import check_rope, documents, run, token_nlls
from logoeval.recipe import PerplexitySettings


def session_for(model: Any, tokenizer: Any) -> Any:
    return SimpleNamespace(model=model, tokenizer=tokenizer, check_window=lambda *_: None)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("a", "b", "c"):
        words = np.random.default_rng(ord(name)).choice(["the", "mill", "stood", "river,", "on", "a"], size=120)
        (folder / f"{name}.txt").write_text(" ".join(words), encoding="utf-8")
    (folder / "short.txt").write_text("Too short.", encoding="utf-8")
    return folder


@pytest.mark.parametrize("slice_tokens", [7, 512])
def test_one_pass_equals_each_length_by_itself(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_tokens: int
) -> None:
    monkeypatch.setattr(perplexity, "_SLICE_TOKENS", slice_tokens)
    settings = PerplexitySettings(lengths=(2, 10, 64, 200), text=str(book), num_documents=3)
    outcome = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    assert [row.id for row in outcome.samples] == list(found) == ["a.txt", "b.txt", "c.txt"]
    for row in outcome.samples:
        for length in settings.lengths:
            ids = torch.tensor([found[row.id][:length]])
            with torch.inference_mode():
                output = tiny_model(input_ids=ids, labels=ids)
            assert row.scores[f"ppl@{length}"] == pytest.approx(float(output.loss), rel=1e-5)
            logprobs = output.logits[0, :-1].double().log_softmax(-1)
            nlls = -logprobs.gather(1, ids[0, 1:, None])[:, 0]
            late = nlls[length // 2 - 1 :]  # predictions of the tokens after the first half
            assert len(late) == length - length // 2
            assert row.scores[f"tail@{length}"] == pytest.approx(float(late.mean()), rel=1e-5)


def test_headline_weighs_tokens(tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path) -> None:
    from logoeval.records import summarise

    settings = PerplexitySettings(lengths=(32,), text=str(book))
    outcome = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    nlls = np.concatenate([token_nlls(tiny_model, ids) for ids in found.values()])
    row = next(row for row in summarise(outcome.metrics, outcome.samples) if row.metric == "ppl@32")
    assert row.value == pytest.approx(np.exp(nlls.mean()))
    assert row.num_samples == 3


def test_short_documents_are_left_out_and_counted(tiny_tokenizer: Any, book: Path) -> None:
    found, notes = documents(PerplexitySettings(lengths=(64,), text=str(book), num_documents=8), tiny_tokenizer)
    assert "short.txt" not in found
    assert "3 documents have 64 tokens, 8 were asked for" in notes
    assert "1 documents are shorter than 64 tokens and were left out" in notes
    with pytest.raises(UserError, match="no document has 100000 tokens"):
        documents(PerplexitySettings(lengths=(100_000,), text=str(book)), tiny_tokenizer)


def test_builtin_documents_are_long_enough_and_share_nothing(tiny_tokenizer: Any) -> None:
    found, _ = documents(PerplexitySettings(lengths=(512,), num_documents=5), tiny_tokenizer)
    assert [len(ids) for ids in found.values()] == [512] * 5
    assert len({tuple(ids) for ids in found.values()}) == 5


def test_a_models_begin_token_is_written_once(tiny_tokenizer: Any, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PerplexitySettings(lengths=(16,), text=str(book))
    plain, notes = documents(settings, tiny_tokenizer)
    assert "beginning-of-sequence token: no" in notes
    monkeypatch.setattr(perplexity, "_begin_ids", lambda _: [1])
    begun, notes = documents(settings, tiny_tokenizer)
    assert "beginning-of-sequence token: yes" in notes
    assert begun["a.txt"] == [1, *plain["a.txt"][:15]]


def test_finished_documents_are_not_scored_again(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PerplexitySettings(lengths=(16, 32), text=str(book))
    first = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    lines = (tmp_path / "ppl.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "ppl.jsonl").write_text("".join(lines[:2]) + lines[2][:20], encoding="utf-8")  # killed while writing
    scored: list[int] = []
    original = token_nlls
    monkeypatch.setattr(perplexity, "token_nlls", lambda model, ids: scored.append(1) or original(model, ids))
    assert run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path) == first
    assert len(scored) == 1


@pytest.mark.parametrize(
    "parameters",
    [{"rope_type": "dynamic", "factor": 2.0}, {"full_attention": {"rope_type": "longrope"}}],
)
def test_rope_that_depends_on_the_length_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="depends on the total length"):
        check_rope(SimpleNamespace(rope_parameters=parameters))  # type: ignore[arg-type]
    check_rope(SimpleNamespace(rope_parameters={"rope_type": "yarn", "factor": 2.0}))  # type: ignore[arg-type]


def test_a_model_that_changes_its_logits_is_refused(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny_model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    monkeypatch.setattr(tiny_model, "forward", capped)
    with pytest.raises(UserError, match="changes its logits"):
        token_nlls(tiny_model, list(range(3, 40)))
