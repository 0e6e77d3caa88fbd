"""Shared-prefix attention: M + 1 responses share one prompt, which is computed once; a row may hold several samples.

The states of the prompt do not depend on the responses, so values and gradients equal those of M + 1 separate rows.
transformers calls :func:`shared_prefix_attention` through its attention interface. The layout is passed as the forward
keyword ``shared_prefix``, because recomputation may run one row's layers after another row's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError
from logodata.models.facts import length_dependent_rope
from logodata.models.text_config import config_name, text_config
from logotrain.attention.kernels import Attention, flash_attention, flex_row_attention, sdpa_attention, varlen_kernel
from logotrain.recipe.settings import Backend
from logotrain.rows.layout import RowLayout

_BACKENDS: dict[Backend, Attention] = {
    "flash": flash_attention,
    "flex": flex_row_attention,
    "sdpa": sdpa_attention,
}

_INTERFACE_NAMES: dict[Backend, str] = {"flash": "logo_varlen", "flex": "logo_block_mask", "sdpa": "logo_dot_product"}
"""The names of the back ends in transformers. For a name with "flash" it would look for flash-attn's functions."""

ATTENTION_VARIANTS = ("sliding_window", "softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Keywords by which models ask for variants of attention that the back ends do not compute."""

_SCORE_FIELDS = ("attn_logit_softcapping",)
"""Config fields that, if set, change the attention scores (Gemma 2, VaultGemma)."""

_HEAD_FIELDS = (
    "final_logit_softcapping",  # Gemma 2, 3n, 4, NanoChat, VaultGemma
    "logits_scaling",  # Granite, HyperCLOVA X, MiniCPM 3
    "logit_scale",  # Cohere
    "lm_head_multiplier",  # Falcon H1
    "logits_soft_cap",  # RecurrentGemma
    "output_logit_soft_cap",  # xLSTM
    "logits_mup_width_multiplier",  # Inkling
    "unpadded_vocab_size",  # Inkling
    "output_multiplier",  # Muse Glimmer
)
"""Config fields that, unless None or 1, make a model's forward change the input or output of its output head."""


def choose_backend(
    wanted: Literal["auto", Backend], device: torch.device, dtype: torch.dtype, *, here: bool = True
) -> tuple[Backend, str]:
    """Choose the attention back end for ``device``, and return it with the reason.

    Args:
        wanted: ``auto`` takes flash, else flex, on CUDA, and sdpa elsewhere.
        device: device of the model.
        dtype: dtype of queries, keys and values.
        here: whether this machine has the device. If not, a GPU is taken to be new enough for flash, and its kernels to
            be installed.

    Raises:
        UserError: the back end ``wanted`` does not run on ``device``.
    """
    no_flash = _why_not_flash(device, dtype, here=here)
    no_flex = "" if device.type == "cuda" else f"FlexAttention has no backward pass on {device.type}"
    if wanted == "auto":
        if not no_flash:
            return "flash", f"CUDA and {_name(dtype)}"
        return ("flex", f"no flash: {no_flash}") if not no_flex else ("sdpa", f"no flash, no flex: {no_flex}")
    obstacle = {"flash": no_flash, "flex": no_flex, "sdpa": ""}[wanted]
    if obstacle:
        raise UserError(f"attention={wanted}: {obstacle}", mend="attention=auto takes what runs here")
    return wanted, "as asked for"


def _why_not_flash(device: torch.device, dtype: torch.dtype, *, here: bool) -> str:
    if device.type != "cuda":
        return f"its kernels need CUDA, the device is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels compute in bfloat16 or float16, not {_name(dtype)}"
    if here and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than its kernels (compute capability 8.0)"
    if here and varlen_kernel() is None:
        return "torch was built without it and flash-attn is not installed"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def use_shared_prefix(model: PreTrainedModel, backend: Backend = "sdpa") -> Iterator[None]:
    """Make a model compute shared-prefix attention within the block.

    Its forward then needs ``shared_prefix=row_layout``; a call without it raises ValueError. Forward and backward pass
    both belong in the block, because recomputation runs the attention again.

    Raises:
        UserError: the model's attention or position embedding cannot be shared (see :func:`check_config`).
    """
    check_config(model.config)
    if model._is_stateful:
        raise UserError(
            f"{type(model).__name__} carries a state from token to token, through responses",
            mend="use a model with full attention only",
        )
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
def counted_attention() -> Iterator[list[torch.Size]]:
    """Record the query shape [H, N, D] of each call of the ``sdpa`` back end within the block."""
    calls: list[torch.Size] = []

    def recorded(query: Tensor, *rest: Any) -> Tensor:
        calls.append(query.shape)
        return sdpa_attention(query, *rest)

    _BACKENDS["sdpa"] = recorded
    try:
        yield calls
    finally:
        _BACKENDS["sdpa"] = sdpa_attention


def check_config(config: PreTrainedConfig) -> None:
    """Refuse a model for which a shared prompt, or an output head outside of the model's forward, gives wrong results.

    Raises:
        UserError: a layer does not attend to all tokens before each token, the model changes its attention scores or
            logits, or its RoPE frequencies depend on the largest position of the row, so that the row would not equal
            separate rows.
    """
    where = config_name(config)
    config = text_config(config)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "is_heterogeneous", False) and layer_types <= {"full_attention"}:
        # Such a config raises when one of these attributes is read.
        raise UserError(
            f"the layers differ in {', '.join(sorted(config.per_layer_attributes or ()))}",
            where=where,
            mend="use a model of equal layers, such as Llama or Qwen",
        )
    if layer_types - {"full_attention"} or (not layer_types and getattr(config, "sliding_window", None)):
        kinds = ", ".join(sorted(layer_types - {"full_attention"})) or f"sliding_window={config.sliding_window}"
        raise UserError(
            f"not all layers attend the whole context ({kinds})",
            where=where,
            mend="use a model with full attention only",
        )
    _refuse(config, where, _SCORE_FIELDS, (None,), "the model changes the scores of its attention")
    _refuse(config, where, _HEAD_FIELDS, (None, 1), "the model changes its logits around the output head")
    rope_type = length_dependent_rope(config)
    if rope_type:
        raise UserError(
            f"RoPE type {rope_type!r} changes with the length of the row",
            where=where,
            mend="use linear, yarn, llama3 or default RoPE",
        )


def _refuse(config: PreTrainedConfig, where: str, fields: tuple[str, ...], harmless: tuple[Any, ...], why: str) -> None:
    for field in fields:
        value = getattr(config, field, None)
        if value not in harmless:
            raise UserError(
                f"{field}={value}: {why}", where=where, mend="use a model without it, such as Llama or Qwen"
            )


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    backend: Backend,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: RowLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one row; transformers' layers call this function.

    Args:
        module: the attention layer.
        query: [1, H, N, D].
        key, value: [1, H_kv, N, D].
        attention_mask, dropout: must be None and 0; padding is part of the layout.
        backend: the back end that computes the attention.
        scaling: factor on the scores; None is D ** -0.5.
        shared_prefix: layout of the row.
        kwargs: other keywords of the model; those that ask for a variant of attention are refused.

    Returns:
        [1, N, H, D], and None in place of attention weights.

    Raises:
        ValueError: there is no layout, the shapes do not fit it, or the call has a mask, dropout or a variant of
            attention.
    """
    if shared_prefix is None:
        raise ValueError("shared-prefix attention needs the row's layout: call the model with shared_prefix=layout")
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == shared_prefix.total_length:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        raise ValueError(f"one row of {shared_prefix.total_length} tokens expected, got {shapes}")
    variants = [name for name in ATTENTION_VARIANTS if kwargs.get(name) is not None]
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        variants.append("is_causal=False")
    if attention_mask is not None or dropout or variants:
        raise ValueError(f"shared-prefix attention takes no mask, dropout or variants of attention, got {variants}")
    output = _BACKENDS[backend](query[0], key[0], value[0], shared_prefix, scaling)  # [H, N, D]
    return output.transpose(0, 1)[None].contiguous(), None


def _no_mask(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """Make no mask. transformers' causal mask would take gaps in the positions for borders of packed documents."""
    if attention_mask is not None:
        raise ValueError("shared-prefix attention takes no attention mask: padding is part of the layout")


# If torch.compile traced the function, it would compile it anew for every layout.
_untraced = torch.compiler.disable(shared_prefix_attention)

for _backend, _interface_name in _INTERFACE_NAMES.items():
    AttentionInterface.register(_interface_name, partial(_untraced, backend=_backend))
    AttentionMaskInterface.register(_interface_name, _no_mask)
