"""The model made ready for training: loaded, recomputing, compiled, shared among the processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from logodata.common.console import note
from logotrain.layout import SharedPrefixLayout
from logotrain.logprobs import LogprobModel
from logotrain.model import load_trainable
from logotrain.parallel import World, shard
from logotrain.recipe import TrainRecipe
from logotrain.recompute import checkpoint_layers, compile_layers, decoder_layers
from logotrain.shared_prefix import Backend, choose_backend


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model to train.

    Attributes:
        model: on this process's device, or this process's part of it.
        sharded: whether its weights are split over the processes.
        backend: what computes its attention.
        attention_share: FLOPs of attending one token over those of one token's linear layers.
    """

    model: LogprobModel
    sharded: bool
    backend: Backend
    attention_share: float


def prepare(recipe: TrainRecipe, world: World, layouts: Sequence[SharedPrefixLayout]) -> Prepared:
    """Load the model and decide, and say, how it is computed.

    Args:
        recipe: its ``auto`` fields are decided here.
        world: the processes.
        layouts: the samples that will be trained on.
    """
    # One process has nothing to share; only FSDP's mixed precision keeps float32 weights and computes in bfloat16.
    mixed = recipe.tuning == "full" and recipe.dtype == "bfloat16"
    sharded = mixed or (world.size > 1 and recipe.parallel.strategy == "shard")
    recompute = "none"
    backend, reason = choose_backend(recipe.attention, world.device, getattr(torch, recipe.dtype))
    note(f"attention: {backend} ({reason})")
    model = LogprobModel(load_trainable(recipe, torch.device("cpu") if sharded else world.device))
    config = model.causal_lm.config
    layers = decoder_layers(model)
    # Attending one token costs 4 * hidden FLOPs a layer, a weight of a linear layer 2 a token.
    attention_share = 2 * config.hidden_size * len(layers)
    attention_share /= sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    if recipe.compile:
        compile_layers(model)
    checkpoint_layers(model, recompute)
    if sharded:
        shard(model, recipe, world)
    else:
        world.same_start(parameter for parameter in model.parameters() if parameter.requires_grad)
    return Prepared(model, sharded, backend, attention_share)
