"""Small copies of a model: the same code in the same layers, with few, narrow and random weights.

What a model can do is tried on such a copy. Lists of models and of their settings would be out of date with each
release of transformers.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError, first_line, pass_on
from logodata.models.loading import empty_model, model_class
from logodata.models.text_config import config_name, text_config

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
_DEPTHS = ("num_hidden_layers", "depth")
_NARROW_SENSES = {"hidden_size": 64, "embed_dim": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_heads": 4}
# A scan fills a row up to whole chunks, and works on the products of two chunks in each head.
_SCANS = {"chunk_size": 16, "mamba_chunk_size": 16, "linear_num_heads": _HEADS, "linear_head_dim": _HEAD_WIDTH}
_PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1}  # Jamba: of two layers, one has attention
_HEAD_COUNTS = re.compile("num_(?!.*(linear|mamba|ssm)).*heads")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

TOLERANCE = 1e-3
"""Largest difference, in nats, of log-probabilities that count as equal. In float64, of which attention and norms do
parts in float32, equal ones differ by less than 1e-4; what a model does otherwise, such as a cap on scores, shows from
1e-2 on."""

_MOST_WEIGHTS = 120_000_000
"""Weights of the largest small copy that is tried."""

_NO_TRAITS = {"dtype", "_name_or_path", "name_or_path", "transformers_version", "use_cache", "architectures"}
"""Fields of a config that say nothing of the code."""

_GAIN = 3.0
"""Standard deviation of a linear layer's output on inputs of standard deviation 1, with the random weights."""


def small_model(
    config: PreTrainedConfig, where: str, run: Callable[[PreTrainedModel], object] | None = None
) -> PreTrainedModel | str:
    """Return a small copy of a model that runs, in float64 with random weights and eager attention, or why there is
    none.

    Args:
        config: of the model.
        where: what messages call it.
        run: calls the copy; one for which it raises an exception does not run. By default its forward is called.

    Raises:
        UserError: transformers has no such model that writes text.
    """
    model_class(config)
    run = run or (lambda copy: own_logits(copy, torch.arange(4)[None]))
    reason = ""
    for small in small_configs(config):
        try:
            with torch.device("meta"):
                size = empty_model(small, where).num_parameters()
            if size > _MOST_WEIGHTS:
                reason = reason or f"it would have {size:,} weights"
                continue
            with _Undrawn():
                model = empty_model(
                    small, where, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
                )
            _hollow(model.eval())
            run(model)  # most copies that fail do so whatever their weights are
            _draw_weights(model)
            run(model)
            return model
        except Exception as error:  # each model fails in its own way on what it does not know
            pass_on(error)
            reason = reason or said(error)
    return reason


def plain_attention(config: PreTrainedConfig) -> str | None:
    """Return ``eager`` if transformers would otherwise compute a model's attention by sdpa, and it would be another
    function: sdpa caps no scores, which Gemma 2 does. None leaves the choice to transformers."""
    key = config_key(config)
    if key not in _attention:
        with own_random_state(), torch.no_grad():
            _attention[key] = _plain_attention(config)
    return _attention[key]


_attention: dict[str, str | None] = {}
"""What this process found, by :func:`config_key`."""


def _plain_attention(config: PreTrainedConfig) -> str | None:
    model = small_model(config, config_name(config))
    if isinstance(model, str):
        return None
    ids = torch.arange(4 * WINDOW)[None] * 7 % VOCABULARY
    truth = own_logits(model, ids).log_softmax(-1)
    try:
        model.set_attn_implementation("sdpa")
        same = torch.allclose(own_logits(model, ids).log_softmax(-1), truth, rtol=0, atol=TOLERANCE)
    except Exception as error:
        pass_on(error)
        return None
    return None if same else "eager"


def config_key(config: PreTrainedConfig) -> str:
    """Return what models that are tried alike have in common."""
    fields = config.to_dict()
    return json.dumps({name: fields[name] for name in sorted({*fields} - _NO_TRAITS)}, default=str)


def said(error: Exception) -> str:
    """Return what an exception of a model's code says, in one line."""
    return error.what if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def own_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits of the model's own forward of rows of one length, int64 [B, N]: [B, N, V]."""
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits


class _Undrawn(TorchDispatchMode):
    """Within the block matrices of weights get no random values, which would take most of the time of a wide copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _DRAWS and isinstance(args[0], nn.Parameter) and args[0].ndim > 1:
            return args[0]
        return func(*args, **(kwargs or {}))


_DRAWS = (torch.ops.aten.normal_, torch.ops.aten.uniform_)


def _hollow(model: PreTrainedModel) -> None:
    """Make each matrix of weights one zero in memory."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.new_zeros(()).expand(weight.shape)


def _draw_weights(model: PreTrainedModel) -> None:
    seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.new_empty(weight.shape)
            nn.init.normal_(weight, std=_GAIN * weight.shape[-1] ** -0.5)


def seed(number: int) -> None:
    """Seed every generator that a model's code may draw from."""
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 - a model's code would use the global generator
    random.seed(number)


@contextmanager
def own_random_state() -> Iterator[None]:
    """Restore the state of all random generators at the end of the block."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    # Of several GPUs, the one that this process uses: torch would warn that it restores them all.
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


def small_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield small copies of a config, the narrowest first.

    The caller tries whether a model can be made of a copy, because which widths must agree differs from model to model.
    A copy has :data:`VOCABULARY` tokens, windows and chunks of :data:`WINDOW` tokens, and one layer of each kind that
    the model has, at least two layers. What sees and hears is narrow or, where that fails, as wide as in the model.
    """
    inner = dict.fromkeys(_INNER, _INNER_WIDTH) | _PERIODS | _SCANS
    narrow_heads = {"head_dim": _HEAD_WIDTH, "rotary_dim": _HEAD_WIDTH}
    text = text_config(config)
    heads = _field(text, "num_attention_heads")
    sizes: list[dict[str, int]] = []
    if isinstance(heads, int):
        fewer = max(1, heads // _HEADS)
        counts = {
            name: value for name, value in vars(text).items() if isinstance(value, int) and _HEAD_COUNTS.match(name)
        }
        few = {name: max(1, value // fewer) for name, value in counts.items()}
        few |= {"hidden_size": heads // fewer * _HEAD_WIDTH, **dict.fromkeys(_EXPERT_COUNTS, _EXPERTS), **_GROUPS}
        width = {"hidden_size": heads * _HEAD_WIDTH}
        # Sections of a RoPE may need the width of the model's own heads.
        own_width = _field(text, "head_dim") or (_field(text, "hidden_size") or heads) // heads
        own_heads = {"hidden_size": heads // fewer * own_width} if isinstance(own_width, int) else {}
        sizes = [
            *(inner | few | narrow_heads, inner | few, inner | few | own_heads),
            *(inner | width | narrow_heads, inner | width),
        ]
    for senses in (_NARROW_SENSES, {}) if _senses(config) else ({},):
        for changes in sizes:
            yield _changed(config, changes, senses)
        if sizes:
            yield _changed(config, sizes[-1], senses, fewer_layers=False)
        yield _changed(config, inner, senses)


def _senses(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return the configs inside a config that describe what sees and hears."""
    text = text_config(config)
    return [part for part in vars(config).values() if isinstance(part, PreTrainedConfig) and part is not text]


def _changed(
    config: PreTrainedConfig, sizes: Mapping[str, int], senses: Mapping[str, int], *, fewer_layers: bool = True
) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    text = text_config(small)
    for other in _senses(small):
        _set(other, dict.fromkeys(_DEPTHS, 1))
        _shrink(other, senses)
    if fewer_layers:
        _fewer_layers(text)
    vocabularies = [field for field in vars(text) if "vocab_size" in field]
    _shrink(text, {**dict.fromkeys(vocabularies, VOCABULARY), **dict.fromkeys(_WINDOWS, WINDOW), **sizes})
    for part in (small, text):
        for field in _IDS:
            value = _field(part, field)
            if isinstance(value, int) and value >= VOCABULARY:
                _set(part, {field: 0})
            elif isinstance(value, list):
                _set(part, {field: [0]})
    return small


def _shrink(config: PreTrainedConfig, sizes: Mapping[str, int]) -> None:
    for field, size in sizes.items():
        value = _field(config, field)
        if isinstance(value, int) and value > size:
            _set(config, {field: size})


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
            if hasattr(config, field):
                setattr(config, field, value)
