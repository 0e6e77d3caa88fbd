"""Models of all kinds generate in batches what their own ``generate`` gives one at a time, beyond their windows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.dataset.log_probs import response_logprobs
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.settings import EngineSettings
from logodata.engines.transformers_engine import TransformersEngine
from logodata.models.loading import load_model
from tests.tiny_models import MODELS, VOCABULARY, make_tiny, save_tiny

LENGTHS = [40, 1, 7, 41, 23, 2, 64, 30, 30]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": LONGROPE,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return load_model(save_tiny(request.param, tiny_tokenizer, tmp_path / request.param))


def make_requests(sampling: Sampling, lengths: Sequence[int] = LENGTHS) -> list[GenerationRequest]:
    """Random prompts; those of the same length share two thirds."""
    requests = []
    for number, length in enumerate(lengths):
        rng = random.Random(length)
        ids = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        ids[2 * length // 3 :] = [3 + (token + number) % (VOCABULARY - 3) for token in ids[2 * length // 3 :]]
        requests.append(GenerationRequest(f"r{number}", tuple(ids), sampling))
    return requests


@torch.no_grad()
def own_greedy(model: PreTrainedModel, request: GenerationRequest) -> tuple[int, ...]:
    ids = torch.tensor([request.prompt_ids])
    generate: Any = model.generate
    model.generation_config.eos_token_id = None
    output = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(output[0, ids.shape[1] :].tolist())


@torch.no_grad()
def forward_greedy(model: PreTrainedModel, request: GenerationRequest) -> tuple[int, ...]:
    """One forward a token: no cache, no padding."""
    ids = list(request.prompt_ids)
    while len(ids) < request.max_total_tokens:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(request.prompt_ids) :])


def test_greedy_tokens_are_those_of_one_prompt_at_a_time(model: PreTrainedModel) -> None:
    requests = make_requests(Sampling(12, ()))
    expected = {request.id: own_greedy(model, request) for request in requests}
    for limits in (EngineSettings(), EngineSettings(max_batch_rows=3)):
        results = {result.id: result for result in TransformersEngine(model, limits).generate(requests)}
        assert {name: result.token_ids for name, result in results.items()} == expected
    for request in requests[:3]:
        assert forward_greedy(model, request) == expected[request.id]
    # A token that the model does produce ends some of the responses.
    stops = (expected["r0"][4], expected["r3"][7])
    stopping = [replace(request, sampling=Sampling(12, stops)) for request in requests]
    for result in TransformersEngine(model).generate(stopping):
        whole = expected[result.id]
        end = next((place for place, token in enumerate(whole) if token in stops), len(whole))
        assert result.token_ids == whole[:end]
        assert result.finish_reason == ("length" if end == len(whole) else "stop")


def test_log_probabilities_are_those_of_the_models_own_loss(model: PreTrainedModel) -> None:
    prompt, *responses = (list(request.prompt_ids) for request in make_requests(Sampling(1, ()), [40, 5, 9, 20]))
    expected = []
    for response in responses:
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logprobs = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        expected.append(float(logprobs.gather(1, ids[0, len(prompt) :, None]).mean()))
    assert response_logprobs(model, prompt, responses) == pytest.approx(expected, abs=1e-5)


def test_what_the_models_files_ask_of_generation_is_ignored() -> None:
    """They may ask for a penalty or for other stop tokens; sampling is the request's, with every engine."""
    model = make_tiny("mistral")
    (request,) = make_requests(Sampling(12, ()), [40])
    expected = own_greedy(model, request)
    asked = model.generation_config
    asked.repetition_penalty, asked.eos_token_id = 5.0, expected[3]
    assert own_greedy(make_tiny("mistral"), request) == expected
    (result,) = TransformersEngine(model).generate([request])
    assert result.token_ids == expected
    assert model.generation_config is asked


def test_sampled_results_do_not_depend_on_the_batch() -> None:
    model = make_tiny("mistral")
    requests = make_requests(Sampling(10, (2,), temperature=0.9, top_p=0.9, seed=3))
    together = {result.id: result for result in TransformersEngine(model).generate(requests)}
    alone = {request.id: next(TransformersEngine(model).generate([request])) for request in requests}
    assert together == alone


@pytest.mark.parametrize("rope", ROPES)
def test_rope_that_depends_on_the_length(rope: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fresh() -> PreTrainedModel:
        return make_tiny("seed_oss", max_position_embeddings=128, rope_parameters=ROPES[rope])

    requests = make_requests(Sampling(6, ()), [64, 5, 40, 40, 30])
    found = {result.id: result.token_ids for result in TransformersEngine(fresh()).generate(requests)}
    assert found == {request.id: own_greedy(fresh(), request) for request in requests}
    assert f"RoPE of type '{rope}' depends on the longest row of a batch" in " ".join(capsys.readouterr().err.split())


def test_one_note_says_how_prompts_are_batched(capsys: pytest.CaptureFixture[str]) -> None:
    TransformersEngine(make_tiny("seed_oss"))
    assert "generation:" not in capsys.readouterr().err
    TransformersEngine(make_tiny("mistral"))
    said = " ".join(capsys.readouterr().err.split())
    assert "generation: prompts in a batch, each computed whole (pads between its tokens would change" in said


def test_a_model_that_generates_otherwise_than_it_reads_is_refused() -> None:
    """RoBERTa's positions begin at 2, and its generate counts from 0."""
    model = make_tiny("roberta", vocab_size=269, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(UserError, match=r"RobertaForCausalLM.generate does not continue a text as its forward would"):
        TransformersEngine(model)
