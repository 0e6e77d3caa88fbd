"""Positional indices synthesis (paper section 3.3): a short row takes positions of a long one.

Pure functions of numpy arrays. ``P(i) = i + b_i`` with biases that grow along the row: positions increase strictly,
never repeat, stay under the target length, and over many draws cover it evenly. The frame before the first chunk starts
at 0; what follows the last chunk (question, response) is consecutive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import UserError

PositionMode = Literal["natural", "continuous", "sparse"]


def draw_positions(
    prompt_length: int,
    chunk_spans: Sequence[tuple[int, int]],
    *,
    target_length: int,
    reserve: int,
    mode: PositionMode,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Position of every prompt token.

    Each of the N chunks owns an expansion budget of ``(target_length - prompt_length - reserve) / N``. *Continuous*:
    one bias for the whole chunk, uniform over its budget, so that gaps fall between chunks. *Sparse*: one bias a token,
    uniform over the budget and sorted, so that gaps fall anywhere. *Natural*: no gaps.

    The paper lets chunk n's bias range over the n-th budget, so the last chunk always ends near the target. Here as
    there; the row's very first chunk therefore moves by at most one budget.

    Args:
        prompt_length: tokens in the prompt, P.
        chunk_spans: ``[start, end)`` of each chunk in the prompt, in order, without overlap.
        target_length: positions stay under it, K.
        reserve: positions kept free after the prompt, for the longest response.
        mode: how gaps are placed.
        rng: source of the biases.

    Returns:
        int64 array [P], strictly increasing, last element < target_length - reserve.

    Raises:
        UserError: prompt and response do not fit under the target.
    """
    free = target_length - reserve - prompt_length
    if free < 0:
        raise UserError(
            f"{prompt_length} prompt and {reserve} response tokens do not fit under target_length={target_length}",
            mend="raise positions.target_length or build shorter contexts",
        )
    positions = np.arange(prompt_length, dtype=np.int64)
    if mode == "natural" or not chunk_spans:
        return positions
    biases = np.zeros(prompt_length, dtype=np.int64)
    edges = np.linspace(0, free, len(chunk_spans) + 1).astype(
        np.int64
    )  # chunk n's biases lie in [edges[n], edges[n + 1]]
    for n, (start, end) in enumerate(chunk_spans):
        low, high = int(edges[n]), int(edges[n + 1])
        if mode == "continuous":
            biases[start:end] = rng.integers(low, high, endpoint=True)
        else:
            biases[start:end] = np.sort(rng.integers(low, high, size=end - start, endpoint=True))
        following = chunk_spans[n + 1][0] if n + 1 < len(chunk_spans) else prompt_length
        biases[end:following] = biases[end - 1]
    return positions + biases


def draw_mode(continuous_share: float, rng: np.random.Generator) -> PositionMode:
    """``continuous`` with probability ``continuous_share`` (the paper mixes 9 : 1), else ``sparse``."""
    return "continuous" if rng.random() < continuous_share else "sparse"
