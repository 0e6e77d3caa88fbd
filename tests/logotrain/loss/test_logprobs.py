"""Log-probabilities: equal to log-softmax over everything, whatever the chunks; the head sees scored positions only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from logodata.contract import PreferenceSample
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.recipe.objectives import RowPart
from logotrain.recipe.settings import PositionSettings
from logotrain.rows.collate import Collator

Samples = Callable[..., PreferenceSample]


@pytest.mark.parametrize("scores_prompt", [False, True])
@pytest.mark.parametrize("rows_a_chunk", [1, 3, 10_000])
def test_chunks_do_not_change_values_or_gradients(
    tiny_model: LlamaForCausalLM,
    make_sample: Samples,
    monkeypatch: pytest.MonkeyPatch,
    rows_a_chunk: int,
    scores_prompt: bool,
) -> None:
    """Against the model's own forward with all logits of the row."""
    model = LogprobModel(tiny_model.double())
    draws = [(0, make_sample("a")), (0, make_sample("b", responses=(2, 7)))]
    parts = (RowPart(scores_prompt=scores_prompt),)
    row = Collator(PositionSettings(), 2000, seed=0, parts=parts, pad_to_multiple=16)(draws)
    monkeypatch.setattr("logotrain.loss.logprobs.CHUNK_ELEMENTS", rows_a_chunk * tiny_model.config.vocab_size)
    weights = torch.randn(len(row.targets), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with use_shared_prefix(tiny_model):
        mask = torch.ones_like(row.input_ids)
        inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, "attention_mask": mask}
        logits = tiny_model(**inputs, use_cache=False, shared_prefix=row.layout).logits[0, row.gather_index]
        expected = logits.log_softmax(-1).gather(1, row.targets[:, None])[:, 0]
        expected_gradients = torch.autograd.grad((expected * weights).sum(), list(tiny_model.parameters()))
        found = model(row)
        gradients = torch.autograd.grad((found * weights).sum(), list(tiny_model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


def test_the_head_sees_as_many_positions_for_a_long_prompt_as_for_a_short_one(
    tiny_model: LlamaForCausalLM, make_sample: Samples
) -> None:
    seen: list[int] = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    for chunk_length in (4, 300):
        row = Collator(PositionSettings(), 2000, seed=0)([(0, make_sample("a", chunk_length=chunk_length))])
        with use_shared_prefix(tiny_model), torch.no_grad():
            LogprobModel(tiny_model)(row)
    assert seen == [12, 12]  # 5 + 3 + 4 response tokens


def test_split_gives_each_sample_its_own(make_sample: Samples) -> None:
    draws = [(0, make_sample("a", responses=(5, 3))), (0, make_sample("b", responses=(2, 1, 4)))]
    row = Collator(PositionSettings(), 2000, seed=0)(draws)
    first, second = split_logprobs(torch.arange(15.0), row)
    assert first.prompt.numel() == 0
    assert [values.tolist() for values in first.responses] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert [values.tolist() for values in second.responses] == [[8, 9], [10], [11, 12, 13, 14]]
    scored = Collator(PositionSettings(), 2000, seed=0, parts=(RowPart(rejected=False, scores_prompt=True),))(draws[:1])
    (only,) = split_logprobs(torch.arange(float(len(scored.targets))), scored)
    assert only.prompt.tolist() == list(range(30))
    assert only.responses[0].tolist() == [30, 31, 32, 33, 34]
