"""``logodata preview`` says before a build what the build then does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import logodata.build.responses
from logodata.cli import main
from logodata.dataset.samples import read_samples
from logodata.engines import GenerationRequest
from logodata.models.loading import load_tokenizer
from tests.logodata.build.test_build import ScriptedEngine, write_documents

SMALL = [
    *("chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"),
    *("contexts.critical_top=2", "generation.max_new_tokens=40"),
]


class Asked(ScriptedEngine):
    """Keeps what it is asked."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__(model_dir)
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Any:
        self.requests += requests
        return super().generate(requests)


def previewed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main(["preview", *words, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("logodata.engines.settings.load_model", refuse)
    monkeypatch.setattr("logodata.build.responses.open_engine", refuse)


@pytest.mark.usefixtures("no_weights")
def test_a_preview_has_the_numbers_of_the_build(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, model = write_documents(tmp_path), ["--model", str(tiny_model_dir)]
    found = previewed(capsys, str(documents), *model, *SMALL)
    engine = Asked(tiny_model_dir)
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: engine)
    assert main(["build", str(documents), *model, *SMALL, "-o", str(tmp_path / "data"), "judge.enabled=false"]) == 0
    samples = read_samples(tmp_path / "data")
    preferred = [it for it in engine.requests if it.id.rpartition("/")[2].startswith("model-")]
    others = [it for it in engine.requests if it not in preferred]
    work = found["work"]
    assert work["preferred_prompts"] == len(preferred) == found["usable"] > 0
    assert work["preferred_prompt_tokens"] == sum(len(it.prompt_ids) for it in preferred)
    assert work["dispreferred_prompts_at_most"] >= len(others) > 0
    assert work["response_tokens_at_most"] == 40 * (len(preferred) + work["dispreferred_prompts_at_most"])
    contexts = {sample.id: [chunk.model_dump() for chunk in sample.chunks] for sample in samples}
    shown = {it["id"]: it["context"] for it in found["shown"]}
    assert 0 < len(shown) <= 5
    assert set(shown) & set(contexts)
    assert all(contexts[name] == context for name, context in shown.items() if name in contexts)
    rows = [json.loads(line) for line in documents.open()]
    tokenizer = load_tokenizer(str(tiny_model_dir))
    texts = {row["doc_id"]: row["context"] for row in rows}
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts.values()]
    assert found["total_tokens"] == sum(lengths)
    assert found["document_tokens"]["max"] == max(lengths)
    assert not list(tmp_path.glob("work*"))


@pytest.mark.usefixtures("no_weights")
def test_what_is_lost_is_counted_by_reason(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(f"On day {day} the wind was {day * 7}." for day in range(99)) + " The harbour holds seven lanterns."
    rows = [
        {"doc_id": "a", "context": long, "question": "What does the harbour hold?", "answers": ["seven lanterns"]},
        {"doc_id": "b", "context": "Short.", "question": "What is short?", "answers": ["it"]},
        {"doc_id": "c", "context": " ", "question": "Q?", "answers": ["A"]},
        {"doc_id": "d", "context": "Text.", "question": "Q?", "answers": []},
        {"doc_id": "e", "context": "More.", "questions": []},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = previewed(capsys, str(tmp_path / "docs.jsonl"), "--model", str(tiny_model_dir), *SMALL)
    assert (found["documents"], found["left_out"]) == (4, {"empty_document": 1})
    assert (found["questions"], found["usable"]) == (4, 1)
    assert found["unusable"] == {"empty_document": 1, "no_reference_answer": 1, "too_few_irrelevant_chunks": 1}
    assert [it["id"] for it in found["shown"]] == ["a-01"]


def test_costs_and_times_are_bounds_or_not_told(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(write_documents(tmp_path)), "--model", str(tiny_model_dir), *SMALL]
    plain = previewed(capsys, *words)["work"]
    assert not {"cost_at_least", "cost_at_most", "seconds_at_least", "seconds_at_most"} & plain.keys()
    servers = ["engine.kind=openai", "engine.base_urls=[http://a/v1,http://b/v1]", "engine.requests_per_minute=2"]
    prices = ["--prompt-price", "2", "--response-price", "10", "--tokens-per-s", "100"]
    work = previewed(capsys, *words, *servers, *prices)["work"]
    first, second, last = (
        plain[name]
        for name in ("preferred_prompt_tokens", "dispreferred_prompt_tokens_at_most", "response_tokens_at_most")
    )
    assert work["cost_at_least"] == pytest.approx(first * 2e-6)
    assert work["cost_at_most"] == pytest.approx((first + second) * 2e-6 + last * 1e-5)
    assert work["seconds_at_least"] == pytest.approx(plain["preferred_prompts"] / 2 / 2 * 60)
    assert work["seconds_at_most"] == pytest.approx(max((first + second + last) / 100, work["seconds_at_least"]))


@pytest.mark.usefixtures("no_weights")
def test_a_preview_is_text_for_people(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["preview", str(write_documents(tmp_path)), "--model", str(tiny_model_dir)]
    assert main([*words, *SMALL]) == 0
    said = capsys.readouterr().out
    assert ", critical]" in said
    assert "documents      " in said
    assert "not estimated: nothing is measured" in said
    assert "not estimated: --prompt-price" in said
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Ann lives here.")
    assert main(["preview", str(tmp_path / "texts"), "--model", str(tiny_model_dir)]) == 0
    said = capsys.readouterr().out
    assert "questions      none: logodata questions " in said
    assert "prompts" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt-price", "1"], "one price of two (give --prompt-price and --response-price)"),
        (["--prompt-price", "1", "--response-price", "1"], "the engine transformers has no price"),
        (["--tokens-per-s", "0"], "--tokens-per-s: 0.0 is not in the range"),
    ],
)
def test_estimates_need_what_they_are_made_of(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["preview", str(write_documents(tmp_path)), "--model", str(tiny_model_dir), *words]) == 2
    assert said in capsys.readouterr().err
