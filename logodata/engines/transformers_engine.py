"""Generate with transformers, on any device: one prefill per shared prefix, then batched decoding.

A batch runs in three parts: each prefix once, left-padded; then the suffixes of all prompts against their prefixes,
left-padded too; then one token per step and row. Attention mask and position ids are explicit throughout: pads stand
left of the prefix and between prefix and suffix, and positions count only real tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from logodata.common.errors import UserError
from logodata.common.finite import DAMAGED
from logodata.engines import FinishReason, GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import PrefixGroup, check_requests, plan_batches, request_seed
from logodata.engines.settings import EngineSettings
from logodata.models.facts import length_dependent_rope, limited_attention
from logodata.models.loading import replaced_attention
from logodata.models.text_config import config_window, text_config
from logodata.models.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTION = "logo_grouped_sdpa"
# below this share of unfinished rows the finished ones are removed; the copy reads as much as two steps
_COMPACT_BELOW = 0.75
_NUCLEUS_CANDIDATES = 256


class TransformersEngine:
    """An engine over a loaded model. The model stays the caller's: its attention is replaced only while it generates.

    Args:
        model: A causal language model with full attention in every layer, in evaluation mode.
        settings: The limits of batches and of the window; None takes the defaults.

    Raises:
        UserError: See :func:`check_supported`.
    """

    def __init__(self, model: PreTrainedModel, settings: EngineSettings | None = None) -> None:
        self._model, self._settings = model, settings or EngineSettings()
        self._window = self._settings.max_model_len or config_window(model.config)
        check_supported(model.config)

    @property
    def name(self) -> str:
        """``transformers`` with its version."""
        return f"transformers {transformers.__version__}"

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Yield results as rows finish. Batches run from the shortest prompts to the longest.

        Sampled results depend on the request's seed and id, not on the batch (except for float rounding).

        Raises:
            UserError: See :func:`logodata.engines.batching.check_requests`; raised before anything runs.
        """
        check_requests(requests, self._window, vocabulary_size(self._model.config))
        tokens, rows = self._settings.max_batch_tokens, self._settings.max_batch_rows
        # Other attention back ends than sdpa stay.
        is_sdpa = self._model.config._attn_implementation == "sdpa"
        with replaced_attention(self._model, _ATTENTION, _grouped_sdpa) if is_sdpa else nullcontext():
            for batch in plan_batches(requests, max_tokens=tokens, max_rows=rows):
                yield from self._run(batch)

    def _run(self, batch: list[PrefixGroup]) -> Iterator[GenerationResult]:
        rows = [_Row(request) for group in batch for request in group.requests]
        cache, mask, logits = self._prefill(batch)
        while True:
            for row, token in zip(rows, _choose(logits, rows), strict=True):
                if row.finish_reason is None and row.take(token):
                    yield GenerationResult(row.request.id, tuple(row.token_ids), row.finish_reason or "length")
            alive = [index for index, row in enumerate(rows) if row.finish_reason is None]
            if not alive:
                return
            if len(alive) <= _COMPACT_BELOW * len(rows):
                rows = [rows[index] for index in alive]
                mask = mask[alive]
                cache.select_rows(alive)
            mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
            # A finished row that is still here repeats its last token, which is ignored.
            ids = torch.tensor([[row.last_token] for row in rows], device=self._model.device)
            logits = self._forward(ids, mask, cache)

    def _prefill(self, batch: list[PrefixGroup]) -> tuple[_PreallocatedCache, Tensor, Tensor]:
        """Run all prompt tokens. Return the cache, the mask [rows, prefix + suffix] and the first logits [rows, V]."""
        requests = [request for group in batch for request in group.requests]
        owner = [index for index, group in enumerate(batch) for _ in group.requests]
        prefix_ids, prefix_mask = self._pad([group.prefix_ids for group in batch])
        suffix_ids, suffix_mask = self._pad(
            [request.prompt_ids[batch[index].prefix_length :] for request, index in zip(requests, owner, strict=True)]
        )
        prefix_width, suffix_width = prefix_ids.shape[1], suffix_ids.shape[1]
        cache = _PreallocatedCache(text_config(self._model.config).num_hidden_layers, prefix_width)
        if prefix_width:
            self._forward(prefix_ids, prefix_mask, cache)
        longest_response = max(request.sampling.max_new_tokens for request in requests)
        cache.select_rows(owner, prefix_width + suffix_width + longest_response)
        mask = torch.cat((prefix_mask[owner], suffix_mask), dim=1)
        return cache, mask, self._forward(suffix_ids, mask, cache)

    @torch.inference_mode()
    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Append ``ids`` [B, T] to the cache; ``mask`` [B, cached + T] marks real tokens. Return the logits after the
        last token, float32 [B, V]."""
        # With a mask given, transformers does not take gaps in the positions for the borders of packed documents.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return left-padded ids and mask, both int64 [rows, longest]. Pads have id 0, and the mask hides them."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
        return ids.to(self._model.device), mask.to(self._model.device)


class _Row:
    """A response that is being generated."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.last_token = 0
        self.finish_reason: FinishReason | None = None
        # It is on the CPU whatever the model's device, so that a seed means the same everywhere.
        self.generator = torch.Generator().manual_seed(request_seed(request))

    def take(self, token: int) -> bool:
        """Add the chosen token. Return True if it ends the response."""
        self.last_token = token
        if token in self.request.sampling.stop_ids:
            self.finish_reason = "stop"
        else:
            self.token_ids.append(token)
            if len(self.token_ids) == self.request.sampling.max_new_tokens:
                self.finish_reason = "length"
        return self.finish_reason is not None


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


@torch.inference_mode()
def _choose(logits: Tensor, rows: Sequence[_Row]) -> list[int]:
    """Return the next token of each row, from float32 logits [B, V].

    Raises:
        UserError: The logits of a row are NaN, so its greedy token would be arbitrary.
    """
    for index, row in enumerate(rows):
        sampling = row.request.sampling
        if len(row.token_ids) < sampling.min_new_tokens:
            logits[index, list(sampling.stop_ids)] = float("-inf")
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    nan = logits[range(len(rows)), tokens].isnan().tolist()  # argmax returns the index of a NaN if there is one
    for index, row in enumerate(rows):
        if nan[index] and row.finish_reason is None:
            raise UserError("the model's logits are nan", where=f"request {row.request.id}", mend=DAMAGED)
        if row.finish_reason is None and row.request.sampling.temperature > 0:
            tokens[index] = draw(logits[index], row.request.sampling, row.generator)
    return tokens


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from the nucleus of softmax(logits / temperature), logits float32 [V], with one uniform number.

    The nucleus (Holtzman et al. 2020) is the smallest set of most probable tokens whose mass reaches ``top_p``.
    """
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    uniform = float(torch.rand((), generator=generator))
    if sampling.top_p == 1.0:
        cumulative, order = probabilities.cumsum(dim=-1), None
    else:
        # The most likely few nearly always hold the nucleus; sorting 50K entries per row costs a fifth of a decode
        # step.
        values, order = probabilities.topk(min(_NUCLEUS_CANDIDATES, len(probabilities)))
        if values.sum() < sampling.top_p:
            values, order = probabilities.sort(descending=True)
        cumulative = values.cumsum(dim=-1)
        cumulative = cumulative[: int((cumulative - values < sampling.top_p).sum())]
    # Rounding may put uniform * mass on the last border.
    index = min(int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)), len(cumulative) - 1)
    return index if order is None else int(order[index])


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


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse a model that :class:`TransformersEngine` would run incorrectly. Its weights need not be there.

    Raises:
        UserError: The model has attention other than full (such as sliding), or a RoPE that depends on the batch's
            length.
    """
    mend = "use engine.kind=vllm"
    if other := limited_attention(config):
        what = f"the transformers engine is tested with full attention only, this model has {', '.join(other)}"
        raise UserError(what, mend=mend)
    if rope_type := length_dependent_rope(config):
        raise UserError(f"RoPE of type {rope_type!r} depends on the longest row of a batch", mend=mend)
