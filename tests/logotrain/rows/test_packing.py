"""Rows and processes: nothing lost, nothing doubled, work shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logodata.models.loading import load_config
from logotrain.parallel import World
from logotrain.plan.shape import model_shape
from logotrain.prepare import prepare
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from logotrain.rows.packing import assign_rows, attention_share, pack_rows, row_cost, share_rows

PARTS = st.builds(
    SharedPrefixLayout, st.integers(1, 300), st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
)
LAYOUTS = st.lists(st.lists(PARTS, min_size=1, max_size=2).map(tuple).map(RowLayout), min_size=1, max_size=24)
"""Of samples with one prompt or two."""


@given(LAYOUTS, st.integers(840, 4000) | st.none())
def test_every_sample_is_in_one_row_that_holds_it(layouts: list[RowLayout], row_tokens: int | None) -> None:
    rows = pack_rows(layouts, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(layouts)))
    lengths = [sum(layouts[index].total_length for index in row) for row in rows]
    if row_tokens is None:
        assert all(len(row) == 1 for row in rows)
    else:
        assert max(lengths) <= row_tokens
        # First fit: two rows that are less than half full would have been one.
        assert sum(length <= row_tokens / 2 for length in lengths) <= 1


@given(LAYOUTS, st.integers(1, 9), st.integers(840, 4000) | st.none())
def test_every_sample_counts_once_over_all_processes(
    layouts: list[RowLayout], world_size: int, row_tokens: int | None
) -> None:
    shares = [
        share_rows(layouts, world_size, rank, row_tokens=row_tokens, attention_share=1e-3) for rank in range(world_size)
    ]
    counted = [index for rows in shares for indices, counts in rows if counts for index in indices]
    assert sorted(counted) == list(range(len(layouts)))
    # All compute equally often, or collectives of a sharded model would wait for ever.
    assert len({len(rows) for rows in shares}) == 1
    assert len(shares[0]) == math.ceil(len(pack_rows(layouts, row_tokens)) / world_size)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=40), st.integers(1, 8))
def test_no_process_has_more_rows_than_an_even_share(costs: list[float], world_size: int) -> None:
    assigned = assign_rows(costs, world_size)
    assert sorted(index for rows in assigned for index in rows) == list(range(len(costs)))
    assert max(map(len, assigned)) <= math.ceil(len(costs) / world_size)


def test_the_costly_rows_are_spread() -> None:
    assigned = assign_rows([10, 1, 10, 1, 10, 1, 10, 1], 4)
    assert [sum([10, 1, 10, 1, 10, 1, 10, 1][index] for index in rows) for rows in assigned] == [11, 11, 11, 11]


def test_cost_counts_linear_work_and_attended_pairs() -> None:
    # By hand: 4 prompt tokens attend 8 (half of 4 x 4), 2 response tokens attend 4 and on average 1 of their own.
    assert row_cost([SharedPrefixLayout(4, (2,))], attention_share=0.5) == pytest.approx(6 + 0.5 * (8 + 2 * 5))
    assert row_cost([SharedPrefixLayout(4, (2,))] * 2, attention_share=0.5) == pytest.approx(2 * 15.0)


@pytest.mark.parametrize("fields", [{}, {"lora.train_embeddings": True, "lora.rank": 32}, {"tuning": "full"}])
def test_the_plan_and_the_run_weigh_attention_alike(
    make_recipe: Callable[..., TrainRecipe], fields: dict[str, Any]
) -> None:
    recipe = make_recipe(**fields)
    (layer,) = model_shape(load_config(recipe.model)).layers
    found = prepare(recipe, World(), Collator.of(recipe, 2048), []).attention_share
    assert found == attention_share(layer.query_width, layer.token_weights)
