from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logodata.common.errors import UserError
from logotrain.plan.coverage import coverage
from logotrain.rows.positions import PositionMode, draw_mode, draw_positions

MODES = ["natural", "continuous", "sparse", "pose", "randpos"]


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
    mode=st.sampled_from(MODES),
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
    assert positions.dtype == np.int64
    assert positions[0] >= 0
    assert (np.diff(positions) >= 1).all()
    assert positions[-1] + reserve < target
    if mode == "randpos":
        return
    if mode == "pose":
        gaps = np.diff(positions) - 1
        assert positions[0] == 0
        assert (gaps > 0).sum() <= 1
        assert gaps.sum() <= spare
        return
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


def draw_many(count: int, mode: PositionMode, length: int, *, target: int, reserve: int = 0) -> np.ndarray:
    """Positions of ``count`` draws without chunks, [count, length]."""
    rng = np.random.default_rng(0)
    return np.stack(
        [draw_positions(length, [], target_length=target, reserve=reserve, mode=mode, rng=rng) for _ in range(count)]
    )


@pytest.mark.parametrize("mode", ["pose", "randpos"])
def test_the_seed_decides_and_every_draw_differs(mode: PositionMode) -> None:
    draws = draw_many(20, mode, 50, target=5000)
    assert (draws == draw_many(20, mode, 50, target=5000)).all()
    assert len({tuple(draw) for draw in draws}) == 20


def test_randpos_takes_every_position_equally_often() -> None:
    """Also every subset: of 5 positions 2 are taken, so each of the 10 pairs comes in a tenth of the draws."""
    draws = draw_many(4000, "randpos", 64, target=1056, reserve=32)
    expected = np.full(33, 4000 * 64 / 32)
    expected[-1] = 0  # the responses'
    assert np.abs(coverage(draws, 1056, bins=33) - expected).max() < 0.05 * expected[0]
    pairs = np.unique(draw_many(4000, "randpos", 2, target=5), axis=0, return_counts=True)[1]
    assert len(pairs) == 10
    assert np.abs(pairs / 400 - 1).max() < 0.2


def test_pose_cuts_and_skips_uniformly() -> None:
    length, free = 8, 14
    draws = draw_many(6000, "pose", length, target=length + 5 + free, reserve=5)
    bias = draws[:, -1] - (length - 1)
    shares = np.bincount(bias, minlength=free + 1) * (free + 1) / len(draws)
    assert np.abs(shares - 1).max() < 0.2, "every bias in [0, free] is equally likely"
    moved = draws[bias > 0]
    cuts = np.bincount((moved == np.arange(length)).sum(axis=1), minlength=length)
    assert cuts[0] == 0, "the first token stays"
    assert np.abs(cuts[1:] * (length - 1) / len(moved) - 1).max() < 0.2


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_of_one_token_and_one_that_fills_the_target(mode: PositionMode) -> None:
    assert draw_many(5, mode, 1, target=3, reserve=2).tolist() == [[0]] * 5
    assert (draw_many(5, mode, 9, target=11, reserve=2) == np.arange(9)).all()


def test_coverage_counts_equal_stretches() -> None:
    draws = [np.array([0, 3, 4, 9]), np.array([5, 6])]
    assert coverage(draws, 10, bins=2).tolist() == [3, 3]
    assert coverage(draws, 10, bins=3).tolist() == [2, 3, 1]  # [0, 3.33), [3.33, 6.67), [6.67, 10)
    assert coverage([], 10, bins=2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="from 5 to 6, beyond 6"):
        coverage(draws[1:], 6, bins=2)


@pytest.mark.parametrize("mode", ["continuous", "sparse"])
def test_positions_cover_the_target_evenly(mode: PositionMode) -> None:
    """Over many draws every stretch of [0, K) is visited about equally often (paper section 3.3)."""
    target, length, reserve = 4096, 512, 16
    rng = np.random.default_rng(0)
    draws = (
        draw_positions(length, spans(0, 32, 16), target_length=target, reserve=reserve, mode=mode, rng=rng)
        for _ in range(400)
    )
    counts = coverage(draws, target, bins=16)
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
