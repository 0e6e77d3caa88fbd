"""How often an interval leaves out zero where nothing differs: the share of false verdicts by number of clusters.

    python benchmarks/intervals.py --json results.json

Two runs answer the same questions, two to seven a document, right with probability 0.3 each, and each document helps
one of them a little: the true mean difference is zero. Of 95 % intervals one in twenty leaves it out. Beside the
intervals of :mod:`logoeval.intervals` (expanded percentiles) stand those cut at 2.5 and 97.5 %.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from logoeval import intervals
from logoeval.intervals import Array, estimate_difference

_NUM_CLUSTERS = (3, 6, 8, 13, 25, 50)
_NUM_GROUPS = (4, 13)
_OF_GROUPS = 6


def _plain(resampled: Array, *_: object) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def draw(num_clusters: int, num_groups: int, rng: np.random.Generator) -> dict[str, Any]:
    """Scores of two runs that do not differ, as :func:`estimate_difference` takes them."""
    before: list[float] = []
    after: list[float] = []
    clusters: list[str] = []
    groups: list[tuple[str, ...]] = []
    for group in range(num_groups):
        for cluster in range(num_clusters):
            size, help_ = int(rng.integers(2, 8)), 0.15 * rng.normal()
            before += (rng.random(size) < 0.3).astype(float).tolist()
            after += ((rng.random(size) < 0.3) + help_).tolist()
            clusters += [f"{group}-{cluster}"] * size
            groups += [(str(group),)] * size
    return {
        "before": before,
        "after": after,
        "clusters": clusters,
        "groups": groups if num_groups > 1 else None,
    }


def false_verdicts(num_clusters: int, num_groups: int, trials: int) -> dict[str, float]:
    """The share of trials whose interval leaves out zero, by kind of interval."""
    kinds: dict[str, Callable[..., tuple[float, float]]] = {"expanded": intervals.percentile_interval, "plain": _plain}
    missed = dict.fromkeys(kinds, 0)
    rng = np.random.default_rng([num_clusters, num_groups])
    for trial in range(trials):
        drawn = draw(num_clusters, num_groups, rng)
        for kind, interval in kinds.items():
            intervals.percentile_interval = interval  # type: ignore[assignment]
            low, high = estimate_difference(**drawn, seed=trial).interval or (0.0, 0.0)
            missed[kind] += not low <= 0 <= high
        intervals.percentile_interval = kinds["expanded"]  # type: ignore[assignment]
    return {kind: count / trials for kind, count in missed.items()}


def main() -> None:
    """Print a line a number of clusters, and keep all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="a number of clusters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    arguments = parser.parse_args()
    cases = [*((number, 1) for number in _NUM_CLUSTERS), *((_OF_GROUPS, groups) for groups in _NUM_GROUPS)]
    found = []
    for num_clusters, num_groups in cases:
        shares = false_verdicts(num_clusters, num_groups, arguments.trials)
        found.append({"clusters": num_clusters, "groups": num_groups, **shares})
        print(
            f"{num_clusters} clusters in each of {num_groups} groups: expanded {shares['expanded']:.1%}, "
            f"plain {shares['plain']:.1%}",
            flush=True,
        )
    if arguments.json:
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "trials": arguments.trials,
            "false_verdicts": found,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
