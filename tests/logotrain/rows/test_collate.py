"""Rows, positions and the gather index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain.recipe.objectives import RowPart
from logotrain.recipe.settings import PositionSettings
from logotrain.rows.collate import Collator, Row

Samples = Callable[..., PreferenceSample]


def collator(*, seed: int = 0, target_length: int = 500, **settings: Any) -> Collator:
    other = {name: settings.pop(name) for name in ("parts", "pad_to_multiple") if name in settings}
    return Collator(PositionSettings(**settings), target_length, seed, **other)


def row_of(*samples: PreferenceSample, epoch: int = 0, **settings: Any) -> Row:
    return collator(**settings)([(epoch, sample) for sample in samples])


def test_row_holds_prompt_once_and_responses_as_they_are(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(4, 2, 3))
    row = row_of(sample, mode="natural")
    prompt, chosen = sample.prompt_ids, sample.chosen.token_ids
    assert row.input_ids[0].tolist() == prompt + chosen + sample.rejected[0].token_ids + sample.rejected[1].token_ids
    assert chosen[-1] == 2  # the end-of-turn token survives
    assert row.layout.response_lengths == (4, 2, 3)
    assert row.layout.total_length == row.input_ids.shape[1]


def test_gather_index_predicts_each_response_token_from_the_one_before(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(3, 1, 2))
    row = row_of(sample, mode="natural")
    p = len(sample.prompt_ids)
    # By hand: chosen at p..p+2, first rejected at p+3, second at p+4..p+5; each first token comes from p-1.
    assert row.gather_index.tolist() == [p - 1, p, p + 1, p - 1, p - 1, p + 4]
    assert row.targets.tolist() == row.input_ids[0, p:].tolist()
    assert row.num_targets == ((0, 3, 1, 2),)


def test_a_scored_prompt_precedes_its_responses(make_sample: Samples) -> None:
    sample = make_sample("a", responses=(3, 1, 2))
    row = row_of(sample, mode="natural", parts=(RowPart(rejected=False, scores_prompt=True),))
    p = len(sample.prompt_ids)
    assert row.input_ids[0].tolist() == sample.prompt_ids + sample.chosen.token_ids
    assert row.gather_index.tolist() == [*range(p - 1), p - 1, p, p + 1]
    assert row.targets.tolist() == sample.prompt_ids[1:] + sample.chosen.token_ids
    assert row.num_targets == ((p - 1, 3),)


@pytest.mark.parametrize("scores_prompt", [False, True])
def test_samples_that_share_a_row_are_what_they_are_alone(make_sample: Samples, scores_prompt: bool) -> None:
    samples = [make_sample("a", responses=(3, 1, 2)), make_sample("b", responses=(2, 5), chunks=4)]
    parts = (RowPart(scores_prompt=scores_prompt),)
    together = row_of(*samples, parts=parts, pad_to_multiple=64)
    alone = [row_of(sample, parts=parts) for sample in samples]
    start, ids, positions, index = 0, [], [], []
    for row in alone:
        ids += row.input_ids[0].tolist()
        positions += row.position_ids[0].tolist()
        index += (row.gather_index + start).tolist()
        start += row.layout.total_length
    assert together.input_ids.shape == (1, 128)
    assert together.layout.padding == 128 - start
    assert together.layout.samples == (alone[0].layout.samples[0], alone[1].layout.samples[0])
    assert together.input_ids[0, :start].tolist() == ids
    assert together.position_ids[0, :start].tolist() == positions
    assert together.gather_index.tolist() == index
    assert together.targets.tolist() == [*alone[0].targets.tolist(), *alone[1].targets.tolist()]
    assert together.num_targets == (*alone[0].num_targets, *alone[1].num_targets)


@pytest.mark.parametrize("mode", ["natural", "continuous", "sparse", "mixed", "pose", "randpos"])
def test_every_response_continues_right_after_the_prompt(make_sample: Samples, mode: str) -> None:
    sample = make_sample("a", responses=(4, 2, 3))
    row = row_of(sample, mode=mode)
    positions, (starts,) = row.position_ids[0].tolist(), row.layout.response_starts
    prompt = positions[: len(sample.prompt_ids)]
    assert all(before < after for before, after in pairwise(prompt))
    for start, length in zip(starts, row.layout.response_lengths, strict=True):
        assert positions[start : start + length] == list(range(prompt[-1] + 1, prompt[-1] + 1 + length))
    assert max(positions) < 500
    assert (prompt == list(range(len(prompt)))) == (mode == "natural")


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
