"""Shared-prefix attention: M + 1 responses share one prompt, which is computed once; a row may hold several samples.

The states of the prompt do not depend on the responses, so values and gradients equal those of M + 1 separate rows.
transformers calls :func:`shared_prefix_attention` through its attention interface. The layout is passed as the forward
keyword ``shared_prefix``, because recomputation may run one row's layers after another row's forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from logodata.common.errors import UserError
from logotrain.attention.context_parallel import ALONE, ContextGroup, attend_by_heads
from logotrain.attention.kernels import (
    Attention,
    dense_attention,
    flash_attention,
    flex_row_attention,
    sdpa_attention,
    varlen_kernel,
)
from logotrain.attention.variants import FULL, Feature, Reach, Variant, layer_reach
from logotrain.recipe.settings import Backend
from logotrain.rows.layout import RowLayout

Kernel = Literal[Backend, "dense"]
"""What computes a shared row: a back end of training, or the formula itself, for small rows."""

_KERNELS: dict[Kernel, Attention] = {
    "flash": flash_attention,
    "flex": flex_row_attention,
    "sdpa": sdpa_attention,
    "dense": dense_attention,
}

_INTERFACE_NAMES: dict[Kernel, str] = {
    "flash": "logo_varlen",
    "flex": "logo_block_mask",
    "sdpa": "logo_dot_product",
    "dense": "logo_formula",
}
"""The names of the back ends in transformers. For a name with "flash" it would look for flash-attn's functions."""

_COMPUTES: dict[Kernel, frozenset[Feature]] = {
    "flash": frozenset({"sliding"}),
    "flex": frozenset({"sliding", "chunked", "softcap", "sinks"}),
    "sdpa": frozenset({"sliding", "chunked", "sinks"}),
    "dense": frozenset({"sliding", "chunked", "softcap", "sinks"}),
}
"""The variants of attention that each back end computes."""

UNKNOWN_VARIANTS = ("position_bias", "indices", "block_indices")
"""Keywords by which models ask for variants of attention that no back end computes."""


def choose_backend(
    wanted: Literal["auto", Backend],
    device: torch.device,
    dtype: torch.dtype,
    *,
    features: Collection[Feature] = (),
    head_width: int = 0,
    here: bool = True,
) -> tuple[Backend, str]:
    """Choose the attention back end for ``device``, and return it with the reason.

    Args:
        wanted: ``auto`` takes flash, else flex, on CUDA, and sdpa elsewhere.
        device: device of the model.
        dtype: dtype of queries, keys and values.
        features: the variants of attention that the model's layers ask for.
        head_width: features of the widest query head; 0 if that is not known.
        here: whether this machine has the device. If not, a GPU is taken to be new enough for flash, and its kernels to
            be installed.

    Raises:
        UserError: the back end ``wanted`` does not run on ``device`` or does not compute a feature; or, for ``auto``,
            none does both.
    """
    obstacles: dict[Backend, str] = {
        "flash": _why_not_flash(device, dtype, head_width, here=here),
        "flex": _why_not_flex(device, dtype, here=here),
        "sdpa": "",
    }
    for backend, obstacle in obstacles.items():
        if not obstacle and (missing := sorted({*features} - _COMPUTES[backend])):
            obstacles[backend] = f"{backend} does not compute {', '.join(missing)}"
    if wanted != "auto":
        if obstacles[wanted]:
            raise UserError(f"attention={wanted}: {obstacles[wanted]}", mend="attention=auto takes what runs here")
        return wanted, "as asked for"
    if not obstacles["flash"]:
        return "flash", f"CUDA and {_name(dtype)}"
    if not obstacles["flex"]:
        return "flex", f"no flash: {obstacles['flash']}"
    if obstacles["sdpa"]:
        raise UserError(f"{obstacles['sdpa']}, and there is no flex: {obstacles['flex']}", mend="set sharing=auto")
    return "sdpa", f"no flash, no flex: {obstacles['flex']}"


_FLASH_WIDTH, _FLASH_STEP = 256, 8
"""The widest head of flash kernels, and what divides the width of each (flash-attn, csrc/flash_attn/flash_api.cpp)."""


def _why_not_flash(device: torch.device, dtype: torch.dtype, head_width: int, *, here: bool) -> str:
    if device.type != "cuda":
        return f"its kernels need CUDA, the device is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels compute in bfloat16 or float16, not {_name(dtype)}"
    if head_width > _FLASH_WIDTH or head_width % _FLASH_STEP:
        return f"its kernels take heads of {_FLASH_STEP}, 16, ... {_FLASH_WIDTH} features, this model has {head_width}"
    if here and _is_old(device):
        return f"{torch.cuda.get_device_name(device)} is older than its kernels (compute capability 8.0)"
    if here and varlen_kernel() is None:
        return "torch was built without it and flash-attn is not installed"
    return ""


def _why_not_flex(device: torch.device, dtype: torch.dtype, *, here: bool) -> str:
    if device.type != "cuda":
        return f"FlexAttention has no backward pass on {device.type}"
    if dtype == torch.bfloat16 and here and _is_old(device):
        # torch would compute without compiling, with all scores in memory.
        return f"torch compiles no bfloat16 for {torch.cuda.get_device_name(device)} (compute capability 8.0)"
    return ""


def _is_old(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) < (8, 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def use_shared_prefix(model: PreTrainedModel, backend: Kernel = "sdpa") -> Iterator[None]:
    """Make a model compute shared-prefix attention within the block.

    Its forward then needs ``shared_prefix=row_layout``; a call without it raises ValueError. Forward and backward pass
    both belong in the block, because recomputation runs the attention again.

    Raises:
        UserError: the model does not let its attention be replaced.
    """
    with attention_of(model, _INTERFACE_NAMES[backend]):
        if model.config._attn_implementation != _INTERFACE_NAMES[backend]:
            raise UserError(
                f"{type(model).__name__} does not let its attention be replaced",
                mend="use a model built on transformers' attention interface",
            )
        yield


@contextmanager
def attention_of(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Make a model use another of transformers' attention implementations within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recorded_features() -> Iterator[set[Feature]]:
    """Collect the variants of attention that layers ask for within the block."""
    found: set[Feature] = set()
    _recorders.append(found)
    try:
        yield found
    finally:
        _recorders.remove(found)


_recorders: list[set[Feature]] = []


def shares_prompt(model: PreTrainedModel) -> bool:
    """Return whether a model is inside of :func:`use_shared_prefix`."""
    return model.config._attn_implementation in _INTERFACE_NAMES.values()


def uses_kernels(model: PreTrainedModel) -> bool:
    """Return whether a model's attention is that of kernels which are for some devices and sizes only."""
    return model.config._attn_implementation in {_INTERFACE_NAMES["flash"], _INTERFACE_NAMES["flex"]}


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Reach | None,
    *,
    backend: Kernel,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: RowLayout | None = None,
    context_group: ContextGroup = ALONE,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one row, or of this process's slice of it; transformers' layers call this function.

    Args:
        module: the attention layer.
        query: [1, H, n, D]; n is N, or N / C if the row is split over a group.
        key: [1, H_kv, n, D].
        value: [1, H_kv, n, D_v].
        attention_mask: the layer's reach, as :func:`logotrain.attention.variants.layer_reach` gave it to the model;
            None is full. Padding is part of the layout.
        backend: the back end that computes the attention.
        scaling: factor on the scores; None is D ** -0.5.
        shared_prefix: layout of the row.
        context_group: the processes that the row is split over.
        softcap: see :class:`logotrain.attention.variants.Variant`.
        s_aux: [H], the sinks of the heads.
        sliding_window: the window of the layer; must be that of its reach.
        kwargs: other keywords of the model; those that ask for other variants of attention are refused.

    Returns:
        [1, n, H, D_v], and None in place of attention weights.

    Raises:
        ValueError: there is no layout, the shapes do not fit it, or the call has a mask, dropout or a variant of
            attention that the back end does not compute.
    """
    if shared_prefix is None:
        raise ValueError("shared-prefix attention needs the row's layout: call the model with shared_prefix=layout")
    tokens = shared_prefix.total_length / context_group.size
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == tokens:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        raise ValueError(f"one row of {tokens:g} tokens expected, got {shapes}")
    reach = FULL if attention_mask is None else attention_mask
    if not isinstance(reach, Reach) or dropout:
        raise ValueError("shared-prefix attention takes no mask of tokens and no dropout")
    if sliding_window is not None and reach.kind != "sliding":
        raise ValueError(f"a layer has a window of {sliding_window} tokens, and its mask has none")
    unknown = [name for name in UNKNOWN_VARIANTS if kwargs.get(name) is not None]
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        unknown.append("is_causal=False")
    variant = Variant(reach, softcap, s_aux)
    for found in _recorders:
        found |= variant.features
    unknown += sorted(variant.features - _COMPUTES[backend])
    if unknown:
        raise ValueError(f"{backend} does not compute attention with {', '.join(unknown)}")

    # Autocast computes layer norms of queries and keys in float32 on CUDA, and kernels take one dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        return _KERNELS[backend](query, key, value, shared_prefix, scaling, Variant(reach, softcap, sinks))

    output = attend_by_heads(attend, query[0], key[0], value[0], s_aux, context_group)  # [H, n, D_v]
    return output.transpose(0, 1)[None].contiguous(), None


# If torch.compile traced the function, it would compile it anew for every layout.
_untraced = torch.compiler.disable(shared_prefix_attention)

for _backend, _interface_name in _INTERFACE_NAMES.items():
    AttentionInterface.register(_interface_name, partial(_untraced, backend=_backend))
    AttentionMaskInterface.register(_interface_name, layer_reach)
