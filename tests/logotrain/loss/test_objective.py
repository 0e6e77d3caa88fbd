"""The losses against numbers worked out by hand, the papers' formulas, and TRL's trainers."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from logotrain.loss.objective import PreferenceLoss, cpo, dpo, logo, sample_loss, sft, simpo
from logotrain.recipe.settings import (
    CpoSettings,
    DpoSettings,
    LogoSettings,
    ObjectiveSettings,
    SftSettings,
    SimpoSettings,
    uses_reference,
    uses_rejected,
)

LENGTHS = torch.tensor([4.0, 3.0]), torch.tensor([[2.0, 5.0], [1.0, 7.0]])
REFERENCE = torch.tensor([-3.0, -4.0]), torch.tensor([[-1.5, -6.0], [-2.0, -8.0]])
PREFERENCE_LOSSES: dict[str, Callable[[Tensor, Tensor], PreferenceLoss]] = {
    "logo": lambda chosen, rejected: logo(chosen, rejected, beta=2.0, gamma=0.5, sft_weight=0.1),
    "simpo": lambda chosen, rejected: simpo(chosen, rejected, beta=2.0, gamma=0.5),
    "cpo": lambda chosen, rejected: cpo(chosen, rejected, *_like(chosen, LENGTHS), beta=0.5, sft_weight=0.3),
    "dpo": lambda chosen, rejected: dpo(chosen, rejected, *_like(chosen, REFERENCE), *_like(chosen, LENGTHS), beta=0.5),
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


@pytest.mark.parametrize("settings", [LogoSettings(), SimpoSettings(), CpoSettings(), DpoSettings()])
def test_order_of_dispreferred_responses_does_not_matter(settings: ObjectiveSettings) -> None:
    responses = token_logprobs((4, 7, 2, 3), seed=1)
    reference = torch.tensor([-3.0, -4.0, -5.0, -6.0], dtype=torch.float64) if uses_reference(settings) else None
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
    for settings in (LogoSettings(), SimpoSettings(), CpoSettings(), DpoSettings()):
        reference = torch.tensor([-3.0, -4.0, -5.0]) if uses_reference(settings) else None
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
    from trl.trainer.dpo_trainer import DPOTrainer

    return SimpleNamespace(cpo=CPOTrainer, dpo=DPOTrainer)


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
def test_equal_to_trl_dpo(trl: SimpleNamespace, num_rejected: int) -> None:
    reference = torch.tensor([-9.0, -6.5, -8.0], dtype=torch.float64)[: 1 + num_rejected]
    trainer = unmade(
        trl.dpo,
        model=SimpleNamespace(training=True),
        beta=0.3,
        loss_types=["sigmoid"],
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
    ours = sample_loss(DpoSettings(beta=0.3), response_logprobs(logits), reference=reference)
    assert_equal_with_gradients(ours.loss, theirs, logits)


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
        responses = token_logprobs((4, 7, 2) if uses_rejected(settings) else (4,), seed=0)
        terms = sample_loss(settings, responses, reference=torch.zeros(3) if uses_reference(settings) else None)
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
    ],
)
def test_inputs_that_the_loss_does_not_read_are_refused(
    settings: ObjectiveSettings, lengths: tuple[int, ...], inputs: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_loss(settings, token_logprobs(lengths, seed=0), **inputs)
