"""What bootstrap intervals share: how samples are drawn by cluster, how often, and what of the draws is the interval.

Samples that share a source (questions about one document) are not independent: whole clusters are drawn, as many as
there are, with replacement (Efron and Tibshirani 1993, chapters 8 and 13). Where every sample is its own cluster this
is the plain bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

Array = NDArray[np.float64]


def cluster_sums(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sums [K, G] and counts [G] of ``values`` [K, n] over the G clusters, in order of first appearance."""
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    columns = np.array([index[name] for name in clusters])
    sums = np.stack([np.bincount(columns, weights=row, minlength=len(index)).astype(np.float64) for row in values])
    return sums, np.bincount(columns, minlength=len(index)).astype(np.float64)


def percentile_interval(resampled: Array) -> tuple[float, float]:
    """The interval that holds :data:`CONFIDENCE` of what was resampled, [NUM_RESAMPLES], as much below it as above."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
