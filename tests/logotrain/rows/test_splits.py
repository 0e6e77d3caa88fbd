"""However a step is split over rows and processes, its gradient is that of the mean over its samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import AdamW

from logotrain import steps
from logotrain.attention.choice import AttentionChoice
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.interrupt import StopFlag
from logotrain.loss.logprobs import LogprobModel
from logotrain.parallel import World
from logotrain.prepare import Prepared
from logotrain.recipe.settings import PositionSettings, TrainRecipe
from logotrain.rows.collate import Collator
from tests.conftest import make_model
from tests.logotrain.conftest import sample_of
from tests.tiny_models import VOCABULARY


class OneOfMany(World):
    """A process that is alone here: its gradients are added up by the test."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag

    def add_gradients(self, parameters: Any) -> None:
        pass


@cache
def model() -> LogprobModel:
    return LogprobModel(make_model(VOCABULARY).double())


def gradient(samples: Sequence[Any], world_size: int, row_tokens: int | None) -> tuple[list[Tensor], float]:
    """Of one step, summed over the processes, and the mean of the losses that they report."""
    recipe = TrainRecipe(model="tiny", row_tokens=row_tokens, samples_per_step=len(samples))
    collator = Collator(PositionSettings(), 2000, seed=0)
    prepared = Prepared(model(), sharded=False, attention=AttentionChoice(True, "sdpa", ""), attention_share=1e-3)
    parameters = list(model().parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    losses: list[float] = []

    def keep(found: list[Tensor], _: float) -> Tensor:
        for into, parameter in zip(total, found, strict=True):
            if parameter.grad is not None:
                into += parameter.grad
        return torch.tensor(1.0)

    for rank in range(world_size):
        optimizer = AdamW(parameters, lr=0.0, weight_decay=0.0)
        run = steps.Run(recipe, OneOfMany(rank, world_size, rank), prepared, optimizer, collator, None)
        with pytest.MonkeyPatch.context() as patch, use_shared_prefix(model().causal_lm):
            patch.setattr(steps, "clip_grad_norm_", keep)
            patch.setattr(steps, "mean_metrics", lambda found: losses.extend(metrics.loss for metrics in found))
            steps.train_step(run, [(0, sample) for sample in samples], None, step=1, lr=0.0, stop=StopFlag())
    assert len(losses) == len(samples)
    return total, sum(losses) / len(losses)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6),
    world_size=st.integers(1, 4),
    row_tokens=st.none() | st.integers(60, 200),
)
def test_splits_do_not_change_the_gradient(
    lengths: list[tuple[int, int, int]], world_size: int, row_tokens: int | None
) -> None:
    samples = [sample_of(f"s{n}", responses=(a, b, 2), chunks=c) for n, (c, a, b) in enumerate(lengths)]
    expected, expected_loss = gradient(samples, 1, None)
    found, loss = gradient(samples, world_size, row_tokens)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    for ours, theirs in zip(found, expected, strict=True):
        # transformers' RMSNorm goes through float32.
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
