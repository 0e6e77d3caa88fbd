"""Training losses: pure functions of log-probabilities, one formula each, and the one that a recipe asks for.

Log-probabilities are float32 or float64, in nats. B counts samples, M the dis-preferred responses of one sample.
log p(y) is the sum over a response's tokens, r(y) their mean. SimPO, CPO and DPO are losses of one pair: with M > 1 the
preferred response pairs with each dis-preferred one, and the M losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from logotrain.recipe.settings import (
    CpoSettings,
    DpoSettings,
    LogoSettings,
    ObjectiveSettings,
    SftSettings,
    SimpoSettings,
    scores_prompt,
    uses_reference,
    uses_rejected,
)


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A loss and its parts, each [B], one value a sample.

    Attributes:
        loss: what is minimised.
        preference: its term that compares responses; 0 for :func:`sft`.
        sft: negative mean log-probability of the trained text, before any weight; reported by every objective.
        margin: r(y_w) minus the mean of the r(y_l), in nats a token whatever the objective compares; None for
            :func:`sft`.
    """

    loss: Tensor
    preference: Tensor
    sft: Tensor
    margin: Tensor | None


def logo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float, sft_weight: float) -> PreferenceLoss:
    """LOGO (paper Eq. 2 and 3): reference-free, M dis-preferred responses over one context.

    ``L = -log sigmoid(beta * r(y_w) - beta / M * sum_j r(y_l^j) - gamma) - lambda * r(y_w)``. With M = 1 and lambda = 0
    it is SimPO.

    Args:
        chosen: [B], r(y_w).
        rejected: [B, M], r(y_l^1..M).
        beta: scale.
        gamma: target margin.
        sft_weight: lambda.
    """
    margin = _margin(chosen, rejected)
    preference = -logsigmoid(beta * margin - gamma)
    sft = -chosen
    return PreferenceLoss(loss=preference + sft_weight * sft, preference=preference, sft=sft, margin=margin)


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> PreferenceLoss:
    """SimPO (arXiv 2405.14734): ``L = -log sigmoid(beta * (r(y_w) - r(y_l)) - gamma)``.

    Args:
        chosen: [B], r(y_w).
        rejected: [B, M], r(y_l^1..M).
        beta: scale.
        gamma: target margin.
    """
    preference = -logsigmoid(beta * (chosen[:, None] - rejected) - gamma).mean(dim=1)
    return PreferenceLoss(loss=preference, preference=preference, sft=-chosen, margin=_margin(chosen, rejected))


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    sft_weight: float,
) -> PreferenceLoss:
    """CPO (arXiv 2401.08417, Eq. 3): ``L = -log sigmoid(beta * (log p(y_w) - log p(y_l))) - lambda * r(y_w)``.

    Args:
        chosen: [B], log p(y_w).
        rejected: [B, M], log p(y_l^1..M).
        chosen_lengths: [B], tokens.
        rejected_lengths: [B, M], tokens; only the margin needs them.
        beta: scale.
        sft_weight: lambda. The likelihood term is a mean per token, as in the authors' code and TRL's.
    """
    preference = -logsigmoid(beta * (chosen[:, None] - rejected)).mean(dim=1)
    sft = -chosen / chosen_lengths
    margin = _margin(-sft, rejected / rejected_lengths)
    return PreferenceLoss(loss=preference + sft_weight * sft, preference=preference, sft=sft, margin=margin)


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """DPO (arXiv 2305.18290, Eq. 7): ``L = -log sigmoid(beta * (log p/p_ref(y_w) - log p/p_ref(y_l)))``.

    Args:
        chosen: [B], log p(y_w).
        rejected: [B, M], log p(y_l^1..M).
        reference_chosen: [B], log p_ref(y_w), without gradient.
        reference_rejected: [B, M], log p_ref(y_l^1..M), without gradient.
        chosen_lengths: [B], tokens; only margin and sft need the lengths.
        rejected_lengths: [B, M], tokens.
        beta: scale.
    """
    ratio_chosen, ratio_rejected = chosen - reference_chosen, rejected - reference_rejected
    preference = -logsigmoid(beta * (ratio_chosen[:, None] - ratio_rejected)).mean(dim=1)
    sft = -chosen / chosen_lengths
    margin = _margin(-sft, rejected / rejected_lengths)
    return PreferenceLoss(loss=preference, preference=preference, sft=sft, margin=margin)


def sft(chosen: Tensor) -> PreferenceLoss:
    """Instruct tuning (paper Table 1): the negative mean log-probability of whatever tokens are trained on.

    Args:
        chosen: [B], mean over those tokens.
    """
    return PreferenceLoss(loss=-chosen, preference=torch.zeros_like(chosen), sft=-chosen, margin=None)


def sample_loss(
    settings: ObjectiveSettings,
    responses: Sequence[Tensor],
    *,
    prompt: Tensor | None = None,
    reference: Tensor | None = None,
) -> PreferenceLoss:
    """The loss of one sample (B = 1) from its token log-probabilities.

    Args:
        settings: which loss.
        responses: [R_j] each, the preferred one first; no other unless :func:`uses_rejected`.
        prompt: [P - 1], of the prompt's tokens but the first; given if :func:`scores_prompt`, and only then.
        reference: [1 + M], log p_ref of each response; given if :func:`uses_reference`, and only then.

    Raises:
        ValueError: a response is empty, or the inputs are not those that the loss reads.
    """
    if not responses or min(response.numel() for response in responses) == 0:
        raise ValueError("an empty response has no mean log-probability")
    if (len(responses) > 1) != uses_rejected(settings):
        raise ValueError(f"{settings.name} got {len(responses) - 1} dis-preferred responses")
    if (prompt is not None) != scores_prompt(settings):
        raise ValueError(f"{settings.name} got {'no ' if prompt is None else ''}log-probabilities of the prompt")
    if (reference is not None) != uses_reference(settings):
        raise ValueError(f"{settings.name} got {'no ' if reference is None else ''}reference log-probabilities")

    sums = torch.stack([response.sum() for response in responses])[None]  # [1, 1 + M]
    lengths = sums.new_tensor([[response.numel() for response in responses]])
    means = sums / lengths
    match settings:
        case LogoSettings(beta=beta, gamma=gamma, sft_weight=weight):
            return logo(means[:, 0], means[:, 1:], beta=beta, gamma=gamma, sft_weight=weight)
        case SimpoSettings(beta=beta, gamma=gamma):
            return simpo(means[:, 0], means[:, 1:], beta=beta, gamma=gamma)
        case CpoSettings(beta=beta, sft_weight=weight):
            return cpo(*_split(sums), *_split(lengths), beta=beta, sft_weight=weight)
        case DpoSettings(beta=beta):
            assert reference is not None
            return dpo(*_split(sums), *_split(reference[None]), *_split(lengths), beta=beta)
        case SftSettings():
            return sft(means[:, 0] if prompt is None else torch.cat([prompt, responses[0]]).mean()[None])
        case _:
            assert_never(settings)


def _margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[B] from mean log-probabilities [B] and [B, M]."""
    return chosen - rejected.mean(dim=1)


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1 + M] as preferred [B] and dis-preferred [B, M]."""
    return values[:, 0], values[:, 1:]
