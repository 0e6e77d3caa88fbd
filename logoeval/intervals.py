"""Compute bootstrap intervals of means and paired differences, resampled by cluster with a fixed seed.

:mod:`logodata.common.resampling` describes the method.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from logodata.common.resampling import Array as Array
from logodata.common.resampling import cluster_sums, draw_sizes, percentile_interval
from logoeval.records import Metric, SampleRow, SummaryRow

_SEED = 20_241_018


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or a function of it, with its 95 % interval, which is None if a group has only one cluster. Clusters are
    counted over all groups, and in the group that has the fewest."""

    value: float
    interval: tuple[float, float] | None
    num_samples: int
    num_clusters: int
    fewest_clusters: int


def estimate_mean(
    values: ArrayLike,
    clusters: Sequence[str],
    *,
    groups: Sequence[tuple[str, ...]] | None = None,
    transform: Callable[[Array], Array] = np.asarray,
    seed: int = _SEED,
) -> Estimate:
    """Return ``transform(mean(values))`` with its interval.

    Args:
        values: one number per sample, [n].
        clusters: the cluster of each sample, [n].
        groups: the group of each sample, [n], as a tuple of names from the outermost to the innermost, such as
            (category, task). The result is then a mean of means: over the samples of each innermost group, then over
            the groups of each outer name. Each group is resampled separately.
        transform: an elementwise monotone function; ``np.exp`` turns a mean negative log-likelihood into a perplexity.
        seed: of the resampling.

    Raises:
        ValueError: there are no values, or not as many as clusters.
    """
    return _estimate(np.atleast_2d(np.asarray(values, dtype=np.float64)), clusters, groups, transform, seed)


def estimate_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str],
    *,
    groups: Sequence[tuple[str, ...]] | None = None,
    transform: Callable[[Array], Array] = np.asarray,
    seed: int = _SEED,
) -> Estimate:
    """Return ``transform(mean(after)) - transform(mean(before))`` over the same samples, with its paired interval. Both
    are resampled with the same draws, so the variation that they share cancels. For the arguments see
    :func:`estimate_mean`."""
    both = np.stack([np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)])
    return _estimate(both, clusters, groups, transform, seed)


def _estimate(
    values: Array,
    clusters: Sequence[str],
    groups: Sequence[tuple[str, ...]] | None,
    transform: Callable[[Array], Array],
    seed: int,
) -> Estimate:
    """Estimate the mean of one row of ``values`` [K, n], or of two rows the difference of the second from the first."""
    if values.shape[1] != len(clusters) or not len(clusters):
        raise ValueError(f"{values.shape[1]} values for {len(clusters)} cluster names")

    def of_rows(means: Array) -> Array:
        return means[..., 1] - means[..., 0] if len(values) > 1 else means[..., 0]

    members: dict[tuple[str, ...], list[int]] = {}
    for number, group in enumerate([()] * len(clusters) if groups is None else groups):
        members.setdefault(group, []).append(number)
    means, point = np.zeros((1, len(values))), np.zeros(len(values))
    num_clusters: list[int] = []
    variances: list[float] = []  # of what each group adds; only their ratios count
    for number, (group, columns) in enumerate(members.items()):
        sums, counts = cluster_sums(values[:, columns], [clusters[column] for column in columns])
        weight = _weight(group, members)
        # Groups of equal size must not share draws, because their errors are independent.
        rng = np.random.default_rng(seed if groups is None else [seed, number])
        added = weight * _means(sums, counts, rng)
        means = means + added
        point += weight * sums.sum(1) / counts.sum()
        num_clusters.append(len(counts))
        variances.append(1.0 if groups is None else float(of_rows(added).var()))
    fewest = min(num_clusters)
    interval = percentile_interval(of_rows(transform(means)), num_clusters, variances) if fewest > 1 else None
    value = float(of_rows(transform(point)))
    return Estimate(value, interval, len(clusters), sum(num_clusters), fewest)


def _weight(group: tuple[str, ...], groups: Collection[tuple[str, ...]]) -> float:
    """Return the weight of a group in the mean of means: at each level it is divided by the number of siblings."""
    weight = 1.0
    for level in range(len(group)):
        weight /= len({other[level] for other in groups if other[:level] == group[:level]})
    return weight


def _means(sums: Array, counts: Array, rng: np.random.Generator) -> Array:
    """Draw as many clusters as there are, NUM_RESAMPLES times, and return the means [NUM_RESAMPLES, K]."""
    num_clusters, blocks = len(counts), []
    for size in draw_sizes(num_clusters):
        draws = rng.integers(num_clusters, size=(size, num_clusters))
        blocks.append(np.stack([row[draws].sum(1) for row in sums], axis=1) / counts[draws].sum(1, keepdims=True))
    return np.concatenate(blocks)


def slices(metric: Metric, samples: Sequence[SampleRow]) -> Iterator[tuple[dict[str, object], list[SampleRow]]]:
    """Yield all samples that have the metric, then the samples of each of its slices. Bands of lengths (``words``) are
    in order from short to long, other slices in order of first appearance. A slice that holds all samples is left
    out."""
    scored = [sample for sample in samples if metric.key in sample.scores]
    if not scored:
        return
    yield {}, scored
    for names in (metric.slice_by, *metric.also_by):
        parts: dict[tuple[object, ...], list[SampleRow]] = {}
        for sample in scored:
            parts.setdefault(tuple(sample.facts[fact] for fact in names), []).append(sample)
        if "words" in names:
            parts = dict(sorted(parts.items(), key=lambda part: _band(part[0])))
        if len(parts) > 1:
            yield from ((dict(zip(names, key, strict=True)), members) for key, members in parts.items())


def _band(key: tuple[object, ...]) -> float:
    """Return the lower end of a band of lengths. A band without a number comes last."""
    begin = re.match(r"\d+", str(key[0]))
    return float(begin[0]) if begin else math.inf


def slice_label(where: Mapping[str, object]) -> str:
    """Return a slice in words, such as ``essay, 4,096 tokens, depth 22 %``."""
    words = {"length": "{:,} tokens", "depth": "depth {} %"}
    return ", ".join(words.get(fact, "{}").format(value) for fact, value in where.items())


def is_cell(where: Mapping[str, object]) -> bool:
    """Return whether a slice is one cell of a map of lengths and depths, or of tasks and lengths. There are hundreds of
    them, so tables leave them to the map and to ``results.json``."""
    return "length" in where and ("depth" in where or "task" in where)


def estimate(metric: Metric, samples: Sequence[SampleRow]) -> Estimate:
    """Return the estimate of a metric over samples that all have it."""
    return estimate_mean(
        [sample.scores[metric.key] for sample in samples],
        [sample.cluster for sample in samples],
        groups=groups(metric, samples),
        transform=metric.transform,
    )


def groups(metric: Metric, samples: Sequence[SampleRow]) -> list[tuple[str, ...]] | None:
    """Return the group of each sample if the metric is a mean of means, else None."""
    if not metric.mean_of:
        return None
    return [tuple(str(sample.facts[fact]) for fact in metric.mean_of) for sample in samples]


def summarise(metrics: Sequence[Metric], samples: Sequence[SampleRow]) -> list[SummaryRow]:
    """Return a row with value and interval for every metric and slice."""
    rows = []
    for metric in metrics:
        for where, members in slices(metric, samples):
            found = estimate(metric, members)
            low, high = found.interval or (None, None)
            counts = {"num_samples": found.num_samples, "num_clusters": found.num_clusters}
            rows.append(SummaryRow(metric=metric.key, slice=where, value=found.value, low=low, high=high, **counts))
    return rows
