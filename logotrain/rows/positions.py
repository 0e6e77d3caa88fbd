"""Positional indices synthesis (paper section 3.3): a short row takes positions of a long one.

Pure functions of numpy arrays. ``P(i) = i + b_i`` with biases that grow along the row: positions increase strictly,
never repeat and stay under the target length; :func:`coverage` counts how many draws visit each stretch of it. The
paper's two modes place gaps by chunks: the frame before the first chunk starts at 0, what follows the last chunk
(question, response) is consecutive. The two modes that it is compared with, PoSE and RandPOS, know no chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import UserError

PositionMode = Literal["natural", "continuous", "sparse", "pose", "randpos"]


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

    *PoSE* (arXiv 2309.10400): the prompt is cut at one random place; the first piece starts at 0, the second is moved
    by a bias uniform over all free positions. Departures: no text is skipped along with the positions, an answer needs
    its whole context; the cut is uniform over the prompt, where the released code cuts in the first half only.
    *RandPOS* (arXiv 2305.16843): a sorted random subset of all positions, every subset equally likely. Departure: the
    responses, which share one prompt, follow it consecutively and are not part of the subset. Both draw anew for each
    row and leave ``reserve`` positions free, as all modes here do.

    The paper lets chunk n's bias range over the n-th budget, so the last chunk always ends near the target. Here as
    there; the row's very first chunk therefore moves by at most one budget.

    Args:
        prompt_length: tokens in the prompt, P.
        chunk_spans: ``[start, end)`` of each chunk in the prompt, in order, without overlap; read by the paper's modes.
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
    if mode == "randpos":
        return np.sort(rng.choice(target_length - reserve, size=prompt_length, replace=False, shuffle=False))
    if mode == "pose":
        if prompt_length > 1:
            positions[rng.integers(1, prompt_length) :] += rng.integers(0, free, endpoint=True)
        return positions
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
