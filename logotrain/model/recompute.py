"""Compile each decoder layer, and set what its backward pass computes again.

Both replace ``layer.forward``, so parameters keep their names, and ``fully_shard(layer)``, whose hooks lie outside, may
follow. Compiling comes first. ``layer.compile()`` of a checkpointed forward compiles nothing and says nothing (torch
2.13), because the graph break at the attention makes it skip the whole call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from logodata.common.errors import UserError
from logodata.models.logprobs import decoder_of
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
"""The names of the attention kernels, as autograd sees them."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the decoder layers of a model, plain or inside PEFT, in order.

    Raises:
        UserError: the model is not built of transformers' layers.
    """
    causal_lm = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    model = model if causal_lm is None else decoder_of(causal_lm)  # not what sees and hears
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
    """Compile each layer's forward pass. The attention stays outside, so that a row's layout does not matter.

    The second length of a row compiles it once more, for all lengths. Layers share what is compiled, but PEFT makes
    classes of each layer's own where adapters are on parameters, and each is compiled.
    """
    layers = decoder_layers(model)
    # Past its limit torch computes without compiling. Where that begins between a layer's forward pass and its second
    # one, the two save different tensors, and the backward pass fails.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 16 * len(layers))
    for layer in layers:
        if isinstance(layer.forward, partial):
            raise ValueError("compile_layers comes before checkpoint_layers")
        layer.forward = torch.compile(layer.forward)


def checkpoint_layers(model: nn.Module, choice: Recompute) -> None:
    """Set what the backward pass of each layer computes again, in place of an earlier choice.

    It is nothing (``none``), all but the attention (``selective``) or all (``full``). Gradients are equal bit for bit.
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
