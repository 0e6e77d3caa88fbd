from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logodata.common.errors import UserError
from logodata.positions import PositionMode, draw_mode, draw_positions


def spans(head: int, chunk: int, count: int) -> list[tuple[int, int]]:
    return [(head + n * chunk, head + (n + 1) * chunk) for n in range(count)]


@settings(max_examples=200, deadline=None)
@given(
    head=st.integers(0, 20),
    chunk=st.integers(1, 30),
    count=st.integers(1, 20),
    tail=st.integers(0, 20),
    reserve=st.integers(0, 50),
    spare=st.integers(0, 5000),
    mode=st.sampled_from(["natural", "continuous", "sparse"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_strictly_increasing_and_under_the_target(
    head: int, chunk: int, count: int, tail: int, reserve: int, spare: int, mode: PositionMode, seed: int
) -> None:
    length = head + chunk * count + tail
    target = length + reserve + spare
    positions = draw_positions(
        length,
        spans(head, chunk, count),
        target_length=target,
        reserve=reserve,
        mode=mode,
        rng=np.random.default_rng(seed),
    )
    assert positions.shape == (length,)
    assert positions[0] >= 0
    assert (np.diff(positions) >= 1).all()
    assert positions[-1] + reserve < target
    assert (positions[:head] == np.arange(head)).all(), "what comes before the first chunk stays at the start"
    if tail:
        assert (np.diff(positions[-tail - 1 :]) == 1).all(), "the question follows the last chunk"


def test_continuous_keeps_chunks_whole_and_sparse_does_not() -> None:
    layout = spans(3, 50, 4)
    drawn = {
        mode: draw_positions(210, layout, target_length=4000, reserve=10, mode=mode, rng=np.random.default_rng(1))
        for mode in ("continuous", "sparse")
    }
    for start, end in layout:
        assert (np.diff(drawn["continuous"][start:end]) == 1).all()
        assert (np.diff(drawn["sparse"][start:end]) > 1).any()


@pytest.mark.parametrize("mode", ["continuous", "sparse"])
def test_positions_cover_the_target_evenly(mode: PositionMode) -> None:
    """Over many draws every stretch of [0, K) is visited about equally often (paper section 3.3)."""
    target, length, reserve = 4096, 512, 16
    rng = np.random.default_rng(0)
    counts = np.zeros(16)
    for _ in range(400):
        positions = draw_positions(length, spans(0, 32, 16), target_length=target, reserve=reserve, mode=mode, rng=rng)
        counts += np.histogram(positions, bins=16, range=(0, target))[0]
    share = counts / counts.sum() * 16
    assert share.min() > 0.9
    assert share.max() < 1.1


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="do not fit under target_length=100"):
        draw_positions(
            90, spans(0, 10, 9), target_length=100, reserve=11, mode="continuous", rng=np.random.default_rng(0)
        )


def test_mixture_is_nine_to_one() -> None:
    rng = np.random.default_rng(0)
    modes = [draw_mode(0.9, rng) for _ in range(4000)]
    assert abs(modes.count("continuous") / 4000 - 0.9) < 0.02
