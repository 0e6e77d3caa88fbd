"""The common parts of bootstrap intervals: how samples are drawn by cluster, how often, and which draws bound the
interval.

Samples that share a source (questions about one document) are not independent. So whole clusters are drawn with
replacement, as many as there are (Efron and Tibshirani 1993, chapters 8 and 13). If every sample is its own cluster,
this is the plain bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

_BLOCK_ELEMENTS = 4_000_000
"""The number of draws in memory at a time, 32 MB."""

Array = NDArray[np.float64]


def cluster_sums(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Return sums [K, G] and counts [G] of ``values`` [K, n] over the G clusters, in order of first appearance."""
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    columns = np.array([index[name] for name in clusters])
    sums = np.stack([np.bincount(columns, weights=row, minlength=len(index)).astype(np.float64) for row in values])
    return sums, np.bincount(columns, minlength=len(index)).astype(np.float64)


def draw_sizes(num_clusters: int) -> Iterator[int]:
    """Yield how many draws of ``num_clusters`` clusters to hold in memory at a time; together NUM_RESAMPLES."""
    block = max(1, _BLOCK_ELEMENTS // num_clusters)
    for start in range(0, NUM_RESAMPLES, block):
        yield min(block, NUM_RESAMPLES - start)


def mean_interval(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean, or None if there are less than two clusters. The seed is fixed."""
    [sums], counts = cluster_sums(np.array([values], dtype=np.float64), clusters)
    number = len(counts)
    if number < 2:
        return None
    rng, means = np.random.default_rng(0), []
    for size in draw_sizes(number):
        draws = rng.multinomial(number, [1 / number] * number, size=size)
        means.append((draws @ sums) / (draws @ counts))
    return percentile_interval(np.concatenate(means), [number])


def percentile_interval(
    resampled: Array, num_clusters: Sequence[int], variances: Sequence[float] = (1.0,)
) -> tuple[float, float]:
    """Return the 95 % interval of a resampled statistic, by expanded percentiles (Hesterberg 2015, *What Teachers
    Should Know About the Bootstrap*, The American Statistician 69(4)).

    Cut at 2.5 % on either side, the interval is too short where clusters are few: the bootstrap's variance has the
    divisor G instead of G - 1, and ignores that it is an estimate. So the cuts are where a normal statistic has its
    mean plus and minus Student's t times the standard error. For several groups that are resampled separately, the
    degrees of freedom are Welch and Satterthwaite's.

    Args:
        resampled: The statistic in each draw, float64 [NUM_RESAMPLES].
        num_clusters: G of each group, 2 or more.
        variances: The variance over the draws of what each group adds to the statistic; only their ratios count.
    """
    from scipy.special import ndtr, stdtrit  # half a second, which settings and completion need not wait for

    spread, counts = np.asarray(variances, dtype=np.float64), np.asarray(num_clusters, dtype=np.float64)
    unbiased = spread * counts / (counts - 1)
    if not unbiased.sum():  # all draws are equal
        return float(resampled.min()), float(resampled.max())
    freedom = unbiased.sum() ** 2 / (unbiased**2 / (counts - 1)).sum()
    quantile = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(unbiased.sum() / spread.sum())
    low, high = np.quantile(resampled, [ndtr(-quantile), ndtr(quantile)])
    return float(low), float(high)
