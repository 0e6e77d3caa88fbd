"""Run what treats each token by itself, such as an MLP, over tiles of tokens (ALST, arXiv 2506.13996).

Only one tile's intermediate results are in memory at a time: in the forward pass, and in the backward pass, which
computes each tile again. Output and gradients are those of the whole row; the gradient of a weight is a sum over tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint


def run_in_tiles(module: nn.Module, tokens: int, *, compiled: bool = False) -> None:
    """Make the forward of a module run over tiles of ``tokens`` tokens.

    Args:
        module: :func:`is_per_token` says whether it can.
        tokens: number of tokens of a tile.
        compiled: whether torch.compile compiles a tile.
    """
    forward = torch.compile(module.forward) if compiled else module.forward
    module.forward = partial(_in_tiles, forward, tokens)


def run_whole(module: nn.Module) -> None:
    """Undo :func:`run_in_tiles`."""
    if isinstance(module.__dict__.get("forward"), partial):
        del module.forward


def is_per_token(forward: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> bool:
    """Return whether a call gives the same output, one tensor, for tiles of two tokens, put together.

    In all its tensors the last dimension but one counts tokens.
    """
    call, tensors = _Call.of(forward, args, kwargs)
    lengths = {tensor.shape[-2] if tensor.ndim > 1 else 0 for tensor in tensors}
    if len(lengths) != 1 or not isinstance(output, Tensor) or {*lengths} != {*output.shape[-2:-1]}:
        return False
    found = torch.cat([call(tile) for tile in zip(*(tensor.split(2, -2) for tensor in tensors), strict=True)], -2)
    # Routers and norms compute parts of a float64 model in float32.
    return found.shape == output.shape and bool((found - output).abs().max() <= 1e-5 * output.abs().max())


@dataclass(frozen=True, slots=True)
class _Call:
    """A call without its tensors, so that it keeps none alive."""

    forward: Callable[..., Any]
    others: tuple[Any, ...]
    structure: TreeSpec

    @classmethod
    def of(
        cls, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Call, list[Tensor]]:
        leaves, structure = tree_flatten((args, kwargs))
        others = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(forward, others, structure), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def __call__(self, tensors: Iterable[Tensor]) -> Any:
        given = iter(tensors)
        args, kwargs = tree_unflatten(
            [next(given) if leaf is _TENSOR else leaf for leaf in self.others], self.structure
        )
        return self.forward(*args, **kwargs)


_TENSOR = object()
"""Stands for a tensor in ``_Call.others``."""


# Compiled, it would be a graph for every number of tiles.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _in_tiles(forward: Callable[..., Tensor], tokens: int, *args: Any, **kwargs: Any) -> Tensor:
    call, tensors = _Call.of(forward, args, kwargs)
    if tensors[0].shape[-2] <= tokens:
        return forward(*args, **kwargs)
    inputs = _Inputs(tensors, tokens)
    del tensors, args, kwargs
    tiles = [
        checkpoint(_tile, call, inputs, number, use_reentrant=False, preserve_rng_state=False)
        for number in range(inputs.count)
    ]
    inputs.forward_ended()
    return torch.cat(tiles, -2)


def _tile(call: _Call, inputs: _Inputs, number: int) -> Tensor:
    return call(inputs.tile(number))


class _Inputs:
    """What all tiles read. It is saved for the backward pass before the first tile is computed.

    The recomputation of a layer ends where the last tensor is saved that the backward pass needs. If that were the
    input of the last tile, all others would be computed again for nothing."""

    def __init__(self, tensors: list[Tensor], tokens: int) -> None:
        self.tokens = tokens
        self.count = -(-tensors[0].shape[-2] // tokens)
        self._saved = _Save.apply(torch.empty(0, requires_grad=True), *tensors)
        self._tiles = self._split(tensors)
        self._left = 0  # of the tiles that the backward pass has not computed again

    def _split(self, tensors: Iterable[Tensor]) -> list[tuple[Tensor, ...]]:
        return list(zip(*(tensor.split(self.tokens, -2) for tensor in tensors), strict=True))

    def forward_ended(self) -> None:
        self._tiles = []

    def tile(self, number: int) -> tuple[Tensor, ...]:
        if not self._tiles:
            self._tiles, self._left = self._split(self._saved.grad_fn.saved_tensors), self.count
        tile = self._tiles[number]
        if self._left:
            self._left -= 1
            if not self._left:
                self._tiles = []
        return tile


class _Save(torch.autograd.Function):
    """Saves tensors for the backward pass, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> Any:
        raise AssertionError("nothing is computed from it")
