"""Rows, positions and the gather index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain.collate import SharedPrefixRow, collate
from logotrain.recipe import PositionSettings

Samples = Callable[..., PreferenceSample]


def row_of(
    sample: PreferenceSample, *, seed: int = 0, epoch: int = 0, target_length: int = 500, **settings: Any
) -> SharedPrefixRow:
    return collate(sample, settings=PositionSettings(**settings), target_length=target_length, seed=seed, epoch=epoch)


def test_row_holds_prompt_once_and_responses_as_they_are(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(4, 2, 3))
    row = row_of(sample, mode="natural")
    prompt, chosen = sample.prompt_ids, sample.chosen.token_ids
    assert row.input_ids[0].tolist() == prompt + chosen + sample.rejected[0].token_ids + sample.rejected[1].token_ids
    assert chosen[-1] == 2  # the end-of-turn token survives
    assert row.layout.response_lengths == (4, 2, 3)
    assert row.layout.total_length == row.input_ids.shape[1]


def test_gather_index_predicts_each_response_token_from_the_one_before(make_sample: Samples) -> None:
    row = row_of(make_sample("a", responses=(3, 1, 2)), mode="natural")
    p = row.layout.prompt_length
    # By hand: chosen at p..p+2, first rejected at p+3, second at p+4..p+5; each first token comes from p-1.
    assert row.gather_index.tolist() == [p - 1, p, p + 1, p - 1, p - 1, p + 4]
    assert row.targets.tolist() == row.input_ids[0, p:].tolist()


@pytest.mark.parametrize("mode", ["natural", "continuous", "sparse", "mixed"])
def test_every_response_continues_right_after_the_prompt(make_sample: Samples, mode: str) -> None:
    row = row_of(make_sample("a", responses=(4, 2, 3)), mode=mode)
    positions, layout = row.position_ids[0].tolist(), row.layout
    prompt = positions[: layout.prompt_length]
    assert all(before < after for before, after in pairwise(prompt))
    for start, length in zip(layout.response_starts, layout.response_lengths, strict=True):
        assert positions[start : start + length] == list(range(prompt[-1] + 1, prompt[-1] + 1 + length))
    assert max(positions) < 500
    assert (prompt == list(range(layout.prompt_length))) == (mode == "natural")


def test_draw_depends_on_seed_epoch_and_sample_only(make_sample: Samples) -> None:
    a, b = make_sample("a"), make_sample("b")

    def positions(sample: PreferenceSample, **draw: int) -> list[int]:
        return row_of(sample, mode="continuous", **draw).position_ids[0].tolist()

    assert positions(a, seed=1, epoch=1) == positions(a, seed=1, epoch=1)
    draws = [positions(a), positions(a, seed=1), positions(a, epoch=1), positions(b)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_mixed_draws_both_kinds_in_the_share_asked_for(make_sample: Samples) -> None:
    def has_gaps_inside_chunks(sample: PreferenceSample, share: float) -> bool:
        row = row_of(sample, continuous_share=share)
        chunk = sample.chunks[-1]
        inside = row.position_ids[0, chunk.token_start : chunk.token_end].diff()
        return bool((inside > 1).any())

    samples = [make_sample(f"s{n}") for n in range(40)]
    assert not any(has_gaps_inside_chunks(sample, 1.0) for sample in samples)
    assert all(has_gaps_inside_chunks(sample, 0.0) for sample in samples)
    assert 10 <= sum(has_gaps_inside_chunks(sample, 0.5) for sample in samples) <= 30


def test_refuses_what_does_not_fit(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(5, 9))
    length = len(sample.prompt_ids) + 9
    row_of(sample, target_length=length)
    with pytest.raises(UserError, match="do not fit"):
        row_of(sample, target_length=length - 1)
