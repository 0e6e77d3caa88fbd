"""Pack samples into rows and assign the rows to processes. All functions are pure functions of lengths.

A sample is given as the layout of a row of its own, with one prompt or two; it is never divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from logotrain.rows.layout import RowLayout, SharedPrefixLayout


def attention_share(query_width: int, layer_weights: int) -> float:
    """Return the FLOPs of attending to one token, divided by the FLOPs of one token's linear layers.

    Attention costs 4 FLOPs for each feature of a layer's query heads, a linear layer 2 for each of its weights.
    """
    return 2 * query_width / layer_weights


def row_cost(layouts: Sequence[SharedPrefixLayout], attention_share: float) -> float:
    """Return the cost of a row, where the linear layers of one token cost 1 (see :func:`attention_share`)."""
    total = 0.0
    for layout in layouts:
        prompt = layout.prompt_length
        attended = prompt * prompt / 2 + sum(length * (prompt + length / 2) for length in layout.response_lengths)
        total += layout.total_length + attention_share * attended
    return total


def pack_rows(layouts: Sequence[RowLayout], row_tokens: int | None) -> list[list[int]]:
    """Return the indices of the samples of each row, packed by first-fit decreasing.

    The samples of a row are in the order of ``layouts``, and so are the rows, by their first samples. A row has at most
    ``row_tokens`` tokens; None gives every sample its own row.
    """
    if row_tokens is None:
        return [[index] for index in range(len(layouts))]
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(layouts)), key=lambda at: -layouts[at].total_length):
        length = layouts[index].total_length
        row = next((number for number, room in enumerate(free) if room >= length), None)
        if row is None:
            rows.append([])
            free.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= length
    return sorted(sorted(row) for row in rows)


def count_rows(num_samples: int, layouts: Sequence[RowLayout], row_tokens: int | None) -> int:
    """Return how many rows so many samples take, if they are like those of ``layouts``. A single layout stands for
    samples of its length."""
    if len(layouts) > 1:
        return math.ceil(num_samples * len(pack_rows(layouts, row_tokens)) / len(layouts))
    return math.ceil(num_samples / max(1, (row_tokens or 0) // layouts[0].total_length))


def assign_rows(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Return the indices of the rows of each process.

    The rows are assigned from the most expensive to the cheapest, each to the process with the lowest cost so far. No
    process gets more than ``ceil(rows / world_size)``, because sharded processes must all run equally many rows.
    """
    most = math.ceil(len(costs) / world_size)
    assigned: list[list[int]] = [[] for _ in range(world_size)]
    load = [0.0] * world_size
    for index in sorted(range(len(costs)), key=lambda at: -costs[at]):
        rank = min((rank for rank in range(world_size) if len(assigned[rank]) < most), key=lambda rank: load[rank])
        assigned[rank].append(index)
        load[rank] += costs[index]
    return [sorted(rows) for rows in assigned]


def share_rows(
    layouts: Sequence[RowLayout],
    world_size: int,
    rank: int,
    *,
    row_tokens: int | None,
    attention_share: float,
) -> list[tuple[list[int], bool]]:
    """Return the rows of one process, each as the indices of its samples and whether the row counts for the loss.

    Every process gets equally many rows, because sharded processes compute together. A process with too few rows
    repeats a row that counts elsewhere; the repeated row does not count.
    """
    rows = pack_rows(layouts, row_tokens)
    costs = [row_cost([part for index in row for part in layouts[index].samples], attention_share) for row in rows]
    assigned = assign_rows(costs, world_size)
    own = [(rows[number], True) for number in assigned[rank]]
    return own + [(rows[0], False)] * (max(map(len, assigned)) - len(own))


def largest_row(layouts: Sequence[RowLayout], row_tokens: int | None, pad_to_multiple: int) -> RowLayout:
    """Return the layout of the largest row: the longest sample, as often as it fits, and the padding."""
    longest = max(layouts, key=lambda layout: layout.total_length)
    length = max(longest.total_length, row_tokens or 0)
    count = length // longest.total_length
    length += -length % pad_to_multiple
    return RowLayout(longest.samples * count, length - count * longest.total_length)
