"""The training losses, each a pure function of log-probabilities, and :func:`sample_loss`, which chooses among them.

Log-probabilities are float32 or float64, in nats. B is the number of samples, M the number of dis-preferred responses
of a sample. log p(y) is the sum of the log-probabilities of a response's tokens, r(y) is their mean. All losses but
LOGO and SFT compare one pair. With M > 1 the preferred response forms a pair with each dis-preferred one, and the M
losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from logotrain.recipe.objectives import (
    CpoSettings,
    DpoSettings,
    IpoSettings,
    LogoSettings,
    LongpoSettings,
    ObjectiveSettings,
    OrpoSettings,
    SftSettings,
    SimpoSettings,
    SolopoSettings,
    WrappedSettings,
)


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A loss and its terms, each a tensor [B] with one value per sample.

    Attributes:
        loss: the loss that is minimised.
        preference: the term that compares responses; 0 for :func:`sft`.
        sft: negative mean log-probability of the trained text, before any weight; every objective reports it.
        margin: r(y_w) minus the mean of all r(y_l), in nats per token for every objective; None for :func:`sft`.
        distance: how far the rewards of y_w under two prompts lie apart, before any weight; only of :func:`solopo`.
        reward_margin: the reward of y_w minus the mean of all y_l's, against the reference, in the loss's own scale;
            only of losses that have a reference.
    """

    loss: Tensor
    preference: Tensor
    sft: Tensor
    margin: Tensor | None
    distance: Tensor | None = None
    reward_margin: Tensor | None = None


def logo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float, sft_weight: float) -> PreferenceLoss:
    """Return the LOGO loss (paper Eq. 2 and 3), which needs no reference model.

    ``L = -log sigmoid(beta * r(y_w) - beta / M * sum_j r(y_l^j) - gamma) - lambda * r(y_w)``. With M = 1 and lambda = 0
    it equals SimPO. ``chosen`` [B] and ``rejected`` [B, M] are r(y_w) and r(y_l^1..M), ``sft_weight`` is lambda.
    """
    margin = _margin(chosen, rejected)
    preference = -logsigmoid(beta * margin - gamma)
    sft = -chosen
    return PreferenceLoss(loss=preference + sft_weight * sft, preference=preference, sft=sft, margin=margin)


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> PreferenceLoss:
    """Return the SimPO loss (arXiv 2405.14734): ``L = -log sigmoid(beta * (r(y_w) - r(y_l)) - gamma)``.

    ``chosen`` [B] and ``rejected`` [B, M] are r(y_w) and r(y_l^1..M).
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
    """Return the CPO loss (arXiv 2401.08417, Eq. 3).

    ``L = -log sigmoid(beta * (log p(y_w) - log p(y_l))) - lambda * r(y_w)``.

    ``chosen`` [B] and ``rejected`` [B, M] are log p(y_w) and log p(y_l^1..M); lengths are in tokens. ``sft_weight`` is
    lambda. The likelihood term is a mean per token, as in the code of the authors and of TRL.
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
    sft_weight: float = 0.0,
) -> PreferenceLoss:
    """Return the DPO loss (arXiv 2305.18290, Eq. 7), perhaps with a likelihood term.

    ``L = -log sigmoid(beta * (log p/p_ref(y_w) - log p/p_ref(y_l))) - lambda * r(y_w)``. Lambda, ``sft_weight``, is 0
    in DPO, 1 in Iterative RPO (arXiv 2404.19733) and 0.1 in LongReward (2410.21252).

    ``chosen`` [B] and ``rejected`` [B, M] are log p(y_w) and log p(y_l^1..M); those of the reference have no gradient.
    The lengths are in tokens; only ``margin`` and ``sft`` need them.
    """
    ratio_chosen, ratio_rejected = chosen - reference_chosen, rejected - reference_rejected
    preference = -logsigmoid(beta * (ratio_chosen[:, None] - ratio_rejected)).mean(dim=1)
    sft = -chosen / chosen_lengths
    return PreferenceLoss(
        loss=preference + sft_weight * sft,
        preference=preference,
        sft=sft,
        margin=_margin(-sft, rejected / rejected_lengths),
        reward_margin=beta * _margin(ratio_chosen, ratio_rejected),
    )


def ipo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, tau: float
) -> PreferenceLoss:
    """Return the IPO loss (arXiv 2310.12036, Eq. 17): ``L = (r/r_ref(y_w) - r/r_ref(y_l) - 1 / (2 tau)) ** 2``.

    ``r/r_ref`` stands for r - r_ref. ``chosen`` [B] and ``rejected`` [B, M] are r(y_w) and r(y_l^1..M); those of the
    reference have no gradient. The paper writes sums. Means are what TRL takes, after its authors asked the paper's.
    """
    ratio_chosen, ratio_rejected = chosen - reference_chosen, rejected - reference_rejected
    preference = (ratio_chosen[:, None] - ratio_rejected - 1 / (2 * tau)).square().mean(dim=1)
    return PreferenceLoss(
        loss=preference,
        preference=preference,
        sft=-chosen,
        margin=_margin(chosen, rejected),
        reward_margin=_margin(ratio_chosen, ratio_rejected),
    )


def orpo(chosen: Tensor, rejected: Tensor, *, preference_weight: float) -> PreferenceLoss:
    """Return the ORPO loss (arXiv 2403.07691, Eq. 6 and 7), which needs no reference model.

    ``L = -r(y_w) - lambda * log sigmoid(o(y_w) - o(y_l))`` with the log odds ``o(y) = r(y) - log(1 - exp(r(y)))``.
    ``chosen`` [B] and ``rejected`` [B, M] are r(y_w) and r(y_l^1..M), ``preference_weight`` is lambda. The likelihood
    is that of the response, as in the paper; TRL's is that of prompt and response.
    """
    preference = -logsigmoid(_log_odds(chosen)[:, None] - _log_odds(rejected)).mean(dim=1)
    loss = preference_weight * preference - chosen
    return PreferenceLoss(loss=loss, preference=preference, sft=-chosen, margin=_margin(chosen, rejected))


def solopo(short: PreferenceLoss, short_reward: Tensor, long_reward: Tensor, *, alpha: float) -> PreferenceLoss:
    """Return the SoLoPO loss (arXiv 2505.11166): ``L = L_short + alpha * |rho_short(y_w) - rho_long(y_w)|``.

    ``short`` is the wrapped loss under the prompt of the critical chunks alone; its terms stay those of the result. The
    rewards rho [B] of the preferred response under both prompts are the wrapped loss's own (:func:`reward`). Gradients
    flow through both. Where ``alpha`` is 1 or more, this lowers the preferred response's probability under the short
    prompt as long as its reward is higher there.
    """
    distance = (short_reward - long_reward).abs()
    return replace(short, loss=short.loss + alpha * distance, distance=distance)


def longpo(preference: PreferenceLoss, nll: Tensor, *, preference_weight: float) -> PreferenceLoss:
    """Return the LongPO loss (arXiv 2502.13922, Eq. 14): ``L = lambda * L_DPO + nll``.

    ``preference`` is :func:`dpo` under the whole prompt, with log-probabilities of the reference under the prompt of
    the critical chunks alone. ``nll`` [B] is minus the mean log-probability of the tokens that are trained on, and
    ``preference_weight`` is lambda.
    """
    return replace(preference, loss=preference_weight * preference.loss + nll, sft=nll)


def sft(chosen: Tensor) -> PreferenceLoss:
    """Return the loss of instruct tuning (paper Table 1): minus the mean log-probability ``chosen`` [B] of a text."""
    return PreferenceLoss(loss=-chosen, preference=torch.zeros_like(chosen), sft=-chosen, margin=None)


def sample_loss(
    settings: ObjectiveSettings,
    responses: Sequence[Tensor],
    *,
    long_chosen: Tensor | None = None,
    prompt: Tensor | None = None,
    reference: Tensor | None = None,
) -> PreferenceLoss:
    """Return the loss of one sample (B = 1) from the log-probabilities of its tokens.

    Args:
        settings: the objective of the recipe.
        responses: [R_j] for each response, the preferred one first; the others only if :func:`uses_rejected`. Those of
            SoLoPO are under the short prompt.
        long_chosen: [R_1], of the preferred response under the whole prompt; given if and only if that is a second one.
        prompt: [P - 1], of the prompt's tokens but the first; given if and only if :func:`scores_prompt`.
        reference: [1 + M], log p_ref of each response, then that of ``long_chosen`` if there is one; given if and only
            if :func:`uses_reference`.

    Raises:
        ValueError: there is no response, a response is empty, or an input is missing or not used by the objective.
    """
    scored = responses if long_chosen is None else [*responses, long_chosen]
    if not responses or min(response.numel() for response in scored) == 0:
        raise ValueError("an empty response has no mean log-probability")
    if (len(responses) > 1) != settings.uses_rejected:
        raise ValueError(f"{settings.name} got {len(responses) - 1} dis-preferred responses")
    if (long_chosen is not None) != (len(settings.parts) > 1):
        raise ValueError(f"{settings.name} got {'no ' if long_chosen is None else ''}response under a second prompt")
    if (prompt is not None) != settings.scores_prompt:
        raise ValueError(f"{settings.name} got {'no ' if prompt is None else ''}log-probabilities of the prompt")
    if (reference is not None) != settings.uses_reference:
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
        case DpoSettings(beta=beta, sft_weight=weight):
            assert reference is not None
            return dpo(*_split(sums), *_split(reference[None]), *_split(lengths), beta=beta, sft_weight=weight)
        case IpoSettings(tau=tau):
            assert reference is not None
            return ipo(*_split(means), *_split(reference / lengths), tau=tau)
        case OrpoSettings(preference_weight=weight):
            return orpo(*_split(means), preference_weight=weight)
        case SolopoSettings(loss=wrapped, alpha=alpha):
            assert long_chosen is not None
            of_short, of_long = (None, None) if reference is None else (reference[:-1], reference[-1])
            short = sample_loss(wrapped, responses, reference=of_short)
            rewards = reward(wrapped, responses[0], None if of_short is None else of_short[0])
            return solopo(short, rewards, reward(wrapped, long_chosen, of_long), alpha=alpha)
        case LongpoSettings(beta=beta, preference_weight=weight):
            assert reference is not None
            preference = dpo(*_split(sums), *_split(reference[None]), *_split(lengths), beta=beta)
            nll = -means[:, 0] if prompt is None else -torch.cat([prompt, responses[0]]).mean()[None]
            return longpo(preference, nll, preference_weight=weight)
        case SftSettings():
            return sft(means[:, 0] if prompt is None else torch.cat([prompt, responses[0]]).mean()[None])
        case _:
            assert_never(settings)


def reward(settings: WrappedSettings, response: Tensor, reference: Tensor | None = None) -> Tensor:
    """Return the reward rho [1] that a loss gives a response.

    It is ``beta * (log p - log p_ref)`` for DPO, ``beta * r`` for SimPO and LOGO, and the log odds for ORPO.
    ``response`` [R] are the log-probabilities of its tokens; ``reference``, a scalar, is log p_ref, which only DPO
    reads.
    """
    match settings:
        case DpoSettings(beta=beta):
            assert reference is not None
            return beta * (response.sum() - reference)[None]
        case SimpoSettings(beta=beta) | LogoSettings(beta=beta):
            return beta * response.mean()[None]
        case OrpoSettings():
            return _log_odds(response.mean()[None])
        case _:
            assert_never(settings)


def _log_odds(means: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for p = exp(means)."""
    # A mean of 0, which rounding makes of a certain response, has infinite odds, and its gradient would be NaN.
    means = means.clamp(max=-torch.finfo(means.dtype).eps)
    return means - torch.log(-torch.expm1(means))


def _margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the margin [B] from mean log-probabilities [B] and [B, M]."""
    return chosen - rejected.mean(dim=1)


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split [B, 1 + M] into preferred [B] and dis-preferred [B, M]."""
    return values[:, 0], values[:, 1:]
