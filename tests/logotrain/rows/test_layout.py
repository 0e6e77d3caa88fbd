"""Where prompts and responses lie in a row."""

from __future__ import annotations

import pytest

from logotrain.rows.layout import RowLayout, SharedPrefixLayout


def test_one_sample() -> None:
    sample = SharedPrefixLayout(5, (3, 1, 2))
    assert sample.lengths == (5, 3, 1, 2)
    assert sample.response_starts == (5, 8, 9)
    assert sample.total_length == 11


def test_a_row_of_samples_and_padding() -> None:
    row = RowLayout((SharedPrefixLayout(5, (3, 1)), SharedPrefixLayout(2, (4, 6, 1))), padding=7)
    # p p p p p | a a a | b | p p | a a a a | b b b b b b | c | padding
    assert row.sample_starts == (0, 9)
    assert row.response_starts == ((5, 8), (11, 15, 21))
    assert row.response_lengths == (3, 1, 4, 6, 1)
    assert row.pieces == (5, 3, 1, 2, 4, 6, 1, 7)
    assert row.pairs == ((0, 1), (0, 2), (3, 4), (3, 5), (3, 6))
    assert (row.used_length, row.total_length) == (22, 29)


def test_a_row_without_padding_has_no_piece_for_it() -> None:
    row = RowLayout((SharedPrefixLayout(5, (3,)),))
    assert row.pieces == (5, 3)
    assert row.total_length == row.used_length == 8


@pytest.mark.parametrize(("prompt", "responses"), [(0, (3,)), (5, ()), (5, (3, 0))])
def test_a_sample_needs_a_prompt_and_responses(prompt: int, responses: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        SharedPrefixLayout(prompt, responses)


@pytest.mark.parametrize(("samples", "padding"), [((), 3), ((SharedPrefixLayout(1, (1,)),), -1)])
def test_a_row_needs_a_sample(samples: tuple[SharedPrefixLayout, ...], padding: int) -> None:
    with pytest.raises(ValueError, match="a row needs a sample"):
        RowLayout(samples, padding)
