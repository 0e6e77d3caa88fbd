"""The samples and the learning rate of each step, as pure functions of the step.

A resumed run therefore needs no state of a sampler or scheduler.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from logotrain.recipe.settings import TrainRecipe


class Schedule:
    """The samples and the learning rate of every step.

    All epochs together are one stream of samples, each epoch in its own random order. A step takes the next
    ``samples_per_step`` of them. No sample is dropped: a step may span two epochs, and the last step may be smaller.

    Attributes:
        stream_length: number of samples in all epochs together.
        total_steps: number of steps of the run, at most ``max_steps``.
        warmup_steps: number of steps in which the learning rate rises.
    """

    def __init__(self, recipe: TrainRecipe, num_samples: int) -> None:
        self._seed, self._num_samples = recipe.seed, num_samples
        self.stream_length = recipe.epochs * num_samples
        self._samples_per_step = recipe.samples_per_step
        self._peak, self._schedule = recipe.optimizer.lr, recipe.optimizer.schedule
        steps = math.ceil(self.stream_length / recipe.samples_per_step)
        self.total_steps = min(steps, recipe.max_steps or steps)
        self.warmup_steps = math.ceil(recipe.optimizer.warmup_ratio * self.total_steps)

    def samples(self, step: int) -> list[tuple[int, int]]:
        """Return ``(epoch, index)`` of each sample of ``step``, which counts from 0."""
        start = step * self._samples_per_step
        places = range(start, min(start + self._samples_per_step, self.stream_length))
        return [(epoch, self._order(epoch)[at]) for epoch, at in (divmod(place, self._num_samples) for place in places)]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of ``step``, which counts from 0.

        It rises linearly to the peak, then falls by a half cosine that would reach zero one step after the last.
        """
        if step < self.warmup_steps:
            return self._peak * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        match self._schedule:
            case "cosine":
                return self._peak * 0.5 * (1 + math.cos(math.pi * share))
            case "linear":
                return self._peak * (1 - share)
            case "constant":
                return self._peak

    def _order(self, epoch: int) -> tuple[int, ...]:
        return _epoch_order(self._seed, epoch, self._num_samples)


@lru_cache(maxsize=2)  # a step may span two epochs
def _epoch_order(seed: int, epoch: int, num_samples: int) -> tuple[int, ...]:
    return tuple(int(index) for index in np.random.default_rng([seed, epoch]).permutation(num_samples))
