"""Three kernels for the attention of a shared-prefix row. They differ in speed, not in result.

A prompt token attends to its prompt up to itself. A response token attends to the whole prompt of its sample and to its
own response up to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate, pairwise
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from logotrain.rows.layout import RowLayout

Attention = Callable[[Tensor, Tensor, Tensor, RowLayout, float | None], Tensor]
"""``attention(query [H, N, D], key [H_kv, N, D], value [H_kv, N, D_v], layout, scaling)`` returns [H, N, D_v]. It
computes a row of N tokens, heads first as in transformers. ``scaling`` is a factor on the scores; None is D ** -0.5."""

Varlen = Callable[[Tensor, Tensor, Tensor, "Sequences", float | None], Tensor]
"""``kernel(query [T_q, H, D], key [T_k, H_kv, D], value, sequences, scaling)`` returns [T_q, H, D]. It is causal within
each pair of sequences, whose last query is aligned with the last key."""

_BLOCK = 128
"""Queries and keys in one block of the FlexAttention mask. This is FlexAttention's default."""


def forget_rows() -> None:
    """Clear the masks and sequences cached for the layers of a row, so that fake tensors do not mix with real ones."""
    for kept in (_response_masks, _sequences):
        kept.cache_clear()


# SDPA: any device.
def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None) -> Tensor:
    """Compute an :data:`Attention` with torch's ``scaled_dot_product_attention``, sample by sample.

    The prompt needs only the causal flag. All responses of a sample together attend to the whole sample under one
    [sum R, N_s] mask. This is 20-25 % faster than one dense mask. Query heads are grouped by the key head that they
    share; the grouping makes views and copies no keys.
    """
    query = query.unflatten(0, (key.shape[0], -1))  # [H_kv, H / H_kv, N, D]
    key, value = (states[:, None].expand(*query.shape[:3], -1) for states in (key, value))
    lengths = [*(sample.total_length for sample in layout.samples), layout.padding]
    *samples, padding = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs: list[Tensor] = []
    for sample, mask, (q, k, v) in zip(layout.samples, _response_masks(layout, query.device), samples, strict=True):
        end = sample.prompt_length
        outputs.append(_causal(q[:, :, :end], k[:, :, :end], v[:, :, :end], scaling))
        outputs.append(scaled_dot_product_attention(q[:, :, end:], k, v, attn_mask=mask, scale=scaling))
    if layout.padding:
        q, k, v = padding
        outputs.append(_causal(q, k, v, scaling))
    return torch.cat(outputs, dim=2).flatten(0, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)


@lru_cache(maxsize=4)  # every layer of a row asks for the same ones
def _response_masks(layout: RowLayout, device: torch.device) -> tuple[Tensor, ...]:
    """Return, for each sample, a bool mask [sum R, N_s] of the tokens that each response token attends to."""
    masks: list[Tensor] = []
    for sample in layout.samples:
        mask = torch.zeros(sum(sample.response_lengths), sample.total_length, dtype=torch.bool)
        mask[:, : sample.prompt_length] = True
        for start, length in zip(sample.response_starts, sample.response_lengths, strict=True):
            row = start - sample.prompt_length
            mask[row : row + length, start : start + length] = torch.ones(length, length, dtype=torch.bool).tril()
        masks.append(mask.to(device))
    return tuple(masks)


# Flash: CUDA, bfloat16 or float16.
class Sequences(NamedTuple):
    """Pairs of query and key sequences laid end to end, in the order in which variable-length kernels take it.

    Attributes:
        query_ends, key_ends: int32 [S + 1], 0 and the end of each sequence.
        max_query, max_key: length of the longest sequence.
    """

    query_ends: Tensor
    key_ends: Tensor
    max_query: int
    max_key: int

    @staticmethod
    def of(query_lengths: tuple[int, ...], key_lengths: tuple[int, ...], device: torch.device) -> Sequences:
        def ends(lengths: tuple[int, ...]) -> Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

        return Sequences(ends(query_lengths), ends(key_lengths), max(query_lengths), max(key_lengths))


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None, varlen: Varlen | None = None
) -> Tensor:
    """Compute an :data:`Attention` with two calls of a variable-length kernel, without a mask.

    The first call cuts the row into prompts, responses and padding. Its result is right for prompts and padding; the
    responses see only themselves there, and this small part is thrown away. In the second call each response has R_j
    queries, and P + R_j keys and values.

    ``varlen`` is the kernel; None takes the one that :func:`varlen_kernel` found.
    """
    kernel = varlen or varlen_kernel()
    if kernel is None:
        raise ValueError("no variable-length attention kernel here")
    query, key, value = (states.transpose(0, 1).contiguous() for states in (query, key, value))  # [N, H, D]
    alone, answering = _sequences(layout, query.device)
    outputs = list(kernel(query, key, value, alone, scaling).split(layout.pieces))
    # The parts are split and concatenated, not indexed, so that gradients are summed in a fixed order.
    queries, keys, values = (states.split(layout.pieces) for states in (query, key, value))
    answers = kernel(
        torch.cat([queries[response] for _, response in layout.pairs]),
        torch.cat([keys[piece] for pair in layout.pairs for piece in pair]),
        torch.cat([values[piece] for pair in layout.pairs for piece in pair]),
        answering,
        scaling,
    )
    for (_, response), states in zip(layout.pairs, answers.split(layout.response_lengths), strict=True):
        outputs[response] = states
    return torch.cat(outputs).transpose(0, 1)


@lru_cache(maxsize=4)
def _sequences(layout: RowLayout, device: torch.device) -> tuple[Sequences, Sequences]:
    """Return the sequences of the first and of the second call."""
    keys = tuple(layout.pieces[prompt] + layout.pieces[response] for prompt, response in layout.pairs)
    return Sequences.of(layout.pieces, layout.pieces, device), Sequences.of(layout.response_lengths, keys, device)


@cache
def varlen_kernel() -> Varlen | None:
    """Return torch's variable-length kernel, else the one of flash-attn, else None."""
    if torch.backends.cuda.is_flash_attention_available():
        return _torch_varlen
    return _flash_attn_varlen if find_spec("flash_attn") else None


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None) -> Tensor:
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}  # causal
    if "enable_gqa" in signature(varlen_attn).parameters:  # torch 2.11 has no such option and always groups heads
        options["enable_gqa"] = True
    output = varlen_attn(query, key, value, *sequences, **options)
    assert isinstance(output, Tensor)  # a pair only if asked for
    return output


def _flash_attn_varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None
) -> Tensor:
    kernel = import_module("flash_attn").flash_attn_varlen_func
    return kernel(query, key, value, *sequences, softmax_scale=scaling, causal=True)


# FlexAttention: CUDA. On a CPU it has no backward pass.
def flex_row_attention(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None) -> Tensor:
    """Compute an :data:`Attention` with one call of FlexAttention and a block mask, in any float type."""
    attention: Any = _compiled_flex_attention() if query.is_cuda else flex_attention
    mask = block_mask(layout, query.device)
    return attention(query[None], key[None], value[None], block_mask=mask, scale=scaling, enable_gqa=True)[0]


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


@lru_cache(maxsize=4)
def block_mask(layout: RowLayout, device: torch.device) -> BlockMask:
    """Return the FlexAttention mask of a row, computed for one block of queries at a time.

    Torch's ``create_block_mask`` holds several [N, N] tensors at once; each takes 1 GB at 32K tokens.
    """
    attends = mask_mod(layout, device)
    blocks = ceil(layout.total_length / _BLOCK)
    tokens = torch.arange(blocks * _BLOCK, device=device)
    some: list[Tensor] = []
    full: list[Tensor] = []
    for queries in tokens.split(_BLOCK):
        tile = attends(tokens, tokens, queries[:, None], tokens).unflatten(1, (blocks, _BLOCK))
        some.append(tile.any(dim=2).any(dim=0))
        full.append(tile.all(dim=2).all(dim=0))
    needed, whole = torch.stack(some), torch.stack(full)  # bool [blocks, blocks]
    partial = needed & ~whole
    length = layout.total_length
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(whole), BLOCK_SIZE=_BLOCK, mask_mod=attends, seq_lengths=(length, length)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a bool [queries, keys] of blocks to the form that BlockMask takes.

    Returns:
        int32 [1, 1, queries], the number of key blocks of each query block; and int32 [1, 1, queries, keys], the
        indices of all key blocks, where these come first.
    """
    counts = blocks.sum(dim=1, dtype=torch.int32)
    order = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], order[None, None]


def mask_mod(layout: RowLayout, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return ``attends(batch, head, query, key)``, which says whether token ``query`` attends to token ``key``.

    ``query`` and ``key`` are tensors of indices into the row, which broadcast; ``batch`` and ``head`` are not used.
    """
    size = ceil(layout.total_length / _BLOCK) * _BLOCK  # the kernels read whole blocks
    sample_of, part_of = [torch.full((size,), -1, dtype=torch.int32) for _ in range(2)]
    bounds = [*layout.sample_starts, layout.used_length, layout.total_length]
    for number, (start, end) in enumerate(pairwise(bounds)):
        sample_of[start:end] = number
        part_of[start:end] = 0
    for starts, sample in zip(layout.response_starts, layout.samples, strict=True):
        for number, (start, length) in enumerate(zip(starts, sample.response_lengths, strict=True)):
            part_of[start : start + length] = 1 + number
    sample_of, part_of = sample_of.to(device), part_of.to(device)

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prompt_or_own_response = (part_of[key] == 0) | (part_of[key] == part_of[query])
        return (sample_of[key] == sample_of[query]) & in_prompt_or_own_response & (key <= query)

    return attends
