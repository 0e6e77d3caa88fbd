"""The loss against numbers worked out by hand and the paper's formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from logotrain.objective import logo


def test_against_hand_computation() -> None:
    # r(y_w) = -1, r(y_l) = -1.5 and -2.5: margin 1; argument 2 * 1 - 0.5 = 1.5; -log sigmoid(1.5) = log(1 + e^-1.5).
    terms = logo(torch.tensor([-1.0]), torch.tensor([[-1.5, -2.5]]), beta=2.0, gamma=0.5, sft_weight=0.1)
    assert terms.margin.item() == pytest.approx(1.0)
    assert terms.preference.item() == pytest.approx(0.20141327798)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.loss.item() == pytest.approx(0.30141327798)


def test_against_the_papers_formula_written_per_token() -> None:
    """Eq. 2 and 3 from token log-probabilities, each response normalised by its own length."""
    generator = torch.Generator().manual_seed(1)
    beta, gamma, weight = 10.0, 3.0, 0.1
    tokens = [
        [-torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths]
        for lengths in ((4, 7, 2), (3, 1, 9))
    ]
    chosen = torch.stack([sample[0].mean() for sample in tokens])
    rejected = torch.stack([torch.stack([response.mean() for response in sample[1:]]) for sample in tokens])
    terms = logo(chosen, rejected, beta=beta, gamma=gamma, sft_weight=weight)
    for n, (preferred, *others) in enumerate(tokens):
        argument = beta / len(preferred) * sum(preferred.tolist())
        argument -= sum(beta / (len(others) * len(y)) * sum(y.tolist()) for y in others) + gamma
        preference = -math.log(1 / (1 + math.exp(-argument)))
        sft = -sum(preferred.tolist()) / len(preferred)
        assert terms.preference[n].item() == pytest.approx(preference, rel=1e-12)
        assert terms.loss[n].item() == pytest.approx(preference + weight * sft, rel=1e-12)


def test_one_rejected_and_no_sft_is_simpo() -> None:
    chosen, rejected = torch.tensor([-0.7, -2.0]), torch.tensor([-0.9, -1.0])
    terms = logo(chosen, rejected[:, None], beta=2.5, gamma=0.25, sft_weight=0.0)
    simpo = -torch.nn.functional.logsigmoid(2.5 * (chosen - rejected) - 0.25)
    torch.testing.assert_close(terms.loss, simpo)


def test_gradients_flow_to_every_response_and_survive_saturation() -> None:
    chosen = torch.tensor([-50.0], requires_grad=True)
    rejected = torch.tensor([[-0.1, -0.2]], requires_grad=True)
    logo(chosen, rejected, beta=10.0, gamma=3.0, sft_weight=0.1).loss.sum().backward()
    # Saturated: d(-log sigmoid(z))/dz = -1.
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-10.1)
    torch.testing.assert_close(rejected.grad, torch.tensor([[5.0, 5.0]]))
