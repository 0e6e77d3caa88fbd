"""Three kernels for the attention of a shared-prefix row. They differ in speed, not in result.

A prompt token attends to its prompt up to itself. A response token attends to the whole prompt of its sample and to its
own response up to itself. Where a layer has a window or chunks (:class:`logotrain.attention.variants.Reach`), it
sees only those of these tokens that are in reach.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as _sdpa

from logotrain.attention.variants import FULL, PLAIN, Reach, Variant
from logotrain.rows.layout import RowLayout

Attention = Callable[[Tensor, Tensor, Tensor, RowLayout, float | None, Variant], Tensor]
"""``attention(query [H, N, D], key [H_kv, N, D], value [H_kv, N, D_v], layout, scaling, variant)``: [H, N, D_v]. One
row of N tokens, heads first, as transformers' layers hand it over; ``scaling`` multiplies the scores, None is
D ** -0.5."""

Varlen = Callable[[Tensor, Tensor, Tensor, "Sequences", float | None, int | None], Tensor]
"""``kernel(query [T_q, H, D], key [T_k, H_kv, D], value [T_k, H_kv, D], sequences, scaling, window)``: [T_q, H, D],
causal within each pair of sequences, the last query aligned with the last key. Each query sees at most the last
``window`` keys; None is all of them."""

_BLOCK = 128
"""Queries and keys in one block of the FlexAttention mask. This is FlexAttention's default."""


def forget_rows() -> None:
    """Clear the masks and sequences cached for the layers of a row, so that fake tensors do not mix with real ones."""
    for kept in (_masks, _sequences):
        kept.cache_clear()


# SDPA: any device.
def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None, variant: Variant = PLAIN
) -> Tensor:
    """Compute the attention of a row with torch's ``scaled_dot_product_attention``, sample by sample.

    The prompt needs only the causal flag. All responses of a sample together attend to the whole sample under one
    [sum R, N_s] mask. This is 20-25 % faster than one dense mask. Query heads are grouped by the key head that they
    share; the grouping makes views and copies no keys.

    Args:
        query: [H, N, D].
        key: [H_kv, N, D].
        value: [H_kv, N, D_v].
        layout: layout of the row.
        scaling: factor on the scores; None is D ** -0.5.
        variant: any reach, with or without sinks; scores cannot be capped.

    Returns:
        [H, N, D_v].
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = (key.shape[0], query.shape[0] // key.shape[0])
    query = query.unflatten(0, groups)  # [H_kv, H / H_kv, N, D]
    value_width = value.shape[-1]
    value = pad(value, (0, key.shape[-1] - value_width))  # for narrower ones torch would keep all scores
    key, value = (states[:, None].expand(*query.shape[:3], -1) for states in (key, value))
    if variant.sinks is not None:
        query, key = _with_sink_scores(query, key, variant.sinks.view(*groups, 1, 1) / scaling)
    lengths = [*(sample.total_length for sample in layout.samples), layout.padding]
    *samples, padding = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    masks = _masks(layout, variant.reach, variant.sinks is not None, query.device)
    outputs: list[Tensor] = []
    for sample, (prompt_mask, response_mask), (q, k, v) in zip(layout.samples, masks, samples, strict=True):
        end = sample.prompt_length
        prompt_queries, response_queries = q.split([end, q.shape[2] - end], dim=2)
        for queries, count, mask in ((prompt_queries, end, prompt_mask), (response_queries, k.shape[2], response_mask)):
            keys, values = k[:, :, :count], v[:, :, :count]
            if variant.sinks is not None:
                keys, values = _with_sink_key(keys, values)
            outputs.append(_sdpa(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling))
    if layout.padding:
        q, k, v = padding
        outputs.append(_sdpa(q, k, v, is_causal=True, scale=scaling))
    return torch.cat(outputs, dim=2)[..., :value_width].flatten(0, 1)


def _with_sink_scores(query: Tensor, key: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Add a feature to queries and keys, so that the key of :func:`_with_sink_key` gets the score of its head's sink.

    A mask of floats would hold [H, N, N + 1] numbers for the same.
    """
    zeros = key.new_zeros(()).expand(*key.shape[:-1], 1)
    return torch.cat([query, scores.to(query.dtype).expand(*query.shape[:-1], 1)], -1), torch.cat([key, zeros], -1)


def _with_sink_key(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Add a key that has only the feature of sinks, with a value of zeros."""
    sink = torch.zeros_like(key[:, :, :1])
    sink[..., -1] = 1
    return torch.cat([key, sink], 2), torch.cat([value, torch.zeros_like(value[:, :, :1])], 2)


@lru_cache(maxsize=2)  # every layer of a row asks for the same ones, and models have at most two kinds of layers
def _masks(
    layout: RowLayout, reach: Reach, sinks: bool, device: torch.device
) -> tuple[tuple[Tensor | None, Tensor], ...]:
    """Return two bool masks for each sample: [P, P] of its prompt, where causality is not all, and [sum R, N_s] of the
    tokens that each response token attends to. With ``sinks`` a last column stands for the sink."""
    causal = reach == FULL and not sinks
    found: list[tuple[Tensor | None, Tensor]] = []
    for sample in layout.samples:
        attends, tokens = (
            mask_mod(RowLayout((sample,)), device, reach),
            torch.arange(sample.total_length, device=device),
        )
        prompt, responses = tokens.split([sample.prompt_length, sample.total_length - sample.prompt_length])
        # A prompt of 32K tokens would have a mask of 1 GB.
        of_prompt = None if causal else _mask(attends, prompt, prompt, sinks)
        found.append((of_prompt, _mask(attends, responses, tokens, sinks)))
    return tuple(found)


def _mask(attends: Callable[..., Tensor], queries: Tensor, keys: Tensor, sinks: bool) -> Tensor:
    return pad(attends(keys, keys, queries[:, None], keys), (0, int(sinks)), value=True)


def _places(layout: RowLayout, filling: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each token of a row the number of its sample, of its part of the sample (0 is the prompt), and its
    index in the sequence of the prompt and its response; int64 [N + filling] each. Padding and the filling after it are
    samples of their own."""
    samples = [*(sample.places for sample in layout.samples), (range(layout.padding),), (range(filling),)]
    pieces = [(number, part, len(piece)) for number, parts in enumerate(samples) for part, piece in enumerate(parts)]
    sample_of, part_of, lengths = torch.tensor(pieces).unbind(1)
    index_of = [torch.arange(piece.start, piece.stop) for parts in samples for piece in parts]
    size = layout.total_length + filling  # fake tensors cannot tell it from the lengths
    sample, part = (numbers.repeat_interleave(lengths, output_size=size) for numbers in (sample_of, part_of))
    return sample, part, torch.cat(index_of)


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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scaling: float | None,
    variant: Variant = PLAIN,
    varlen: Varlen | None = None,
) -> Tensor:
    """Compute an :data:`Attention` with two calls of a variable-length kernel, without a mask.

    The first call cuts the row into prompts, responses and padding. Its result is right for prompts and padding; the
    responses see only themselves there, and this small part is thrown away. In the second call each response has R_j
    queries, and P + R_j keys and values. A window needs no more than its length, since the kernel aligns the last query
    with the last key. Values that are narrower than keys, as in multi-head latent attention (DeepSeek V2, arXiv
    2405.04434), are widened by zeros, because the kernels take one width.

    ``variant`` may have a window, and nothing else. ``varlen`` is the kernel; None takes the one that
    :func:`varlen_kernel` found.
    """
    kernel = varlen or varlen_kernel()
    if kernel is None:
        raise ValueError("no variable-length attention kernel here")
    window = variant.reach.size if variant.reach.kind == "sliding" else None
    value_width = value.shape[-1]
    value = pad(value, (0, key.shape[-1] - value_width))
    query, key, value = (states.transpose(0, 1).contiguous() for states in (query, key, value))  # [N, H, D]
    alone, answering = _sequences(layout, query.device)
    outputs = list(kernel(query, key, value, alone, scaling, window).split(layout.pieces))
    # The parts are split and concatenated, not indexed, so that gradients are summed in a fixed order.
    queries, keys, values = (states.split(layout.pieces) for states in (query, key, value))
    answers = kernel(
        torch.cat([queries[response] for _, response in layout.pairs]),
        torch.cat([keys[piece] for pair in layout.pairs for piece in pair]),
        torch.cat([values[piece] for pair in layout.pairs for piece in pair]),
        answering,
        scaling,
        window,
    )
    for (_, response), states in zip(layout.pairs, answers.split(layout.response_lengths), strict=True):
        outputs[response] = states
    return torch.cat(outputs)[..., :value_width].transpose(0, 1)


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


def _torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None, window: int | None
) -> Tensor:
    options: dict[str, Any] = {"scale": scaling, "window_size": _window_size(window)}
    if "enable_gqa" in signature(varlen_attn).parameters:  # torch 2.11 has no such option and always groups heads
        options["enable_gqa"] = True
    output = varlen_attn(query, key, value, *sequences, **options)
    assert isinstance(output, Tensor)  # a pair only if asked for
    return output


def _flash_attn_varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None, window: int | None
) -> Tensor:
    kernel = import_module("flash_attn").flash_attn_varlen_func
    options: dict[str, Any] = {"softmax_scale": scaling, "causal": True, "window_size": _window_size(window)}
    return kernel(query, key, value, *sequences, **options)


def _window_size(window: int | None) -> tuple[int, int]:
    """Return the numbers of keys before and after a query's own that it sees; -1 is all."""
    return (-1 if window is None else window - 1, 0)


# FlexAttention: CUDA. On a CPU it has no backward pass.
def flex_row_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None, variant: Variant = PLAIN
) -> Tensor:
    """Compute the attention of a row with one call of FlexAttention and a block mask, in any float type.

    A sink takes a share of each softmax. The log-sum-exp of the call says how large it is, so the output is scaled.

    Args:
        query: [H, N, D].
        key: [H_kv, N, D].
        value: [H_kv, N, D_v].
        layout: layout of the row.
        scaling: factor on the scores; None is D ** -0.5.
        variant: any.

    Returns:
        [H, N, D_v].
    """
    attention: Any = _compiled_flex_attention() if query.is_cuda else flex_attention
    options: dict[str, Any] = {"block_mask": block_mask(layout, query.device, variant.reach), "scale": scaling}
    if variant.softcap is not None:
        options["score_mod"] = _capped(variant.softcap)
    states = (query[None], key[None], value[None])
    if variant.sinks is None:
        return attention(*states, **options, enable_gqa=True)[0]
    output, more = attention(*states, **options, enable_gqa=True, return_aux=AuxRequest(lse=True))
    share = torch.sigmoid(more.lse[0] - variant.sinks.float()[:, None])  # of the keys; the sink has the rest
    return output[0] * share[..., None].to(output.dtype)


@lru_cache(maxsize=4)  # one function, so that it is compiled once
def _capped(limit: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return cap


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


@lru_cache(maxsize=8)
def block_mask(layout: RowLayout, device: torch.device, reach: Reach = FULL) -> BlockMask:
    """Return the FlexAttention mask of a row, computed for one block of queries at a time.

    Torch's ``create_block_mask`` holds several [N, N] tensors at once; each takes 1 GB at 32K tokens.
    """
    attends = mask_mod(layout, device, reach)
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


def mask_mod(
    layout: RowLayout, device: torch.device, reach: Reach = FULL
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return ``attends(batch, head, query, key)``, which says whether token ``query`` attends to token ``key``.

    ``query`` and ``key`` are tensors of indices into the row, which broadcast; ``batch`` and ``head`` are not used.
    """
    filling = -layout.total_length % _BLOCK  # the kernels read whole blocks
    sample_of, part_of, index_of = (places.int().to(device) for places in _places(layout, filling))

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prompt_or_own_response = (part_of[key] == 0) | (part_of[key] == part_of[query])
        in_reach = reach.visible(index_of[query], index_of[key])
        return (sample_of[key] == sample_of[query]) & in_prompt_or_own_response & (key <= query) & in_reach

    return attends


# The formula: any device, for small rows.
def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None, variant: Variant = PLAIN
) -> Tensor:
    """Compute the attention of a row as the formula says, with all [H, N, N] scores in memory, in any variant.

    A small copy of a model is tried with it, and the other kernels are tested against it.
    """
    index = torch.arange(layout.total_length, device=query.device)
    mask = mask_mod(layout, query.device, variant.reach)(index, index, index[:, None], index[None])
    key, value = (states.repeat_interleave(query.shape[0] // key.shape[0], 0) for states in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if variant.softcap is not None:
        scores = _capped(variant.softcap)(scores)
    scores = scores.masked_fill(~mask, float("-inf"))
    if variant.sinks is not None:
        sinks = variant.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:2], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ value
    return scores.softmax(-1) @ value
