"""A picture of where a run's position draws fall: how evenly they cover the target, and how wide the gaps are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import UserError
from logotrain.plan.assumed import PlannedData
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator

_BINS = 128
_MAX_DRAWS = 512
"""The most draws of a picture. They are enough for an even one, and its title says how many there are."""


def plot_coverage(recipe: TrainRecipe, planned: PlannedData, path: Path) -> None:
    """Write a PNG with two panels: how often each stretch of [0, target) is drawn, and how wide the gaps are.

    Raises:
        UserError: the recipe trains nothing, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    if recipe.epochs == 0:
        raise UserError("epochs=0 draws no positions", where="--plot", mend="plan a recipe that trains")
    target, drawn = planned.data.target_length, draws(recipe, planned)
    bins = min(_BINS, target)
    counts = coverage(drawn, target, bins)
    widths = np.concatenate([np.diff(positions) - 1 for positions in drawn])
    gaps = widths[widths > 0]

    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    without = ", without data.mix" if planned.data.mix else ""  # they are not drawn
    title = f"prompts' positions, positions.mode={recipe.positions.mode}, {len(drawn)} draws{without}"
    figure.suptitle(title, fontsize=10)
    left.stairs(counts * bins / (len(drawn) * target), np.linspace(0, target, bins + 1), fill=True)
    left.set(xlabel="position", ylabel="share of draws that hold it", xlim=(0, target), ylim=(0, None))
    if gaps.size:
        right.hist(gaps, bins=np.unique(np.geomspace(1, gaps.max() + 1, 40).astype(int)))
        right.set(xscale="log", xlabel="positions left out between neighbours", ylabel="gaps")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "no gaps", ha="center", va="center")
    try:
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(
            f"cannot write: {error}", where=str(path), mend="give a file in a folder that is there"
        ) from error


def draws(recipe: TrainRecipe, planned: PlannedData) -> list[NDArray[np.int64]]:
    """Return the positions of the first samples' prompts in every epoch, as training draws them, one array a draw."""
    collator = Collator.of(recipe, planned.data.target_length)
    collator = replace(collator, parts=collator.parts[-1:])  # the one with the whole prompt
    samples = planned.data.samples
    if planned.assumption:  # one sample stands for all; its name decides its draw
        samples = [samples[0].model_copy(update={"id": f"assumed-{number}"}) for number in range(planned.num_samples)]
    pairs = islice(product(samples, range(recipe.epochs)), _MAX_DRAWS)
    rows = ((collator([(epoch, sample)]), len(sample.prompt_ids)) for sample, epoch in pairs)
    return [row.position_ids[0, :length].numpy() for row, length in rows]


def coverage(draws: Iterable[NDArray[np.int64]], target_length: int, bins: int) -> NDArray[np.int64]:
    """Count the positions of ``draws`` in each of ``bins`` equal stretches of [0, target_length).

    Returns:
        int64 array [bins].

    Raises:
        ValueError: a position lies outside.
    """
    positions = np.concatenate([np.zeros(0, dtype=np.int64), *draws])
    if positions.size and not 0 <= positions.min() <= positions.max() < target_length:
        raise ValueError(f"positions reach from {positions.min()} to {positions.max()}, beyond {target_length}")
    return np.bincount(positions * bins // target_length, minlength=bins)
