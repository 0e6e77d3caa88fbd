"""Positional indices synthesis (paper section 3.3): a short row takes positions of a long one.

Token i gets the position ``P(i) = i + b_i``. The biases ``b_i`` never fall along the row, so positions increase
strictly, and they stay under the target length. The paper's two modes place the gaps by chunks: the tokens before the
first chunk start at position 0, the tokens after the last chunk (question, response) are consecutive. PoSE and RandPOS,
which the paper compares with, do not use the chunks. The functions work on numpy arrays and are pure.
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
    """Draw the position of every prompt token.

    Each of the N chunks has a budget of ``(target_length - prompt_length - reserve) / N`` positions. The bias of chunk
    n lies in the n-th budget, as in the paper: the first chunk moves by at most one budget, the last one always ends
    near the target.

    - *Continuous*: one bias for the whole chunk, uniform over its budget, so that gaps fall between chunks.
    - *Sparse*: one bias for each token, uniform over the budget and sorted, so that gaps fall anywhere.
    - *Natural*: no gaps.
    - *PoSE* (arXiv 2309.10400): the prompt is cut at one random place. The first piece starts at 0, the second is moved
      by a bias that is uniform over all free positions. Unlike in PoSE, no text is skipped with the positions, because
      an answer needs its whole context, and the cut is uniform over the whole prompt (PoSE's released code cuts in the
      first half only).
    - *RandPOS* (arXiv 2305.16843): a sorted random subset of all positions, all subsets equally likely. Unlike in
      RandPOS, the responses follow the prompt consecutively, because they share it.

    Args:
        prompt_length: number of tokens in the prompt, P.
        chunk_spans: ``[start, end)`` of each chunk in the prompt, in order, without overlap; read by the paper's modes.
        target_length: all positions are below this length, K.
        reserve: number of positions kept free after the prompt, for the longest response.

    Returns:
        An int64 array [P], strictly increasing, its last element below ``target_length - reserve``.

    Raises:
        UserError: the prompt and the response do not fit under the target length.
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
    # The biases of chunk n lie in [edges[n], edges[n + 1]].
    edges = np.linspace(0, free, len(chunk_spans) + 1).astype(np.int64)
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
    """Return ``continuous`` with probability ``continuous_share``, else ``sparse``. The paper mixes them 9 : 1."""
    return "continuous" if rng.random() < continuous_share else "sparse"
