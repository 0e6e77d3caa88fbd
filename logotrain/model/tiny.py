"""Small copies of a model's config: the same code in the same layers, with few and narrow weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from transformers import PreTrainedConfig

from logodata.models.text_config import text_config

WINDOW = 6
"""Tokens in a window or a chunk of a small copy."""

VOCABULARY = 128

_WIDTH, _HEAD_WIDTH, _INNER_WIDTH = 512, 16, 32
_MOST_LAYERS = 6

_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def small_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield small copies of a config, the narrowest first. Whether a model can be made of a copy is for the caller to
    try: which widths must agree with which others differs from model to model.

    A copy has :data:`VOCABULARY` tokens, windows and chunks of :data:`WINDOW` tokens, and one layer of each kind that
    the model has, at least two layers.
    """
    heads = _field(text_config(config), "num_attention_heads")
    if isinstance(heads, int):
        # Some models need a width of an even number of features for each head.
        width = heads * min(_HEAD_WIDTH, max(4, _WIDTH // heads // 2 * 2))
        narrow = {"hidden_size": width, **dict.fromkeys(_INNER, _INNER_WIDTH)}
        yield _changed(config, narrow | {"head_dim": _HEAD_WIDTH}, fewer_layers=True)
        yield _changed(config, narrow, fewer_layers=True)
        yield _changed(config, narrow, fewer_layers=False)
    yield _changed(config, dict.fromkeys(_INNER, _INNER_WIDTH), fewer_layers=True)


def _changed(config: PreTrainedConfig, sizes: Mapping[str, int], *, fewer_layers: bool) -> PreTrainedConfig:
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
    kinds = [repr([value[layer] for value in lists.values()]) for layer in range(count)]
    kept = sorted(layer for layer in range(count) if kinds.index(kinds[layer]) == layer)[:_MOST_LAYERS]
    if len(kept) == 1:
        kept = [0, 1]
    _set(text, {"num_hidden_layers": len(kept)})
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
