"""Detect while training runs that it destroys the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.common.files import read_json, write_json
from logotrain.attention.shared_prefix import attention_of
from logotrain.loss.logprobs import LogprobModel
from logotrain.parallel import World, without_backward
from logotrain.recipe.settings import CollapseSettings

NGRAM = 4
"""Length in tokens of the n-grams whose repetition is counted."""


def repetition_rate(token_ids: Sequence[int]) -> float:
    """Return the share of a text's 4-grams that occurred in it before. It is 0 for a text without 4-grams."""
    ngrams = [tuple(token_ids[at : at + NGRAM]) for at in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def measure_repetition(model: LogprobModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> float:
    """Return the mean :func:`repetition_rate` of greedy continuations of ``prompts``, at natural positions.

    Under sharding all processes must call this together; all get the same value. The model is not changed, and may be
    inside of :func:`logotrain.attention.shared_prefix.use_shared_prefix`.
    """
    device = next(model.parameters()).device
    rates = []
    # Plain attention generates, uncompiled because shapes change with every token.
    plain, eager = attention_of(model.causal_lm, model.plain_attention), torch.compiler.set_stance("force_eager")
    with plain, eager, without_backward(model):
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            rates.append(repetition_rate(model.generate(ids, max_new_tokens=max_new_tokens).tolist()))
    return sum(rates) / len(rates)


@contextmanager
def no_gradient_lost() -> Iterator[None]:
    """Make an operation without a backward pass an error within the block.

    torch only warns and then trains what comes before the operation with a wrong gradient.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered", category=UserWarning)
        yield


def check_chosen(
    settings: CollapseSettings, chosen_logp: float, step: int, *, short_chosen_logp: float | None = None
) -> None:
    """Stop the run when preferred responses have become improbable, under either prompt where there are two.

    Raises:
        UserError: their mean log-probability, in nats a token, is below ``collapse.min_chosen_logp``.
    """
    lowest = settings.min_chosen_logp
    for logp, under in ((chosen_logp, ""), (short_chosen_logp, " under the short prompt")):
        if lowest is not None and logp is not None and logp < lowest:
            found = f"preferred responses have {logp:.2f} nats a token{under}"
            raise _collapsed(f"{found}, collapse.min_chosen_logp={lowest:g}", step)


class RepetitionGuard:
    """Measures how much the model repeats itself when it continues fixed prompts, and stops the run if it is too much.

    All processes call the same methods. Without prompts nothing is measured.

    Args:
        prompts: token ids of each prompt.
        path: the file that keeps the untrained model's rate, and how it was measured, for a continued run.
        untrained: whether no step has been trained yet; then the rate is measured now.

    Raises:
        UserError: a continued run finds no rate of the untrained model, or one that was measured with other settings.
    """

    def __init__(
        self,
        settings: CollapseSettings,
        model: LogprobModel,
        prompts: Sequence[Sequence[int]],
        world: World,
        path: Path,
        *,
        untrained: bool,
    ) -> None:
        self._settings, self._model, self._prompts = settings, model, prompts
        if not prompts:
            return
        how = {"num_prompts": len(prompts), "max_new_tokens": settings.max_new_tokens}
        if untrained:
            with progress("repetition of the untrained model", 1) as bar:
                rate = self._rate()
                bar.advance()
            world.on_main(lambda: write_json(path, {"repetition": rate, **how}))
        self._base: float = world.on_main(lambda: _base_rate(path, how))

    def measure(self, step: int, *, last: bool) -> float | None:
        """Return the rate at the steps where it is due and at the last one, whose effect shows nowhere else."""
        due = last or step % self._settings.every_steps == 0
        return self._rate() if self._prompts and due else None

    def check(self, rate: float | None, step: int) -> None:
        """Stop the run if a measured rate has risen too far.

        Raises:
            UserError: see :func:`check_repetition`.
        """
        if rate is not None:
            check_repetition(self._settings, rate, self._base, step)

    def _rate(self) -> float:
        return measure_repetition(self._model, self._prompts, self._settings.max_new_tokens)


def _base_rate(path: Path, how: Mapping[str, int]) -> float:
    if not path.exists():
        raise UserError(
            "the untrained model's repetition was not measured, so there is nothing to compare with",
            where=str(path),
            mend="continue with collapse.num_prompts=0, or choose another -o",
        )
    base = read_json(path)
    for name, now in how.items():
        before = base.get(name)
        if before != now:
            raise UserError(
                f"the untrained model's repetition was measured with collapse.{name}={before}, now it is {now}",
                where=str(path),
                mend=f"continue with collapse.{name}={before}, or choose another -o",
            )
    return float(base["repetition"])


def check_repetition(settings: CollapseSettings, rate: float, base_rate: float, step: int) -> None:
    """Stop the run when the model repeats itself much more than the untrained model.

    Raises:
        UserError: ``rate`` exceeds ``base_rate`` by more than ``collapse.max_repetition``.
    """
    most = settings.max_repetition
    if most is not None and rate - base_rate > most:
        found = f"its continuations repeat {rate:.0%} of their {NGRAM}-grams, the untrained model's {base_rate:.0%}"
        raise _collapsed(f"{found}, collapse.max_repetition={most:g}", step)


def _collapsed(found: str, step: int) -> UserError:
    return UserError(
        f"the model collapsed: {found}",
        where=f"step {step}",
        mend="checkpoints from before are kept; start again in another -o with a lower optimizer.lr, "
        "or a lower beta or higher sft_weight of the objective",
    )
