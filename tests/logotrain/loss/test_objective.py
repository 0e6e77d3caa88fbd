"""The losses against numbers worked out by hand, the papers' formulas, and TRL's trainers."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logotrain.loss.objective import PreferenceLoss, cpo, dpo, ipo, logo, orpo, sample_loss, sft, simpo
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

LENGTHS = torch.tensor([4.0, 3.0]), torch.tensor([[2.0, 5.0], [1.0, 7.0]])
REFERENCE = torch.tensor([-3.0, -4.0]), torch.tensor([[-1.5, -6.0], [-2.0, -8.0]])
PREFERENCE_LOSSES: dict[str, Callable[[Tensor, Tensor], PreferenceLoss]] = {
    "logo": lambda chosen, rejected: logo(chosen, rejected, beta=2.0, gamma=0.5, sft_weight=0.1),
    "simpo": lambda chosen, rejected: simpo(chosen, rejected, beta=2.0, gamma=0.5),
    "cpo": lambda chosen, rejected: cpo(chosen, rejected, *_like(chosen, LENGTHS), beta=0.5, sft_weight=0.3),
    "dpo": lambda chosen, rejected: dpo(chosen, rejected, *_like(chosen, REFERENCE), *_like(chosen, LENGTHS), beta=0.5),
    "ipo": lambda chosen, rejected: ipo(chosen, rejected, *_like(chosen, REFERENCE), tau=0.5),
    "orpo": lambda chosen, rejected: orpo(chosen, rejected, preference_weight=0.3),
}
"""Each as a function of [2] and [2, 2], or of their first sample alone."""


def _like(chosen: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tuple(part[: chosen.shape[0]].to(chosen.dtype) for part in pair)  # type: ignore[return-value]


def softplus(value: float) -> float:
    """-log sigmoid(-value)."""
    return math.log1p(math.exp(value))


# By hand ------------------------------------------------------------------------------------------------------------


def test_logo_by_hand() -> None:
    # r(y_w) = -1, r(y_l) = -1.5 and -2.5: margin 1; argument 2 * 1 - 0.5 = 1.5; -log sigmoid(1.5) = log(1 + e^-1.5).
    terms = logo(torch.tensor([-1.0]), torch.tensor([[-1.5, -2.5]]), beta=2.0, gamma=0.5, sft_weight=0.1)
    assert terms.margin is not None
    assert terms.margin.item() == pytest.approx(1.0)
    assert terms.preference.item() == pytest.approx(0.20141327798)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.loss.item() == pytest.approx(0.30141327798)


def test_simpo_by_hand() -> None:
    # Pairs 2 * 0.5 - 0.5 = 0.5 and 2 * 1.5 - 0.5 = 2.5, averaged after the sigmoid, unlike LOGO.
    terms = simpo(torch.tensor([-1.0]), torch.tensor([[-1.5, -2.5]]), beta=2.0, gamma=0.5)
    assert terms.loss.item() == pytest.approx((softplus(-0.5) + softplus(-2.5)) / 2)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.margin is not None
    assert terms.margin.item() == pytest.approx(1.0)


def test_cpo_by_hand() -> None:
    # Sums -4 over 4 tokens, -3 over 2, -5 over 10: arguments 0.5 * -1 and 0.5 * 1; means -1, -1.5, -0.5.
    terms = cpo(
        torch.tensor([-4.0]),
        torch.tensor([[-3.0, -5.0]]),
        torch.tensor([4]),
        torch.tensor([[2, 10]]),
        beta=0.5,
        sft_weight=0.3,
    )
    assert terms.preference.item() == pytest.approx((softplus(0.5) + softplus(-0.5)) / 2)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.loss.item() == pytest.approx((softplus(0.5) + softplus(-0.5)) / 2 + 0.3)
    assert terms.margin is not None
    assert terms.margin.item() == pytest.approx(0.0)


def test_dpo_by_hand() -> None:
    # Ratios: chosen -4 + 5 = 1; rejected -3 + 2 = -1 and -5 + 5 = 0: arguments 0.5 * 2 and 0.5 * 1.
    terms = dpo(
        torch.tensor([-4.0]),
        torch.tensor([[-3.0, -5.0]]),
        torch.tensor([-5.0]),
        torch.tensor([[-2.0, -5.0]]),
        torch.tensor([4]),
        torch.tensor([[2, 10]]),
        beta=0.5,
    )
    assert terms.loss.item() == pytest.approx((softplus(-1.0) + softplus(-0.5)) / 2)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.margin is not None
    assert terms.margin.item() == pytest.approx(0.0)
    assert terms.reward_margin is not None
    assert terms.reward_margin.item() == pytest.approx(0.5 * (1 - -0.5))


def test_ipo_by_hand() -> None:
    # Ratios: chosen -1 + 2 = 1; rejected -1.5 + 1 = -0.5 and -2.5 + 2.5 = 0: differences 1.5 and 1; 1 / (2 tau) = 1.
    terms = ipo(
        torch.tensor([-1.0]), torch.tensor([[-1.5, -2.5]]), torch.tensor([-2.0]), torch.tensor([[-1.0, -2.5]]), tau=0.5
    )
    assert terms.loss.item() == pytest.approx((0.5**2 + 0.0) / 2)
    assert terms.sft.item() == pytest.approx(1.0)
    assert terms.margin is not None
    assert terms.margin.item() == pytest.approx(1.0)
    assert terms.reward_margin is not None
    assert terms.reward_margin.item() == pytest.approx(1 - -0.25)


def test_sft_by_hand() -> None:
    terms = sft(torch.tensor([-1.0, -2.5]))
    assert terms.loss.tolist() == terms.sft.tolist() == [1.0, 2.5]
    assert terms.preference.tolist() == [0.0, 0.0]
    assert terms.margin is None


def test_logo_against_the_papers_formula_written_per_token() -> None:
    """Eq. 2 and 3 from token log-probabilities, each response normalised by its own length."""
    settings = LogoSettings(beta=10.0, gamma=3.0, sft_weight=0.1)
    for seed, lengths in enumerate([(4, 7, 2), (3, 1, 9)]):
        preferred, *others = responses = token_logprobs(lengths, seed)
        argument = 10.0 / len(preferred) * sum(preferred.tolist())
        argument -= sum(10.0 / (len(others) * len(y)) * sum(y.tolist()) for y in others) + 3.0
        preference = -math.log(1 / (1 + math.exp(-argument)))
        nll = -sum(preferred.tolist()) / len(preferred)
        terms = sample_loss(settings, responses)
        assert terms.preference.item() == pytest.approx(preference, rel=1e-12)
        assert terms.loss.item() == pytest.approx(preference + 0.1 * nll, rel=1e-12)


# Two cases of sums of log-probabilities, worked out once. y_w, y_1 and y_2 have 4, 5 and 8 tokens; M = 1 takes two of
# them. In A the short prompt orders the responses rightly, and the long one makes y_w less likely. B is the other way
# round in both.
SHORT = {"A": (-2.0, -4.0, -9.6), "B": (-6.0, -2.5, -4.8)}
LONG = {"A": (-3.2, -3.5, -8.0), "B": (-5.0, -3.0, -5.6)}
SHORT_REFERENCE = {"A": (-2.6, -3.5, -9.0), "B": (-5.4, -2.9, -5.0)}
LONG_REFERENCE = {"A": (-3.5, -3.3, -8.6), "B": (-5.2, -3.4, -5.1)}
LONG_PROMPT = {"A": -15.0, "B": -10.0}
"""Of five scored tokens."""


def responses_of(sums: tuple[float, ...], m: int) -> list[Tensor]:
    """Tokens that are equally likely, so that the sums are what is given."""
    return [double([total / length] * length) for total, length in zip(sums[: 1 + m], (4, 5, 8), strict=False)]


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (OrpoSettings(preference_weight=0.1), {"A1": 0.879250, "A2": 0.866544, "B1": 1.389356, "B2": 1.381692}),
        (IpoSettings(tau=0.5), {"A1": 0.783225, "A2": 0.891613, "B1": 1.060900, "B2": 0.924278}),
        (DpoSettings(beta=0.1), {"A1": 0.668460, "B1": 0.703197}),
        (DpoSettings(beta=0.1, sft_weight=1.0), {"A1": 1.468460, "B1": 1.953197}),  # Iterative RPO
        (DpoSettings(beta=0.15, sft_weight=0.1), {"A1": 0.736350, "B1": 0.833260}),  # LongReward
        (LogoSettings(beta=2.5, gamma=0.25, sft_weight=0.1), {"A2": 0.837599, "B2": 2.035224}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_worked_values_under_the_long_prompt(settings: ObjectiveSettings, expected: dict[str, float]) -> None:
    for (case, m), value in expected.items():
        reference = double(LONG_REFERENCE[case][: 1 + int(m)]) if settings.uses_reference else None
        terms = sample_loss(settings, responses_of(LONG[case], int(m)), reference=reference)
        assert terms.loss.item() == pytest.approx(value, abs=5e-7), (case, m)


WRAPPED: list[tuple[WrappedSettings, float, dict[str, tuple[float, float]]]] = [
    (
        SimpoSettings(beta=2.5, gamma=1.375),
        1,
        {"A1": (0.75, 1.803701), "A2": (0.75, 1.538412), "B1": (0.625, 4.520542), "B2": (0.625, 4.398421)},
    ),
    (
        DpoSettings(beta=0.1),
        3,
        {"A1": (0.03, 0.729659), "A2": (0.03, 0.727303), "B1": (0.08, 0.984397), "B2": (0.08, 0.979172)},
    ),
    (
        OrpoSettings(preference_weight=0.1),
        1,
        {
            "A1": (0.636134, 1.178618),
            "A2": (0.636134, 1.169704),
            "B1": (0.335097, 2.020210),
            "B2": (0.335097, 2.010422),
        },
    ),
    (
        LogoSettings(beta=2.5, gamma=0.25, sft_weight=0.1),
        1,
        {"A1": (0.75, 1.274077), "A2": (0.75, 1.113262), "B1": (0.625, 3.586968), "B2": (0.625, 3.469936)},
    ),
]
"""A wrapped loss, alpha, and the distance and the loss of each case and M."""
each_wrapped = pytest.mark.parametrize(
    ("settings", "alpha", "expected"), WRAPPED, ids=[settings.name for settings, _, _ in WRAPPED]
)


def solopo_terms(
    settings: WrappedSettings, alpha: float, case: str, m: int
) -> tuple[PreferenceLoss, PreferenceLoss, list[Tensor]]:
    """SoLoPO's terms, those of the wrapped loss under the short prompt, and what both are functions of."""
    responses = [response.requires_grad_() for response in responses_of(SHORT[case], m)]
    long_chosen = responses_of(LONG[case], 0)[0].requires_grad_()
    of_short = double(SHORT_REFERENCE[case][: 1 + m])
    of_both = torch.cat([of_short, double(LONG_REFERENCE[case][:1])])
    reads = settings.uses_reference
    both = sample_loss(
        SolopoSettings(loss=settings, alpha=alpha),
        responses,
        long_chosen=long_chosen,
        reference=of_both if reads else None,
    )
    return both, sample_loss(settings, responses, reference=of_short if reads else None), [*responses, long_chosen]


@each_wrapped
def test_worked_values_of_solopo(
    settings: WrappedSettings, alpha: float, expected: dict[str, tuple[float, float]]
) -> None:
    for (case, m), (distance, loss) in expected.items():
        terms, alone, _ = solopo_terms(settings, alpha, case, int(m))
        assert terms.distance is not None
        assert terms.distance.item() == pytest.approx(distance, abs=5e-7), (case, m)
        assert terms.loss.item() == pytest.approx(loss, abs=5e-7), (case, m)
        for part in ("preference", "sft", "margin"):
            torch.testing.assert_close(getattr(terms, part), getattr(alone, part), rtol=0, atol=0)


@each_wrapped
def test_solopo_without_distance_is_the_wrapped_loss_bit_for_bit(
    settings: WrappedSettings, alpha: float, expected: dict[str, tuple[float, float]]
) -> None:
    for case, m in expected:
        terms, alone, (*short, long_chosen) = solopo_terms(settings, 0.0, case, int(m))
        assert terms.loss.item() == alone.loss.item()
        *found, at_long = torch.autograd.grad(terms.loss, [*short, long_chosen])
        assert all(map(torch.equal, found, torch.autograd.grad(alone.loss, short)))
        assert at_long.abs().max() == 0


def test_gradients_of_solopo_lower_what_is_more_likely() -> None:
    """With alpha of 1 and more the distance outweighs the preference, in whichever prompt the reward is higher."""
    found = {}
    for case in "AB":
        terms, _, inputs = solopo_terms(DpoSettings(beta=0.1), 3, case, 1)
        gradients = torch.autograd.grad(terms.loss, inputs)
        found[case] = gradients[0][0].item(), gradients[-1][0].item()
    assert found["A"] == pytest.approx((0.252747, -0.3), abs=5e-7)
    assert found["B"] == pytest.approx((-0.352498, 0.3), abs=5e-7)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            "sequence",
            {
                "A1": (0.723597, 2.022222, 2.029458),
                "A2": (0.749970, 2.022222, 2.029722),
                "B1": (0.668460, 1.666667, 1.673351),
                "B2": (0.656428, 1.666667, 1.673231),
            },
        ),
        (
            "response",
            {
                "A1": (0.723597, 0.8, 0.807236),
                "A2": (0.749970, 0.8, 0.807500),
                "B1": (0.668460, 1.25, 1.256685),
                "B2": (0.656428, 1.25, 1.256564),
            },
        ),
    ],
)
def test_worked_values_of_longpo(tokens: str, expected: dict[str, tuple[float, float, float]]) -> None:
    """The policy sees the long prompt, its reference the short one."""
    settings = LongpoSettings.model_validate({"beta": 0.1, "preference_weight": 0.01, "tokens": tokens})
    for (case, m), values in expected.items():
        prompt = double([LONG_PROMPT[case] / 5] * 5) if tokens == "sequence" else None
        reference = double(SHORT_REFERENCE[case][: 1 + int(m)])
        terms = sample_loss(settings, responses_of(LONG[case], int(m)), prompt=prompt, reference=reference)
        found = terms.preference.item(), terms.sft.item(), terms.loss.item()
        assert found == pytest.approx(values, abs=5e-7), (case, m)


# What must hold for any values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_gradients_in_float64(name: str) -> None:
    chosen = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([[-1.5, -2.5], [-0.3, -1.0]], dtype=torch.float64, requires_grad=True)

    def terms(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, ...]:
        found = PREFERENCE_LOSSES[name](chosen, rejected)
        assert found.margin is not None
        assert found.loss.shape == found.preference.shape == found.sft.shape == found.margin.shape == (2,)
        return found.loss, found.preference, found.sft, found.margin

    assert torch.autograd.gradcheck(terms, (chosen, rejected))


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_samples_of_a_batch_do_not_mix(name: str) -> None:
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([[-1.5, -2.5], [-0.3, -1.0]])
    both, alone = PREFERENCE_LOSSES[name](chosen, rejected), PREFERENCE_LOSSES[name](chosen[:1], rejected[:1])
    torch.testing.assert_close(both.loss[:1], alone.loss)


@pytest.mark.parametrize(
    "settings", [LogoSettings(), SimpoSettings(), CpoSettings(), DpoSettings(), IpoSettings(), OrpoSettings()]
)
def test_order_of_dispreferred_responses_does_not_matter(settings: ObjectiveSettings) -> None:
    responses = token_logprobs((4, 7, 2, 3), seed=1)
    reference = torch.tensor([-3.0, -4.0, -5.0, -6.0], dtype=torch.float64) if settings.uses_reference else None
    order = [0, 3, 1, 2]
    plain = sample_loss(settings, responses, reference=reference)
    permuted = sample_loss(
        settings, [responses[j] for j in order], reference=None if reference is None else reference[order]
    )
    for part in ("loss", "preference", "sft", "margin"):
        torch.testing.assert_close(getattr(permuted, part), getattr(plain, part), rtol=1e-12, atol=0)


def test_logo_with_one_dispreferred_response_and_no_sft_is_simpo() -> None:
    chosen, rejected = torch.tensor([-0.7, -2.0]), torch.tensor([[-0.9], [-1.0]])
    ours = logo(chosen, rejected, beta=2.5, gamma=0.25, sft_weight=0.0)
    torch.testing.assert_close(ours.loss, simpo(chosen, rejected, beta=2.5, gamma=0.25).loss, rtol=0, atol=0)


def test_margin_is_the_same_for_every_objective() -> None:
    """So that runs of different objectives compare."""
    responses = token_logprobs((4, 7, 2), seed=2)
    expected = responses[0].mean() - (responses[1].mean() + responses[2].mean()) / 2
    for settings in (LogoSettings(), SimpoSettings(), CpoSettings(), DpoSettings(), IpoSettings(), OrpoSettings()):
        reference = torch.tensor([-3.0, -4.0, -5.0]) if settings.uses_reference else None
        terms = sample_loss(settings, responses, reference=reference)
        assert terms.margin is not None
        assert terms.margin.item() == pytest.approx(expected.item(), rel=1e-12), settings.name
        assert terms.sft.item() == pytest.approx(-responses[0].mean().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "pull"),
    # d(loss)/d(chosen) where the preferred response is hopeless: the sigmoid's slope is 1, so beta times its weight.
    [("logo", -2.0 - 0.1), ("simpo", -2.0), ("cpo", -0.5 - 0.3 / 4), ("dpo", -0.5)],
)
def test_extremes_stay_finite_with_the_right_gradients(name: str, pull: float, dtype: torch.dtype) -> None:
    loss = PREFERENCE_LOSSES[name]
    chosen = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([[-1.0, -2.0]], dtype=dtype, requires_grad=True)
    hopeless = loss(chosen, rejected).loss
    assert torch.isfinite(hopeless).all()
    at_chosen, at_rejected = torch.autograd.grad(hopeless.sum(), (chosen, rejected))
    beta = 0.5 if name in ("cpo", "dpo") else 2.0
    assert at_chosen.item() == pytest.approx(pull, rel=1e-6)
    torch.testing.assert_close(at_rejected, torch.full_like(rejected, beta / 2))

    chosen = torch.tensor([-1.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([[-1e4, -1e4]], dtype=dtype, requires_grad=True)
    won = loss(chosen, rejected)
    assert won.preference.item() == 0.0
    at_chosen, at_rejected = torch.autograd.grad(won.loss.sum(), (chosen, rejected))
    assert at_chosen.item() == pytest.approx(pull + beta, rel=1e-5, abs=1e-12)  # the sft term is all that is left
    assert at_rejected.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_of_certain_and_of_hopeless_responses_have_gradients(dtype: torch.dtype) -> None:
    for values in ([0.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [-1e4, -1.0], [-1.0, -1e4], [-1e-9, -1e-9]):
        chosen, rejected = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in values)
        loss = orpo(chosen, rejected[None], preference_weight=0.1).loss
        assert torch.isfinite(loss).all(), values
        assert all(torch.isfinite(found).all() for found in torch.autograd.grad(loss.sum(), (chosen, rejected))), values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_certain_responses_have_the_formulas_gradient(dtype: torch.dtype) -> None:
    chosen, rejected = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (-1e-4, -1.0))
    loss = orpo(chosen, rejected[None], preference_weight=0.1).loss
    certain, odds = -math.expm1(-1e-4), -1e-4 + 1.0 - math.log(-math.expm1(-1e-4)) + math.log(-math.expm1(-1.0))
    (found,) = torch.autograd.grad(loss.sum(), chosen)
    # d(log odds) / d(mean) is 1 / (1 - p), and -log sigmoid(x) falls by sigmoid(-x).
    assert found.item() == pytest.approx(-1 - 0.1 / (1 + math.exp(odds)) / certain, rel=1e-5)


# Against TRL ----------------------------------------------------------------------------------------------------------

PROMPT, VOCABULARY = 3, 11
RESPONSES = ((5, 1, 7, 2), (9, 4), (3, 3, 8))
"""Token ids: a preferred response and two dis-preferred ones of other lengths."""


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    """TRL's trainers, unmade: their loss methods are called on instances that hold settings and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that trl.experimental may change: its version is pinned
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer

    return SimpleNamespace(cpo=CPOTrainer, dpo=DPOTrainer, orpo=ORPOTrainer)


def unmade(trainer_class: type, **settings: Any) -> Any:
    trainer = object.__new__(trainer_class)
    whole = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda value: value
    )
    vars(trainer).update({"accelerator": whole, "aux_loss_enabled": False, **settings})
    return trainer


def response_logits(num_rejected: int) -> list[Tensor]:
    """[P + R_j, V] each, leaves: as if each response followed the prompt in a row of its own."""
    generator = torch.Generator().manual_seed(3)
    rows = [PROMPT + len(tokens) for tokens in RESPONSES[: 1 + num_rejected]]
    return [torch.randn(n, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_() for n in rows]


def response_logprobs(logits: list[Tensor]) -> list[Tensor]:
    """[R_j] each, by one log-softmax and one index, no mask and no shift of labels."""
    return [
        row.log_softmax(dim=-1)[range(PROMPT - 1, len(row) - 1), tokens]
        for row, tokens in zip(logits, RESPONSES, strict=False)
    ]


def trl_cpo_loss(trainer: Any, logits: list[Tensor]) -> Tensor:
    """TRL's loss of the M pairs, from its own padding, masks and log-probabilities on."""
    num_pairs = len(logits) - 1
    width = max(len(row) for row in logits)

    def side(rows: list[int]) -> dict[str, Tensor]:
        labels = torch.full((num_pairs, width), -100)
        for n, row in enumerate(rows):
            labels[n, PROMPT : PROMPT + len(RESPONSES[row])] = torch.tensor(RESPONSES[row])
        ids = labels.clamp(min=0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    chosen, rejected = side([0] * num_pairs), side(list(range(1, 1 + num_pairs)))
    batch = {f"chosen_{key}": value for key, value in chosen.items()}
    batch |= {f"rejected_{key}": value for key, value in rejected.items()}

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        rows = [logits[0]] * num_pairs + logits[1:]
        padded = [torch.nn.functional.pad(row, (0, 0, 0, input_ids.shape[1] - len(row))) for row in rows]
        return SimpleNamespace(logits=torch.stack(padded))

    loss, _ = trainer.get_batch_loss_metrics(model, batch)
    return loss  # type: ignore[no-any-return]


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours.reshape(()), theirs, rtol=1e-12, atol=0)
    assert all(gradient.abs().max() > 1e-4 for gradient in torch.autograd.grad(ours, inputs, retain_graph=True))
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize("num_rejected", [1, 2])
@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        (CpoSettings(beta=0.3, sft_weight=1.0), {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 1.0}),
        (CpoSettings(beta=0.1, sft_weight=0.4), {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.4}),
        (SimpoSettings(beta=2.0, gamma=0.7), {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_equal_to_trl_cpo(
    trl: SimpleNamespace, settings: ObjectiveSettings, theirs: dict[str, Any], num_rejected: int
) -> None:
    trainer = unmade(trl.cpo, alpha=0.0, label_smoothing=0.0, is_encoder_decoder=False, pad_token_id=0, **theirs)
    logits = response_logits(num_rejected)
    ours = sample_loss(settings, response_logprobs(logits))
    assert_equal_with_gradients(ours.loss, trl_cpo_loss(trainer, logits), logits)


def test_logo_with_one_dispreferred_response_equals_trl_cpo_simpo(trl: SimpleNamespace) -> None:
    theirs = {"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 3.0, "cpo_alpha": 0.1}
    trainer = unmade(trl.cpo, alpha=0.0, label_smoothing=0.0, is_encoder_decoder=False, pad_token_id=0, **theirs)
    logits = response_logits(1)
    ours = sample_loss(LogoSettings(beta=10.0, gamma=3.0, sft_weight=0.1), response_logprobs(logits))
    assert_equal_with_gradients(ours.loss, trl_cpo_loss(trainer, logits), logits)


@pytest.mark.parametrize("num_rejected", [1, 2])
def test_equal_to_trl_orpo_but_for_the_prompt_in_its_likelihood(trl: SimpleNamespace, num_rejected: int) -> None:
    """TRL computes the odds in float32, and its likelihood is that of prompt and response."""
    trainer = unmade(trl.orpo, beta=0.3, is_encoder_decoder=False, padding_value=0)
    logits = response_logits(num_rejected)
    ours = sample_loss(OrpoSettings(preference_weight=0.3), response_logprobs(logits))
    theirs = trl_cpo_loss(trainer, logits)
    prompt = logits[0].log_softmax(dim=-1)[range(PROMPT - 1), [0] * (PROMPT - 1)]
    whole = -torch.cat([prompt, response_logprobs(logits)[0]]).mean()
    torch.testing.assert_close((ours.loss - ours.sft + whole)[0], theirs, rtol=1e-6, atol=0)
    found, expected = (
        torch.autograd.grad(loss, logits, retain_graph=True) for loss in (theirs - whole, ours.preference)
    )
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, 0.3 * other, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "loss_type", "beta"), [(DpoSettings(beta=0.3), "sigmoid", 0.3), (IpoSettings(tau=0.2), "ipo", 0.2)]
)
@pytest.mark.parametrize("num_rejected", [1, 2])
def test_equal_to_trl_dpo(
    trl: SimpleNamespace, num_rejected: int, settings: ObjectiveSettings, loss_type: str, beta: float
) -> None:
    reference = torch.tensor([-9.0, -6.5, -8.0], dtype=torch.float64)[: 1 + num_rejected]
    trainer = unmade(
        trl.dpo,
        model=SimpleNamespace(training=True),
        beta=beta,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    logits = response_logits(num_rejected)
    rows = [0] * num_rejected + list(range(1, 1 + num_rejected))  # all chosen, then all rejected
    width = max(len(RESPONSES[row]) for row in rows)
    mask = torch.zeros(len(rows), PROMPT + width, dtype=torch.int64)
    for n, row in enumerate(rows):
        mask[n, PROMPT : PROMPT + len(RESPONSES[row])] = 1

    def model(**_: Any) -> SimpleNamespace:
        logprobs = response_logprobs(logits)
        padded = torch.stack(
            [torch.nn.functional.pad(logprobs[row], (PROMPT - 1, width - len(logprobs[row]))) for row in rows]
        )
        unused = torch.zeros_like(padded)
        return SimpleNamespace(log_probs=padded, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[[0] * num_rejected],
        "ref_rejected_logps": reference[1:],
    }
    theirs = trainer.compute_loss(model, inputs)
    ours = sample_loss(settings, response_logprobs(logits), reference=reference)
    assert_equal_with_gradients(ours.loss, theirs, logits)
    assert ours.reward_margin is not None
    if loss_type == "sigmoid":
        logged = trainer._metrics["train"] or trainer._metrics["eval"]
        assert ours.reward_margin.item() == pytest.approx(np.mean(logged["rewards/margins"]), rel=1e-6)


# The choice between them ----------------------------------------------------------------------------------------------


def token_logprobs(lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths]


@pytest.mark.parametrize("tokens", ["response", "sequence"])
def test_sft_is_cross_entropy_over_the_trained_tokens(tokens: str) -> None:
    ids = torch.tensor([6, 2, 10, *RESPONSES[0]])
    (logits,) = response_logits(0)
    labels = ids.clone()
    if tokens == "response":
        labels[:PROMPT] = -100
    expected = torch.nn.functional.cross_entropy(logits[:-1], labels[1:])

    prompt = logits.log_softmax(dim=-1)[range(PROMPT - 1), ids[1:PROMPT]]
    settings = SftSettings.model_validate({"tokens": tokens})
    terms = sample_loss(settings, response_logprobs([logits]), prompt=prompt if tokens == "sequence" else None)
    torch.testing.assert_close(terms.loss, expected[None], rtol=1e-12, atol=0)
    assert terms.margin is None


def test_a_sample_gives_one_value_of_each_part() -> None:
    for settings in (LogoSettings(), SimpoSettings(), CpoSettings(), DpoSettings(), SftSettings()):
        responses = token_logprobs((4, 7, 2) if settings.uses_rejected else (4,), seed=0)
        terms = sample_loss(settings, responses, reference=torch.zeros(3) if settings.uses_reference else None)
        assert terms.loss.shape == terms.preference.shape == terms.sft.shape == (1,)


@pytest.mark.parametrize(
    ("settings", "lengths", "inputs", "message"),
    [
        (LogoSettings(), (), {}, "empty response"),
        (LogoSettings(), (3, 0), {}, "empty response"),
        (SftSettings(), (0,), {}, "empty response"),
        (LogoSettings(), (3,), {}, "logo got 0 dis-preferred"),
        (SftSettings(), (3, 2), {}, "sft got 1 dis-preferred"),
        (SftSettings(tokens="sequence"), (3,), {}, "sft got no log-probabilities of the prompt"),
        (SftSettings(), (3,), {"prompt": torch.zeros(4)}, "sft got log-probabilities of the prompt"),
        (DpoSettings(), (3, 2), {}, "dpo got no reference"),
        (CpoSettings(), (3, 2), {"reference": torch.zeros(2)}, "cpo got reference"),
        (SolopoSettings(), (3, 2), {}, "solopo got no response under a second prompt"),
        (SolopoSettings(), (3, 2), {"long_chosen": torch.zeros(0)}, "empty response"),
        (LogoSettings(), (3, 2), {"long_chosen": torch.zeros(3)}, "logo got response under a second prompt"),
        (LongpoSettings(), (3, 2), {"prompt": torch.zeros(4)}, "longpo got no reference"),
    ],
)
def test_inputs_that_the_loss_does_not_read_are_refused(
    settings: ObjectiveSettings, lengths: tuple[int, ...], inputs: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_loss(settings, token_logprobs(lengths, seed=0), **inputs)
