"""Percentile bootstrap intervals of a mean and of a paired difference, resampled by cluster, seeded, in numpy.

Samples that share a source (questions about one document) are not independent: whole clusters are drawn, as many as
there are, with replacement (Efron and Tibshirani 1993, chapters 8 and 13). Where every sample is its own cluster this
is the plain bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 20_241_018
_BLOCK_ELEMENTS = 4_000_000  # draws held at a time: 32 MB of int64

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean (or a function of it) with its 95 % interval; ``interval`` is None where there is only one cluster."""

    value: float
    interval: tuple[float, float] | None
    num_samples: int
    num_clusters: int


def estimate_mean(
    values: ArrayLike, clusters: Sequence[str], *, transform: Callable[[Array], Array] = np.asarray, seed: int = _SEED
) -> Estimate:
    """``transform(mean(values))`` with its interval.

    Args:
        values: one number a sample, [n].
        clusters: the cluster of each sample, [n].
        transform: elementwise and monotone; ``np.exp`` turns a mean log-likelihood into a perplexity.
        seed: of the resampling.
    """
    sums, counts = _by_cluster(np.atleast_2d(np.asarray(values, dtype=np.float64)), clusters)
    return _estimate(transform(_means(sums, counts, seed))[:, 0], transform(sums.sum(1) / counts.sum())[0], counts)


def estimate_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str],
    *,
    transform: Callable[[Array], Array] = np.asarray,
    seed: int = _SEED,
) -> Estimate:
    """``transform(mean(after)) - transform(mean(before))`` over the same samples, with its paired interval.

    Both runs are resampled with the same draws, so what samples have in common cancels.
    """
    sums, counts = _by_cluster(
        np.stack([np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)]), clusters
    )
    resampled = transform(_means(sums, counts, seed))
    point = transform(sums.sum(1) / counts.sum())
    return _estimate(resampled[:, 1] - resampled[:, 0], point[1] - point[0], counts)


def _by_cluster(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sums [K, G] and counts [G] of ``values`` [K, n] over the G clusters, in order of first appearance."""
    if values.shape[1] != len(clusters) or not len(clusters):
        raise ValueError(f"{values.shape[1]} values for {len(clusters)} cluster names")
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    columns = np.array([index[name] for name in clusters])
    sums = np.stack([np.bincount(columns, weights=row, minlength=len(index)).astype(np.float64) for row in values])
    return sums, np.bincount(columns, minlength=len(index)).astype(np.float64)


def _means(sums: Array, counts: Array, seed: int) -> Array:
    """Means of NUM_RESAMPLES draws of G clusters, [NUM_RESAMPLES, K]."""
    rng = np.random.default_rng(seed)
    num_clusters = len(counts)
    block = max(1, _BLOCK_ELEMENTS // num_clusters)
    blocks = []
    for start in range(0, NUM_RESAMPLES, block):
        draws = rng.integers(num_clusters, size=(min(block, NUM_RESAMPLES - start), num_clusters))
        blocks.append(np.stack([row[draws].sum(1) for row in sums], axis=1) / counts[draws].sum(1, keepdims=True))
    return np.concatenate(blocks)


def _estimate(resampled: Array, value: float, counts: Array) -> Estimate:
    interval = None
    if len(counts) > 1:
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        interval = (float(low), float(high))
    return Estimate(float(value), interval, int(counts.sum()), len(counts))
