"""Which samples share a row, and which process computes which rows: pure functions of lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

from logotrain.rows.layout import RowLayout, SharedPrefixLayout


def attention_share(query_width: int, layer_weights: int) -> float:
    """FLOPs of attending one token over those of one token's linear layers: 4 a query feature against 2 a weight.

    Args:
        query_width: of all query heads of a layer together.
        layer_weights: of a layer's matrices.
    """
    return 2 * query_width / layer_weights


def row_cost(layouts: Sequence[SharedPrefixLayout], attention_share: float) -> float:
    """Work of a row, in tokens: a token's linear layers count one, attending one token counts ``attention_share``.

    Args:
        layouts: the samples of the row.
        attention_share: FLOPs of attending one token over those of one token's linear layers.
    """
    total = 0.0
    for layout in layouts:
        prompt = layout.prompt_length
        attended = prompt * prompt / 2 + sum(length * (prompt + length / 2) for length in layout.response_lengths)
        total += layout.total_length + attention_share * attended
    return total


def pack_rows(layouts: Sequence[SharedPrefixLayout], row_tokens: int | None) -> list[list[int]]:
    """Indices of the samples of each row, first fit in order of length; in a row and over rows in the order given.

    Args:
        layouts: one a sample.
        row_tokens: most tokens of a row; None gives every sample a row of its own.
    """
    if row_tokens is None:
        return [[index] for index in range(len(layouts))]
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(layouts)), key=lambda at: (-layouts[at].total_length, at)):
        length = layouts[index].total_length
        row = next((number for number, room in enumerate(free) if room >= length), None)
        if row is None:
            rows.append([])
            free.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= length
    return sorted(sorted(row) for row in rows)


def assign_rows(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Indices of the rows of each process, the costliest given first to the one with least to do.

    No process gets more than the rows divided evenly, rounded up: under sharding each must run as often as the others.

    Args:
        costs: one a row.
        world_size: number of processes.
    """
    most = math.ceil(len(costs) / world_size)
    assigned: list[list[int]] = [[] for _ in range(world_size)]
    load = [0.0] * world_size
    for index in sorted(range(len(costs)), key=lambda at: (-costs[at], at)):
        rank = min((rank for rank in range(world_size) if len(assigned[rank]) < most), key=lambda rank: load[rank])
        assigned[rank].append(index)
        load[rank] += costs[index]
    return [sorted(rows) for rows in assigned]


def share_rows(
    layouts: Sequence[SharedPrefixLayout],
    world_size: int,
    rank: int,
    *,
    row_tokens: int | None,
    attention_share: float,
) -> list[tuple[list[int], bool]]:
    """The rows of one process: indices of their samples, and whether they count.

    Every process gets equally many, since under sharding they compute together; where there are too few, a row that
    another process counts is repeated.
    """
    rows = pack_rows(layouts, row_tokens)
    costs = [row_cost([layouts[index] for index in row], attention_share) for row in rows]
    assigned = assign_rows(costs, world_size)
    own = [(rows[number], True) for number in assigned[rank]]
    return own + [(rows[0], False)] * (max(map(len, assigned)) - len(own))


def largest_row(layouts: Sequence[SharedPrefixLayout], row_tokens: int | None, pad_to_multiple: int) -> RowLayout:
    """The longest sample as often as a row may hold it, filled up."""
    longest = max(layouts, key=lambda layout: layout.total_length)
    length = max(longest.total_length, row_tokens or 0)
    count = length // longest.total_length
    length += -length % pad_to_multiple
    return RowLayout((longest,) * count, length - count * longest.total_length)
