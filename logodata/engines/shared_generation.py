"""Generate in batches that compute once what prompts begin with, then decode one token per step and row.

A batch runs in three parts: each prefix once, left-padded; then the suffixes of all prompts against their prefixes,
left-padded too; then one token per step and row. Attention mask and position ids are explicit throughout: pads stand
left of the prefix and between prefix and suffix, and positions count only real tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from logodata.engines import GenerationResult
from logodata.engines.batching import PrefixGroup
from logodata.engines.decoding import Choose, Row
from logodata.engines.own_generation import left_padded
from logodata.models.loading import replaced_attention
from logodata.models.text_config import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "logo_grouped_sdpa"
# below this share of unfinished rows the finished ones are removed; the copy reads as much as two steps
_COMPACT_BELOW = 0.75


def generate_shared(model: PreTrainedModel, batch: list[PrefixGroup], choose: Choose) -> Iterator[GenerationResult]:
    """Yield the responses of a batch as rows finish. What prompts of a group begin with is computed once."""
    # Other attention back ends than sdpa stay.
    is_sdpa = model.config._attn_implementation == "sdpa"
    with replaced_attention(model, _ATTENTION, _grouped_sdpa) if is_sdpa else nullcontext():
        rows = [Row(request) for group in batch for request in group.requests]
        cache, mask, logits = _prefill(model, batch)
        while True:
            for row, token in zip(rows, choose(logits, rows), strict=True):
                if row.finish_reason is None and row.take(token):
                    yield row.result
            alive = [index for index, row in enumerate(rows) if row.finish_reason is None]
            if not alive:
                return
            if len(alive) <= _COMPACT_BELOW * len(rows):
                rows = [rows[index] for index in alive]
                mask = mask[alive]
                cache.select_rows(alive)
            mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
            # A finished row that is still here repeats its last token, which is ignored.
            ids = torch.tensor([[row.last_token] for row in rows], device=model.device)
            logits = _forward(model, ids, mask, cache)


def _prefill(model: PreTrainedModel, batch: list[PrefixGroup]) -> tuple[_PreallocatedCache, Tensor, Tensor]:
    """Run all prompt tokens. Return the cache, the mask [rows, prefix + suffix] and the first logits [rows, V]."""
    requests = [request for group in batch for request in group.requests]
    owner = [index for index, group in enumerate(batch) for _ in group.requests]
    prefix_ids, prefix_mask = left_padded([group.prefix_ids for group in batch], model.device)
    suffixes = [
        request.prompt_ids[batch[index].prefix_length :] for request, index in zip(requests, owner, strict=True)
    ]
    suffix_ids, suffix_mask = left_padded(suffixes, model.device)
    prefix_width, suffix_width = prefix_ids.shape[1], suffix_ids.shape[1]
    cache = _PreallocatedCache(text_config(model.config).num_hidden_layers, prefix_width)
    if prefix_width:
        _forward(model, prefix_ids, prefix_mask, cache)
    longest_response = max(request.sampling.max_new_tokens for request in requests)
    cache.select_rows(owner, prefix_width + suffix_width + longest_response)
    mask = torch.cat((prefix_mask[owner], suffix_mask), dim=1)
    return cache, mask, _forward(model, suffix_ids, mask, cache)


@torch.inference_mode()
def _forward(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    """Append ``ids`` [B, T] to the cache; ``mask`` [B, cached + T] marks real tokens. Return the logits after the last
    token, float32 [B, V]."""
    # With a mask given, transformers does not take gaps in the positions for the borders of packed documents.
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


class _PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, each [B, kv heads, capacity, head size], written in place.

    transformers' own layer concatenates: with 12 rows of 600 tokens, its copies take half of a decode step on a CPU.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        states, start = (key_states, value_states), self.get_seq_length()
        if not self._buffers:
            self._buffers = [self._allocate(state) for state in states]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        return self._write(states, start)

    def select_rows(self, rows: Sequence[int], capacity: int) -> None:
        """Keep ``rows`` of the batch (a row may occur several times), in new buffers of ``capacity`` positions."""
        self.capacity = capacity
        if not self._buffers:
            return
        length = self.get_seq_length()
        index = torch.tensor(rows, device=self.device)
        taken = [buffer[:, :, :length].index_select(0, index) for buffer in self._buffers]
        self._buffers = [self._allocate(buffer) for buffer in taken]
        self._write(taken, 0)

    def _write(self, states: Sequence[Tensor], start: int) -> tuple[Tensor, Tensor]:
        end = start + states[0].shape[-2]
        for buffer, state in zip(self._buffers, states, strict=True):
            buffer[:, :, start:end] = state
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:2], self.capacity, like.shape[3])


class _PreallocatedCache(Cache):
    def __init__(self, num_layers: int, capacity: int) -> None:
        self._preallocated = [_PreallocatedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self._preallocated))

    @torch.inference_mode()
    def select_rows(self, rows: Sequence[int], capacity: int | None = None) -> None:
        for layer in self._preallocated:
            layer.select_rows(rows, capacity or layer.capacity)


def _grouped_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa, but for single queries do not repeat keys and values for each head of a group.

    The G query heads that share a key head become G queries: [B, H, 1, D] becomes [B, H / G, G, D]. They see the same
    keys, and a single query needs no causal mask. With a mask, transformers copies the whole cache G times per step (on
    a CPU, 12 rows of 600 tokens, G = 3: 348 ms per step, here 205).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, queries, size = query.shape
    if queries > 1 or attention_mask is None or attention_mask.shape[1] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, size)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(batch, 1, heads, value.shape[-1]), None
