"""Log-probabilities in float32, whatever the logits are; equal in any chunks, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from logodata.models.logprobs import head_logprobs, token_logprobs


def test_logits_in_bfloat16_give_float32() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = token_logprobs(logits, torch.tensor([1, 2, 3, 4]))
    assert found.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(4), torch.tensor([1, 2, 3, 4])]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_chunks_change_neither_values_nor_gradients(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(16, 50, bias=False, dtype=torch.float64)
    nn.init.normal_(head.weight, generator=generator)
    states = torch.randn(7, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(50, (7,), generator=generator)
    seen: list[int] = []
    head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    found = head_logprobs(head, states, targets, chunk_tokens)
    assert max(seen) == min(chunk_tokens, 7)
    expected = (states @ head.weight.T).log_softmax(-1)[torch.arange(7), targets]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    leaves = (states, head.weight)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
