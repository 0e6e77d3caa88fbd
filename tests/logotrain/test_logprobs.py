"""Log-probabilities of tokens, a chunk of logits at a time."""

from __future__ import annotations

import pytest
import torch

from logotrain.logprobs import token_logprobs


def test_token_logprobs_chunked_equal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 3 rows a chunk, values and gradients equal log_softmax over everything."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 50, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (11,), generator=generator)
    weights = torch.randn(11, generator=generator, dtype=torch.float64)
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(11), targets]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    monkeypatch.setattr("logotrain.logprobs._CHUNK_ELEMENTS", 150)
    found = token_logprobs(logits, targets)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_token_logprobs_of_bfloat16_logits_are_float32() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = token_logprobs(logits, torch.tensor([1, 2, 3, 4]))
    assert found.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(4), torch.tensor([1, 2, 3, 4])]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
