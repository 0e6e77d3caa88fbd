"""Sample order and learning rate as functions of the step."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from transformers import get_scheduler

from logodata.common.errors import UserError
from logotrain.recipe.settings import TrainRecipe
from logotrain.schedule import Schedule


def schedule_of(num_samples: int = 7, **values: object) -> Schedule:
    recipe = {"model": "m", "data": {"path": "d"}, "epochs": 3, "samples_per_step": 4, **values}
    return Schedule(TrainRecipe.model_validate(recipe), num_samples)


def test_every_epoch_takes_every_sample_once() -> None:
    schedule = schedule_of()
    assert schedule.total_steps == 6  # 21 samples: five steps of 4 and one of 1
    stream = [entry for step in range(schedule.total_steps) for entry in schedule.samples(step)]
    assert [len(schedule.samples(step)) for step in range(6)] == [4, 4, 4, 4, 4, 1]
    assert Counter(stream) == Counter((epoch, index) for epoch in range(3) for index in range(7))
    orders = [tuple(index for at, index in stream if at == epoch) for epoch in range(3)]
    assert len(set(orders)) == 3


def test_order_depends_on_the_seed_alone() -> None:
    assert schedule_of(seed=1).samples(0) == schedule_of(seed=1).samples(0)
    assert schedule_of(seed=1).samples(0) != schedule_of(seed=2).samples(0)


def test_max_steps_ends_the_run_and_the_learning_rate() -> None:
    schedule = schedule_of(max_steps=2, optimizer={"warmup_ratio": 0.0, "lr": 1.0})
    assert schedule.total_steps == 2
    assert [schedule.learning_rate(step) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])
    assert schedule_of(max_steps=100).total_steps == 6


def test_learning_rate_rises_over_the_warmup_and_falls_as_a_half_cosine() -> None:
    schedule = schedule_of(num_samples=40, epochs=1, samples_per_step=1, optimizer={"lr": 8.0})
    rates = [schedule.learning_rate(step) for step in range(40)]
    assert rates[:4] == pytest.approx([2.0, 4.0, 6.0, 8.0])  # 10 % of 40; the first step already moves
    assert rates[4] == pytest.approx(8.0)
    assert rates[22] == pytest.approx(4.0)
    assert rates[39] == pytest.approx(4.0 * (1 + math.cos(math.pi * 35 / 36)))
    assert all(before > after > 0 for before, after in pairwise(rates[4:]))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
def test_learning_rates_are_those_of_transformers(ours: str, theirs: str) -> None:
    """But for the warm-up, which begins one step later there: the first update has a learning rate of zero."""
    schedule = schedule_of(num_samples=40, epochs=1, samples_per_step=1, optimizer={"lr": 3.0, "schedule": ours})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    scheduler = get_scheduler(theirs, optimizer, schedule.warmup_steps, schedule.total_steps)
    expected = []
    for _ in range(schedule.total_steps):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    assert rates[: schedule.warmup_steps] == pytest.approx(expected[1 : schedule.warmup_steps + 1], rel=1e-12)
    assert rates[schedule.warmup_steps :] == pytest.approx(expected[schedule.warmup_steps :], rel=1e-12)


def test_a_floor_is_that_of_transformers() -> None:
    settings = {"lr": 3.0, "warmup_steps": 7, "min_lr_ratio": 0.2}
    schedule = schedule_of(num_samples=40, epochs=1, samples_per_step=1, optimizer=settings)
    assert schedule.warmup_steps == 7
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    rates = {"min_lr_rate": 0.2}
    scheduler = get_scheduler("cosine_with_min_lr", optimizer, 7, 40, scheduler_specific_kwargs=rates)
    for step in range(40):
        if step >= 7:
            assert schedule.learning_rate(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    linear = schedule_of(num_samples=40, epochs=1, samples_per_step=1, optimizer={**settings, "schedule": "linear"})
    assert linear.learning_rate(7) == 3.0
    assert linear.learning_rate(40) == pytest.approx(0.6)


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="the run has 6 steps, so none would be at the peak"):
        schedule_of(optimizer={"warmup_steps": 6})
    assert schedule_of(optimizer={"warmup_steps": 5}).learning_rate(5) == 5e-7


def test_one_step_is_taken_at_the_peak() -> None:
    schedule = schedule_of(max_steps=1, optimizer={"lr": 1.0})
    assert schedule.learning_rate(0) == 1.0
