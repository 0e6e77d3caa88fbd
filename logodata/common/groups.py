"""Take items in groups whose size is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


def in_groups(items: Iterable[ItemT], *limits: tuple[Callable[[ItemT], int], int]) -> Iterator[list[ItemT]]:
    """Group items in order. A limit is a size of items, and the sum of it that ends a group: a group ends with the item
    that reaches the first of the limits."""
    group: list[ItemT] = []
    left = [limit for _, limit in limits]
    for item in items:
        group.append(item)
        left = [rest - size(item) for rest, (size, _) in zip(left, limits, strict=True)]
        if min(left) <= 0:
            yield group
            group, left = [], [limit for _, limit in limits]
    if group:
        yield group
