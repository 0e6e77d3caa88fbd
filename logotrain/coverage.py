"""A picture of where a run's position draws fall: how evenly they cover the target, and how wide the gaps are."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logodata.positions import coverage
from logotrain.assumed import PlannedData
from logotrain.collate import Collator

_BINS = 128
_MAX_DRAWS = 512
"""Enough for an even picture; the title says how many there are."""


def draws(planned: PlannedData, collator: Collator, epochs: int) -> list[NDArray[np.int64]]:
    """Positions of the prompts of the first samples in every epoch, as training draws them."""
    samples = planned.data.samples
    if planned.assumption:  # one sample stands for all; its name decides its draw
        samples = [samples[0].model_copy(update={"id": f"assumed-{number}"}) for number in range(planned.num_samples)]
    pairs = islice(product(samples, range(epochs)), _MAX_DRAWS)
    rows = ((collator([(epoch, sample)]), len(sample.prompt_ids)) for sample, epoch in pairs)
    return [row.position_ids[0, :length].numpy() for row, length in rows]


def plot_coverage(positions: list[NDArray[np.int64]], target_length: int, path: Path, *, title: str) -> None:
    """Write a PNG of two panels: how often each stretch of [0, target_length) was drawn, and how wide gaps are.

    Args:
        positions: one array a draw, ascending.
        target_length: what they spread over.
        path: file to write.
        title: above both panels.
    """
    from matplotlib.figure import Figure

    bins = min(_BINS, target_length)
    counts = coverage(positions, target_length, bins)
    widths = np.concatenate([np.diff(drawn) - 1 for drawn in positions])
    gaps = widths[widths > 0]
    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{title}, {len(positions)} draws", fontsize=10)
    edges = np.linspace(0, target_length, bins + 1)
    left.stairs(counts * bins / (len(positions) * target_length), edges, fill=True)
    left.set(xlabel="position", ylabel="share of draws that hold it", xlim=(0, target_length), ylim=(0, None))
    if gaps.size:
        right.hist(gaps, bins=np.unique(np.geomspace(1, gaps.max() + 1, 40).astype(int)))
        right.set(xscale="log", xlabel="positions left out between neighbours", ylabel="gaps")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "no gaps", ha="center", va="center")
    figure.savefig(path, format="png", metadata={"Software": None})
