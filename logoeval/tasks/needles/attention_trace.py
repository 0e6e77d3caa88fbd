"""Find the position that each attention head attends to most while a model reads an answer, for the retrieval score.

The prompt runs once, with the model's own attention. Each answer then runs against its KV cache, with an attention
function that records only the position of the largest score, for every head and step. The softmax keeps the order of
the scores, so neither attention weights nor ``output_attentions`` are needed. Scores are computed in float32, tile by
tile, and no logits are computed. So the memory of a trace grows neither with heads times context (64K positions and
1024 heads would take 268 MB per step) nor with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from logodata.common.errors import UserError
from logodata.models.facts import limited_attention
from logodata.models.loading import replaced_attention
from logodata.models.text_config import config_name, text_config
from logodata.models.vocabulary import check_ids, vocabulary_size
from logotrain.attention.shared_prefix import UNKNOWN_VARIANTS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTION = "logo_traced"
_HELD = 1 << 22  # largest number of elements of a tile of scores or keys, 16 MB in float32
_MOST_STEPS = 64
_MEND = "use a model with full attention in every layer, such as Llama or Qwen"


@torch.inference_mode()
def trace_answers(
    model: PreTrainedModel, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[NDArray[np.int64]]:
    """Return for each answer the most attended position of every head at every step, int64 [steps, layers, heads].

    Step s generates ``answer[s]``. Its query is that of the token before; for the first step this is the prompt's last
    token, as in the script of Wu et al. 2024. An answer is known beforehand, whether the model wrote it or it is a gold
    answer, so several steps run together. Positions count from the first token of the prompt, which has at least two,
    and continue through the answer. Of equal scores the first position is taken.

    Raises:
        UserError: see :func:`check_model`; or the model does not let its attention be replaced.
    """
    check_model(model.config, stateful=model._is_stateful)
    check_ids(vocabulary_size(model.config), prompt_ids, *answers, where="prompt or answer")
    num_layers, num_heads = head_grid(model.config)
    cache = DynamicCache(config=model.config)
    body = model.base_model  # without the output head: logits of 64K positions over 128K tokens would be 33 GB
    row = torch.tensor([list(prompt_ids)], device=model.device)
    body(input_ids=row[:, :-1], past_key_values=cache, use_cache=True)
    traces = []
    for answer in answers:
        queries = [prompt_ids[-1], *answer[:-1]] if answer else []
        # The mask of a pass, one row per query and head, must not be larger than a tile.
        size = max(1, min(_MOST_STEPS, _HELD // (num_heads * (len(prompt_ids) + len(answer)))))
        layers: list[Tensor] = []
        parts = []
        with replaced_attention(model, _ATTENTION, _recording_attention(layers)):
            for start in range(0, len(queries), size):
                block = torch.tensor([queries[start : start + size]], device=model.device)
                body(input_ids=block, past_key_values=cache, use_cache=True)
                if len(layers) != num_layers:
                    raise UserError(f"{type(model).__name__} does not let its attention be replaced", mend=_MEND)
                parts.append(torch.stack(layers).permute(2, 0, 1).cpu().numpy())  # [steps, layers, heads]
                layers.clear()
        if queries:
            cache.crop(-len(queries))
        traces.append(np.concatenate(parts) if parts else np.zeros((0, num_layers, num_heads), dtype=np.int64))
    return traces


def head_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the number of layers of a model, and of query heads per layer."""
    text = text_config(config)
    return int(text.num_hidden_layers), int(text.num_attention_heads)


def check_model(config: PreTrainedConfig, *, stateful: bool = False) -> None:
    """Raise a ``UserError`` if a head cannot attend to every position: some layers have sliding or linear attention, or
    carry a state from token to token."""
    kinds = limited_attention(config) or (["a state from token to token"] if stateful else [])
    if kinds:
        raise UserError(
            f"the retrieval score needs full attention, this model has {', '.join(kinds)}",
            where=config_name(config),
            mend=_MEND,
        )


def most_attended(query: Tensor, key: Tensor) -> Tensor:
    """Return the position of the largest attention score of each query, int64 [heads, queries].

    Args:
        query: [heads, queries, size], of the last ``queries`` positions; each sees its own position and all before.
        key: [key heads, positions, size]; consecutive query heads share a key head.
    """
    heads, queries, size = query.shape
    key_heads, positions, _ = key.shape
    grouped = query.reshape(key_heads, -1, size).float()  # the queries of a group share the keys
    last = _last_seen(heads // key_heads, queries, positions, key.device)
    best = grouped.new_full(grouped.shape[:2], float("-inf"))
    where = torch.zeros_like(best, dtype=torch.long)
    width = max(1, _HELD // max(heads * queries, key_heads * size))
    for start in range(0, positions, width):
        tile = key[:, start : start + width].float()
        scores = grouped @ tile.mT
        place = torch.arange(start, start + tile.shape[1], device=key.device)
        scores.masked_fill_(place > last[:, None], float("-inf"))
        highest, index = scores.max(dim=-1)
        where = torch.where(highest > best, index + start, where)
        best = torch.maximum(best, highest)
    return where.reshape(heads, queries)


def _last_seen(groups: int, queries: int, positions: int, device: torch.device) -> Tensor:
    """Return the last position that each query of a group of heads sees, [groups * queries]."""
    return torch.arange(positions - queries, positions, device=device).repeat(groups)


def _recording_attention(layers: list[Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Return an attention function of one row that appends :func:`most_attended` of each layer to ``layers``."""

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG001 - one row without padding has a causal mask
        scaling: float | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        for name in ("sliding_window", "softcap", "s_aux", *UNKNOWN_VARIANTS):
            if rest.get(name) is not None:
                raise UserError(f"{type(module).__name__} computes its attention with {name}", mend=_MEND)
        layers.append(most_attended(query[0], key[0]))
        _, heads, queries, size = query.shape
        groups, positions = heads // key.shape[1], key.shape[2]
        mask = None
        if queries > 1:
            last = _last_seen(groups, queries, positions, key.device)
            mask = torch.arange(positions, device=key.device) <= last[:, None]
        # The heads of a group are passed as queries, so that the cache is not copied for each head.
        output = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(1, key.shape[1], groups * queries, size), key, value, attn_mask=mask, scale=scaling
        )
        return output.reshape(1, heads, queries, -1).transpose(1, 2), None

    return attend
