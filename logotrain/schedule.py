"""The samples and the learning rate of each step, as pure functions of the step.

A resumed run therefore needs no state of a sampler or scheduler.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from logodata.common.errors import UserError
from logotrain.recipe.settings import TrainRecipe


class Schedule:
    """The samples and the learning rate of every step.

    All epochs together are one stream of samples, each epoch in its own random order. A step takes the next
    ``samples_per_step`` of them. No sample is dropped: a step may span two epochs, and the last step may be smaller.

    An epoch takes ``mix_per_epoch`` of ``num_mixed`` further samples among its own. They are a stream of their own, in
    which all stand once in a random order, then all once in another, so that each is drawn as often as any other, or
    once more.

    Attributes:
        stream_length: number of samples in all epochs together.
        total_steps: number of steps of the run, at most ``max_steps``.
        warmup_steps: number of steps in which the learning rate rises.

    Raises:
        UserError: the warm-up is as long as the run.
    """

    def __init__(self, recipe: TrainRecipe, num_samples: int, *, num_mixed: int = 0, mix_per_epoch: int = 0) -> None:
        self._recipe, self._num_samples = recipe, num_samples
        self._num_mixed, self._mix_per_epoch = num_mixed, mix_per_epoch
        self.stream_length = recipe.epochs * (num_samples + mix_per_epoch)
        steps = math.ceil(self.stream_length / recipe.samples_per_step)
        self.total_steps = min(steps, recipe.max_steps or steps)
        settings = recipe.optimizer
        asked = settings.warmup_steps
        if asked is not None and 0 < self.total_steps <= asked:
            raise UserError(
                f"optimizer.warmup_steps={asked}: the run has {self.total_steps} steps, so none would be at the peak",
                mend="choose fewer, or optimizer.warmup_ratio",
            )
        self.warmup_steps = math.ceil(settings.warmup_ratio * self.total_steps) if asked is None else asked

    def samples(self, step: int) -> list[tuple[int, int]]:
        """Return ``(epoch, index)`` of each sample of ``step``, which counts from 0.

        Indices from ``num_samples`` on are those of the further samples.
        """
        size, seed = self._recipe.samples_per_step, self._recipe.seed
        places = range(step * size, min((step + 1) * size, self.stream_length))
        in_epoch = self._num_samples + self._mix_per_epoch
        draws = (divmod(place, in_epoch) for place in places)
        return [(epoch, self._sample(epoch, _epoch_order(seed, epoch, in_epoch)[at])) for epoch, at in draws]

    def _sample(self, epoch: int, place: int) -> int:
        """Return the index of the sample at a place of an epoch before it is shuffled."""
        if place < self._num_samples:
            return place
        taken, at = divmod(epoch * self._mix_per_epoch + place - self._num_samples, self._num_mixed)
        return self._num_samples + _mix_order(self._recipe.seed, taken, self._num_mixed)[at]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of ``step``, which counts from 0.

        It rises linearly to the peak, then follows ``optimizer.schedule``. A cosine and a line would reach their floor,
        ``optimizer.min_lr_ratio`` of the peak, one step after the last.
        """
        peak, floor = self._recipe.optimizer.lr, self._recipe.optimizer.min_lr_ratio
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        match self._recipe.optimizer.schedule:
            case "cosine":
                return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
            case "linear":
                return peak * (floor + (1 - floor) * (1 - share))
            case "constant":
                return peak


@lru_cache(maxsize=2)  # a step may span two epochs
def _epoch_order(seed: int, epoch: int, num_samples: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(num_samples).tolist())


@lru_cache(maxsize=8)  # a step may span two epochs, and an epoch may take few samples several times
def _mix_order(seed: int, taken: int, num_mixed: int) -> tuple[int, ...]:
    # Other draws than those of an epoch's order: its third number is 0.
    return tuple(np.random.default_rng([seed, taken, 1]).permutation(num_mixed).tolist())
