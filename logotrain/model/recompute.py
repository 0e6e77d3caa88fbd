"""What is done to each decoder layer before training: compiled, and what its backward pass computes again.

Both replace ``layer.forward``, so parameters keep their names, and ``fully_shard(layer)`` may follow: its hooks lie
outside. Compiling comes first: of a checkpointed forward, ``layer.compile()`` compiles nothing (torch 2.13) and says
nothing, because the graph break at the attention makes it skip the whole call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from logodata.common.errors import UserError
from logotrain.recipe.settings import Recompute

_KEPT_OPERATORS = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
"""Attention as autograd sees it, under each of its kernels' names."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The model's layers in order, plain or inside PEFT.

    Raises:
        UserError: the model is not built of transformers' layers.
    """
    layers: list[GradientCheckpointingLayer] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            layers.append(module)
            inside.update(module.modules())
    if not layers:
        raise UserError(
            f"no decoder layers found in {type(model).__name__}",
            mend="use a model whose layers are transformers' GradientCheckpointingLayer",
        )
    return layers


def compile_layers(model: nn.Module) -> None:
    """Compile each layer's forward; the attention stays outside, so a row's layout does not matter.

    The second row length is compiled anew, for all lengths. Layers share what is compiled.
    """
    for layer in decoder_layers(model):
        if isinstance(layer.forward, partial):
            raise ValueError("compile_layers comes before checkpoint_layers")
        layer.forward = torch.compile(layer.forward)


def checkpoint_layers(model: nn.Module, choice: Recompute) -> None:
    """Set what the backward pass of each layer computes again; gradients are the same bit for bit.

    Args:
        model: plain or inside PEFT, compiled or not.
        choice: ``none``; all but the attention (``selective``); all (``full``). Replaces an earlier choice.
    """
    # Nothing in the forward is random, so random states need not be kept for the second one.
    wrap = partial(partial, checkpoint, use_reentrant=False, preserve_rng_state=False)
    for layer in decoder_layers(model):
        forward = layer.forward.args[0] if isinstance(layer.forward, partial) else layer.forward
        match choice:
            case "none":
                layer.forward = forward
            case "full":
                layer.forward = wrap(forward)
            case "selective":
                layer.forward = wrap(forward, context_fn=partial(create_selective_checkpoint_contexts, _policy))


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in _KEPT_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE
