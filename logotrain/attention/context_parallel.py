"""Several processes compute one row together: each holds a slice of its tokens, and attends for a share of the heads.

Everything but attention is per token, so a process needs nothing of the others there. Before the attention an
all-to-all exchange turns all heads of a slice of the tokens into a share of the heads of all tokens, and after it one
turns the output back (DeepSpeed-Ulysses, arXiv 2309.14509). The attention sees whole rows and needs not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """The processes that compute one row together, as one of them sees it. A group of one needs no process group.

    Attributes:
        rank: number of this process in the group.
        size: number of processes, C.
    """

    rank: int = 0
    size: int = 1
    processes: ProcessGroup | None = None

    def own(self, length: int) -> slice:
        """Return which of ``length`` tokens (or heads) are this process's.

        Raises:
            ValueError: C does not divide their number.
        """
        if length % self.size:
            raise ValueError(f"{length} cannot be split evenly over {self.size} processes")
        length //= self.size
        return slice(self.rank * length, (self.rank + 1) * length)

    def gather(self, own: Tensor, places: Tensor | slice, length: int) -> Tensor:
        """Put together what each process has of a tensor, and return the whole on all of them.

        All processes go on to compute the same from it, so the gradient of a part is that part of the gradient.

        Args:
            own: [n, ...], this process's entries of the whole.
            places: their indices in it; no two processes have the same.
            length: number of entries of the whole.
        """
        if self.size == 1:
            return own
        whole = own.new_zeros(length, *own.shape[1:])
        whole[places] = own
        gathered: Tensor = _Sum.apply(whole, self.processes)
        return gathered


ALONE = ContextGroup()


def context_group(size: int, timeout: timedelta | None = None) -> ContextGroup:
    """Return this process's group, where the first ``size`` processes of the run are one, the next ``size`` another.

    All processes of the run call this, and ``size`` divides their number. ``timeout`` is the longest time that one
    waits for the others; None is torch's.
    """
    if size == 1:
        return ALONE
    processes, _ = distributed.new_subgroups(group_size=size, timeout=timeout)
    return ContextGroup(distributed.get_rank(processes), size, processes)


def attend_by_heads(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    group: ContextGroup,
) -> Tensor:
    """Compute the attention of a row whose tokens are split over a group.

    A process computes h = ceil(H / C) heads. Where C does not divide H_kv, each key and value head is repeated for all
    who need it. Where C does not divide H, that is every query head, and heads of zeros fill the last processes up.

    Args:
        attend: computes it for whole rows: of queries [h, N, D], keys, values and sinks [h].
        query: [H, N / C, D], of this process's tokens.
        key: [H_kv, N / C, D].
        value: [H_kv, N / C, D_v].
        sinks: [H].

    Returns:
        [H, N / C, D_v].
    """
    if group.size == 1:
        return attend(query, key, value, sinks)
    heads = query.shape[0]
    filling = -heads % group.size
    repeats = heads // key.shape[0] if filling else group.size // math.gcd(key.shape[0], group.size)
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=0) for states in (key, value))
    if filling:
        query, key, value = (pad(states, (0, 0, 0, 0, 0, filling)) for states in (query, key, value))
        sinks = None if sinks is None else pad(sinks, (0, filling))
    query, key, value = (_heads_of_all_tokens(states, group) for states in (query, key, value))
    output = attend(query, key, value, None if sinks is None else sinks[group.own(heads + filling)])  # [h, N, D_v]
    by_tokens = output.unflatten(1, (group.size, -1)).transpose(0, 1)  # [C, h, N / C, D_v]
    return _exchange(by_tokens, group).flatten(0, 1)[:heads]


def _heads_of_all_tokens(states: Tensor, group: ContextGroup) -> Tensor:
    """Turn all heads of this process's tokens, [C h, N / C, D], into its heads of all tokens, [h, N, D]."""
    by_heads = states.unflatten(0, (group.size, -1))  # [C, h, N / C, D]
    return _exchange(by_heads, group).transpose(0, 1).flatten(1, 2)


def _exchange(parts: Tensor, group: ContextGroup) -> Tensor:
    """Send part c of [C, ...] to process c, and return what each process c sends to this one, [C, ...]."""
    received: Tensor = _AllToAll.apply(parts, group.processes)
    return received


class _AllToAll(torch.autograd.Function):
    """torch's own differentiable one is deprecated (2.13), and its successor is private."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, processes: ProcessGroup) -> Tensor:
        ctx.processes = processes
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        distributed.all_to_all_single(received, parts, group=processes)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(gradient, ctx.processes), None


class _Sum(torch.autograd.Function):
    """The sum over a group, from which all of it compute the same, so that each process needs only its own gradient."""

    @staticmethod
    def forward(_ctx: Any, own: Tensor, processes: ProcessGroup) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total, group=processes)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
