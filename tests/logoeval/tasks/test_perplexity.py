"""One pass against separate runs and transformers' own loss; the curve of a window against the same by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from logodata.common.errors import UserError
from logodata.models.loading import load_model
from logoeval.tasks import perplexity, token_likelihoods
from logoeval.tasks.perplexity import PerplexitySettings, documents, run
from logoeval.tasks.token_likelihoods import sliding_nlls, token_nlls
from tests.conftest import make_model
from tests.tiny_models import MODELS, save_tiny


def session_for(model: Any, tokenizer: Any) -> Any:
    return SimpleNamespace(model=model, config=model.config, bare_tokenizer=tokenizer, check_window=lambda *_: None)


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
    monkeypatch.setattr(token_likelihoods, "_SLICE_TOKENS", slice_tokens)
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
            by_token = -logprobs.gather(1, ids[0, 1:, None])[:, 0]
            late = by_token[length // 2 - 1 :]  # predictions of the tokens after the first half
            assert len(late) == length - length // 2
            assert row.scores[f"tail@{length}"] == pytest.approx(float(late.mean()), rel=1e-5)


def test_headline_weighs_tokens(tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path) -> None:
    from logoeval.intervals import summarise

    settings = PerplexitySettings(lengths=(32,), text=str(book))
    outcome = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    by_token = np.concatenate([token_nlls(tiny_model, ids) for ids in found.values()])
    row = next(row for row in summarise(outcome.metrics, outcome.samples) if row.metric == "ppl@32")
    assert row.value == pytest.approx(np.exp(by_token.mean()))
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
    monkeypatch.setattr(perplexity, "begin_ids", lambda _: [1])
    begun, notes = documents(settings, tiny_tokenizer)
    assert "beginning-of-sequence token: yes" in notes
    sliding = settings.model_copy(update={"protocol": "sliding"})
    assert "beginning-of-sequence token: yes, in every window" in documents(sliding, tiny_tokenizer)[1]
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


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + place for place in range(8)],
}


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
@pytest.mark.parametrize("protocol", ["one_pass", "sliding"])
def test_rope_that_depends_on_the_length_is_run_by_length(
    tiny_tokenizer: Any, book: Path, tmp_path: Path, rope: dict[str, Any], protocol: Any
) -> None:
    def fresh() -> Any:
        return make_model(len(tiny_tokenizer), max_position_embeddings=32, rope_parameters=rope)

    settings = PerplexitySettings(protocol=protocol, lengths=(16, 32, 96), text=str(book), num_documents=2)
    outcome = run(settings, session_for(fresh(), tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    if protocol == "one_pass":
        kind = str(rope["rope_type"])
        assert f"RoPE type {kind!r} depends on the total length: each length was run by itself" in outcome.notes
        at_once = token_nlls(fresh(), found["a.txt"])[:31].mean()
        assert outcome.samples[0].scores["ppl@32"] != pytest.approx(at_once, rel=1e-3)
    for row in outcome.samples:
        for length in settings.lengths:
            # A model that has read nothing yet: frequencies of "dynamic" remember the longest row.
            if protocol == "one_pass":
                assert row.scores[f"ppl@{length}"] == pytest.approx(token_nlls(fresh(), found[row.id][:length]).mean())
            else:
                expected = sliding_nlls(fresh(), found[row.id], length, settings.stride or 0)
                assert row.scores[f"sliding@{length}"] == pytest.approx(expected.mean())


def test_a_curve_of_windows(tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path) -> None:
    """By hand: every token but the first, each under its own window."""
    settings = PerplexitySettings(
        protocol="sliding", lengths=(8, 20), stride=1, document_tokens=50, text=str(book), num_documents=2
    )
    outcome = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    assert outcome.notes[0] == "sliding windows (Press et al. 2021) over 50 tokens of each document, stride 1"
    assert [metric.key for metric in outcome.metrics] == ["sliding@8", "sliding@20"]
    assert [metric.headline for metric in outcome.metrics] == [False, True]
    assert "the 19 to 19 tokens before it" in outcome.metrics[1].explanation
    found, _ = documents(settings, tiny_tokenizer)
    for row in outcome.samples:
        ids = found[row.id]
        assert len(ids) == 50
        for window in settings.lengths:
            by_token = []
            for place in range(1, 50):
                seen = torch.tensor([ids[max(place - window + 1, 0) : place]])
                with torch.inference_mode():
                    by_token.append(-float(tiny_model(seen).logits[0, -1].log_softmax(-1)[ids[place]]))
            assert row.scores[f"sliding@{window}"] == pytest.approx(np.mean(by_token), rel=1e-5)


def test_a_window_as_long_as_the_document_is_one_pass(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path
) -> None:
    session = session_for(tiny_model, tiny_tokenizer)
    scores = {}
    for protocol in ("one_pass", "sliding"):
        settings = PerplexitySettings(protocol=protocol, lengths=(32, 64), text=str(book))
        (tmp_path / protocol).mkdir()
        scores[protocol] = [row.scores for row in run(settings, session, tmp_path / protocol).samples]
    for one_pass, sliding in zip(scores["one_pass"], scores["sliding"], strict=True):
        assert sliding["sliding@64"] == one_pass["ppl@64"]
        assert sliding["sliding@32"] != one_pass["ppl@32"]  # other tokens are scored


def test_a_stopped_curve_of_windows_goes_on_at_its_window(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PerplexitySettings(protocol="sliding", lengths=(16, 32), text=str(book), num_documents=2)
    session = session_for(tiny_model, tiny_tokenizer)
    first = run(settings, session, tmp_path)
    lines = (tmp_path / "ppl.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 4
    (tmp_path / "ppl.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    slid: list[int] = []

    def counted(model: Any, ids: list[int], window: int, *arguments: Any, **keywords: Any) -> Any:
        slid.append(window)
        return sliding_nlls(model, ids, window, *arguments, **keywords)

    monkeypatch.setattr(perplexity, "sliding_nlls", counted)
    assert run(settings, session, tmp_path) == first
    assert slid == [32]


def test_progress_counts_tokens_read(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGO_PROGRESS", "plain")
    settings = PerplexitySettings(
        protocol="sliding", lengths=(16, 32), stride=8, document_tokens=40, text=str(book), num_documents=1
    )
    run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    # Windows of 16 end at 16, 24, 32 and 40, those of 32 at 32 and 40.
    assert "[ppl: tokens read] 128/128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 8}, "one_pass has no windows: leave it out, or give ppl.protocol=sliding"),
        ({"document_tokens": 4096}, "one_pass has no windows"),
        ({"protocol": "sliding", "stride": 512}, "must be less than the shortest window, 512 tokens"),
        ({"protocol": "sliding", "stride": None}, "sliding needs a number"),
        ({"protocol": "sliding", "document_tokens": 1000}, "must hold the longest window, 4096 tokens"),
        ({"protocol": "sliding", "lengths": (64, 32)}, "must rise"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerplexitySettings(**settings)


def test_defaults_of_the_window() -> None:
    settings = PerplexitySettings(protocol="sliding", lengths=(2048, 65536))
    assert (settings.stride, settings.document_tokens) == (256, 65536)
    assert PerplexitySettings(protocol="sliding", lengths=(128, 512)).stride == 64
    assert (PerplexitySettings().stride, PerplexitySettings().document_tokens) == (None, None)


@pytest.mark.parametrize("name", MODELS)
def test_the_perplexity_of_any_model_is_its_own_loss(
    name: str, tiny_tokenizer: Any, book: Path, tmp_path: Path
) -> None:
    """Also of models with windows, with scaled or capped logits, and with layers that carry a state; in float64."""
    folder = save_tiny(name, tiny_tokenizer, tmp_path / name)
    model = load_model(folder).double()
    model.set_experts_implementation("eager")  # the others compute in float32
    settings = PerplexitySettings(lengths=(20, 100), text=str(book), num_documents=2)
    outcome = run(settings, session_for(model, tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    for row in outcome.samples:
        for length in settings.lengths:
            ids = torch.tensor([found[row.id][:length]])
            with torch.inference_mode():
                # Some models add the loss of their routers to the loss.
                logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            own = -logprobs.gather(1, ids[0, 1:, None]).mean()
            assert row.scores[f"ppl@{length}"] == pytest.approx(float(own), abs=1e-5)


def test_logits_that_a_model_caps_itself_count(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny_model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    monkeypatch.setattr(tiny_model, "forward", capped)
    settings = PerplexitySettings(lengths=(32,), text=str(book), num_documents=1)
    outcome = run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
    found, _ = documents(settings, tiny_tokenizer)
    ids = torch.tensor([found["a.txt"]])
    with torch.inference_mode():
        logprobs = tiny_model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    own = -logprobs.gather(1, ids[0, 1:, None]).mean()
    assert outcome.samples[0].scores["ppl@32"] == pytest.approx(float(own), rel=1e-5)


def test_a_model_that_is_more_than_its_decoder_and_its_head_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny_model.forward

    def embeds(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + tiny_model.get_input_embeddings()(kwargs["input_ids"]).sum(-1, keepdim=True) * (
            torch.arange(output.logits.shape[-1]) % 2
        )
        return output

    monkeypatch.setattr(tiny_model, "forward", embeds)
    settings = PerplexitySettings(lengths=(32,), text=str(book))
    with pytest.raises(UserError, match="gives other log-probabilities than its decoder and its head one by one"):
        run(settings, session_for(tiny_model, tiny_tokenizer), tmp_path)
