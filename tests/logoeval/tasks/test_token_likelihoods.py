"""Likelihoods token by token against a forward pass for each token, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from logoeval.tasks.token_likelihoods import sliding_nlls, sliding_windows, token_nlls

NUM_TOKENS = 40
IDS = np.random.default_rng(0).integers(3, 250, NUM_TOKENS).tolist()


@pytest.fixture
def model(tiny_model: Any) -> Any:
    return tiny_model.double()


def nll_by_itself(model: Any, context: list[int], token: int) -> float:
    with torch.inference_mode():
        return -float(model(torch.tensor([context])).logits[0, -1].log_softmax(-1)[token])


def context_start(place: int, window: int, stride: int) -> int:
    """Where the window of a token begins: the first of those that end at window, window + stride, ... and hold it."""
    moves = max(0, -(-(place + 1 - window) // stride))
    return max(0, min(window + moves * stride, NUM_TOKENS) - window)


@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 3), (8, 7), (12, 5), (39, 4), (40, 7), (64, 7)])
@pytest.mark.parametrize("num_begin", [0, 1])
def test_every_token_under_its_window(model: Any, window: int, stride: int, num_begin: int) -> None:
    read: list[int] = []
    found = sliding_nlls(model, IDS, window, stride, num_begin=num_begin, on_pass=read.append)
    expected = []
    for place in range(1, NUM_TOKENS):
        start = context_start(place, window, stride)
        begin = IDS[:num_begin]
        expected.append(nll_by_itself(model, [*begin, *IDS[start + num_begin : place]], IDS[place]))
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    assert read == [min(window, NUM_TOKENS)] * len(read)


def test_stride_one_gives_each_token_all_that_its_window_holds(model: Any) -> None:
    window = 9
    found = sliding_nlls(model, IDS, window, 1)
    for place in range(1, NUM_TOKENS):
        context = IDS[place - min(place, window - 1) : place]
        assert found[place - 1] == pytest.approx(nll_by_itself(model, context, IDS[place]), rel=1e-11)


def test_windows_score_each_token_once() -> None:
    for num_tokens in range(2, 24):
        for window in range(2, 26):
            for stride in range(1, window):
                scored = []
                for end, count in sliding_windows(num_tokens, window, stride):
                    for place in range(end - count, end):
                        before = place - max(end - window, 0)
                        assert before == place if place < window else window - stride <= before <= window - 1
                        scored.append(place)
                assert scored == list(range(1, num_tokens))


def test_one_pass_equals_each_token_by_itself(model: Any) -> None:
    expected = [nll_by_itself(model, IDS[:place], IDS[place]) for place in range(1, NUM_TOKENS)]
    np.testing.assert_allclose(token_nlls(model, IDS), expected, rtol=1e-11)
    np.testing.assert_allclose(token_nlls(model, IDS, 5), expected[-5:], rtol=1e-11)
