"""Preference losses: pure functions of mean token log-probabilities (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A loss and its parts, each [B], one value a sample.

    ``margin`` is r(y_w) minus the mean of the r(y_l), in nats a token.
    """

    loss: Tensor
    preference: Tensor
    sft: Tensor
    margin: Tensor


def logo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float, sft_weight: float) -> PreferenceLoss:
    """LOGO (paper Eq. 2 and 3): reference-free, M dis-preferred responses over one context.

    ``L = -log sigmoid(beta * r(y_w) - beta / M * sum_j r(y_l^j) - gamma) - lambda * r(y_w)``, where r is the mean
    log-probability of a response's tokens, each response normalised by its own length. With M = 1 and lambda = 0 it is
    SimPO.

    Args:
        chosen: [B], r(y_w), float32 or float64.
        rejected: [B, M], r(y_l^1..M).
        beta: scale.
        gamma: target margin.
        sft_weight: lambda.
    """
    margin = chosen - rejected.mean(dim=1)
    preference = -logsigmoid(beta * margin - gamma)
    sft = -chosen
    return PreferenceLoss(loss=preference + sft_weight * sft, preference=preference, sft=sft, margin=margin)
