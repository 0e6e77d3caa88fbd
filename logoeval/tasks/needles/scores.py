"""Score the responses: RULER's recall, and measures of exactly given numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from logodata.common.records import ABSENT, Record
from logoeval.records import Metric
from logoeval.tasks.needles.settings import NiahVariant

DEPTH_BINS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 101))
"""The depth ranges, in percent with the lower end included, by which needles at random depths are reported."""

METRICS = [
    Metric.share(
        "recall",
        "Needle recall",
        "Share of the hidden numbers that occur in the response, inside longer numbers too.",
        slice_by=["haystack", "length"],
    ),
    Metric.share(
        "precision",
        "Needle precision",
        "Share of the distinct numbers in the response that are hidden ones; 0 where it gives no number.",
    ),
    Metric(
        key="distinct_values",
        label="Distinct values found",
        explanation="How many of the hidden numbers the response gives exactly, each counted once.",
        kind="count",
        better="higher",
    ),
]


class NiahFacts(Record):
    """The facts of a sample of a needle test. ``depths`` are those of its needles in percent, ``found`` and ``seen``
    have one entry a needle; ``depth`` is that of a single needle."""

    haystack: str
    length: int
    depths: list[int]
    found: list[bool]
    depth: int | None = ABSENT
    seen: list[bool] | None = ABSENT


def score_response(response: str, values: Sequence[str]) -> dict[str, float]:
    """Return the scores of a response by key of :data:`METRICS`. ``recall`` is RULER's ``string_match_all``."""
    numbers = set(re.findall(r"\d+", response))
    exact = numbers & set(values)
    return {
        "recall": sum(value in response for value in values) / len(values),
        "precision": len(exact) / len(numbers) if numbers else 0.0,
        "distinct_values": float(len(exact)),
    }


def depth_scores(depths: Sequence[int], found: Sequence[bool]) -> dict[str, float]:
    """Return the share of found needles in each of :data:`DEPTH_BINS` that has needles, by key of its metric."""
    scores = {}
    for low, high in DEPTH_BINS:
        inside = [hit for depth, hit in zip(depths, found, strict=True) if low <= depth < high]
        if inside:
            scores[f"recall@{low}"] = sum(inside) / len(inside)
    return scores


def metrics(variant: NiahVariant) -> list[Metric]:
    """Return the metrics of a variant. Recall by depth is a slice if a sample has one depth, and separate metrics if
    its needles have several depths."""
    recall, *others = METRICS
    if variant == "single":
        by_depth = [["haystack"], ["haystack", "depth"], ["haystack", "length", "depth"]]
        return [recall.model_copy(update={"also_by": by_depth}), *others]
    bins = [
        Metric.share(
            f"recall@{low}",
            f"Needle recall, depth {low} to {min(high, 100)} %",
            "Share found of a prompt's numbers that stand in this part of the text, mean over prompts.",
            headline=False,
            slice_by=["haystack", "length"],
        )
        for low, high in DEPTH_BINS
    ]
    return [*METRICS, *bins]
