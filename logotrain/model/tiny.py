"""Small copies of a model's config: the same code in the same layers, with few and narrow weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from transformers import PreTrainedConfig

from logodata.models.text_config import text_config

WINDOW = 6
"""Tokens in a window or a chunk of a small copy."""

VOCABULARY = 128
"""Tokens of a small copy's vocabulary."""

_HEADS, _HEAD_WIDTH, _INNER_WIDTH, _EXPERTS = 4, 16, 32, 16
_MOST_LAYERS = 6

_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_GROUPS = {"n_group": 2, "topk_group": 2, "num_experts_per_tok": 4}
_HEAD_COUNTS = re.compile("num_(?!.*(linear|mamba|ssm)).*heads")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def small_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield small copies of a config, the narrowest first.

    The caller tries whether a model can be made of a copy, because which widths must agree differs from model to model.
    A copy has :data:`VOCABULARY` tokens, windows and chunks of :data:`WINDOW` tokens, and one layer of each kind that
    the model has, at least two layers.
    """
    inner = dict.fromkeys(_INNER, _INNER_WIDTH)
    narrow_heads = {"head_dim": _HEAD_WIDTH, "rotary_dim": _HEAD_WIDTH}
    text = text_config(config)
    heads = _field(text, "num_attention_heads")
    if isinstance(heads, int):
        fewer = max(1, heads // _HEADS)
        counts = {
            name: value for name, value in vars(text).items() if isinstance(value, int) and _HEAD_COUNTS.match(name)
        }
        few = {name: max(1, value // fewer) for name, value in counts.items()}
        few |= {"hidden_size": heads // fewer * _HEAD_WIDTH, **dict.fromkeys(_EXPERT_COUNTS, _EXPERTS), **_GROUPS}
        width = {"hidden_size": heads * _HEAD_WIDTH}
        yield _changed(config, inner | few | narrow_heads)
        yield _changed(config, inner | few)
        yield _changed(config, inner | width | narrow_heads)
        yield _changed(config, inner | width)
        yield _changed(config, inner | width, fewer_layers=False)
    yield _changed(config, inner)


def _changed(config: PreTrainedConfig, sizes: Mapping[str, int], *, fewer_layers: bool = True) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    text = text_config(small)
    for other in vars(small).values():  # what sees and hears
        if isinstance(other, PreTrainedConfig) and other is not text:
            _set(other, {"num_hidden_layers": 1})
    if fewer_layers:
        _fewer_layers(text)
    vocabularies = [field for field in vars(text) if "vocab_size" in field]
    for field, size in {**dict.fromkeys(vocabularies, VOCABULARY), **dict.fromkeys(_WINDOWS, WINDOW), **sizes}.items():
        value = _field(text, field)
        if isinstance(value, int) and value > size:
            _set(text, {field: size})
    for part in (small, text):
        for field in _IDS:
            value = _field(part, field)
            if isinstance(value, int) and value >= VOCABULARY:
                _set(part, {field: 0})
            elif isinstance(value, list):
                _set(part, {field: [0]})
    return small


def _fewer_layers(text: PreTrainedConfig) -> None:
    """Keep one layer of each kind. Fields that list something of each layer tell the kinds apart."""
    count = _field(text, "num_hidden_layers")
    if not isinstance(count, int) or count <= 2:
        return
    lists = {
        field: value for field, value in vars(text).items() if isinstance(value, list | tuple) and len(value) == count
    }
    # The last layers of some models take the keys and values of earlier ones.
    shared = _field(text, "num_kv_shared_layers") or 0
    kinds = [repr([layer >= count - shared, *(value[layer] for value in lists.values())]) for layer in range(count)]
    kept = sorted(layer for layer in range(count) if kinds.index(kinds[layer]) == layer)[:_MOST_LAYERS]
    if len(kept) == 1:
        kept = [0, 1]
    _set(text, {"num_hidden_layers": len(kept)})
    if shared:
        _set(text, {"num_kv_shared_layers": sum(layer >= count - shared for layer in kept)})
    _set(text, {field: [value[layer] for layer in kept] for field, value in lists.items()})
    # The first layers of some mixtures are dense.
    if _field(text, "first_k_dense_replace"):
        _set(text, {"first_k_dense_replace": 1})


def _field(config: PreTrainedConfig, name: str) -> Any:
    """Return a field of a config; None where it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # each of transformers' kinds of configs has its own
        return None


def _set(config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    for field, value in fields.items():
        with suppress(Exception):  # some configs check values; then theirs stays
            setattr(config, field, value)
