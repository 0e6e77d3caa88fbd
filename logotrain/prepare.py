"""The model made ready for training: loaded, compiled, recomputing, shared among the processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.models.loading import load_config
from logodata.models.text_config import text_config
from logotrain.attention.choice import AttentionChoice, choose_attention
from logotrain.attention.context_parallel import context_group
from logotrain.loss.logprobs import LogprobModel
from logotrain.model.loading import load_trainable
from logotrain.model.recompute import checkpoint_layers, compile_layers, decoder_layers
from logotrain.model.sharded_loading import Shares, why_whole
from logotrain.parallel import TIMEOUT, World, shard
from logotrain.plan.choices import check_context_size, check_recompute, check_strategy, choose_step, least_memory
from logotrain.plan.cost import CARDS, this_machine
from logotrain.plan.host import free_bytes
from logotrain.plan.memory import gigabytes
from logotrain.plan.shape import ModelShape, layer_weights, model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Recompute, Strategy, TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.rows.layout import RowLayout
from logotrain.rows.packing import attention_share, count_rows, largest_row
from logotrain.trainable import check_untried, read_traits


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model to train.

    Attributes:
        model: the model on this process's device, or this process's part of it.
        sharded: whether its weights are split over the processes.
        attention_share: see :func:`logotrain.rows.packing.attention_share`.
    """

    model: LogprobModel
    sharded: bool
    attention: AttentionChoice
    attention_share: float


def prepare(recipe: TrainRecipe, world: World, collator: Collator, layouts: Sequence[RowLayout]) -> Prepared:
    """Decide how the model is computed where the recipe says ``auto``, note it, and load the model.

    Args:
        recipe: the recipe of the run.
        world: the processes of the run.
        collator: makes the rows.
        layouts: layout of each sample to train on, in a row of its own; none if nothing is trained.

    Raises:
        UserError: what the recipe asks for does not run here, or the model cannot be trained.
    """
    check_strategy(recipe, world.size)
    config = load_config(recipe.model)
    traits = read_traits(config)
    shape = _shape(config)
    attention = choose_attention(
        traits,
        world.device,
        getattr(torch, recipe.dtype),
        sharing=recipe.sharing,
        wanted=recipe.attention,
        head_width=0 if isinstance(shape, str) else shape.head_width,
    )
    note(f"attention: {attention}")
    num_heads = getattr(text_config(config), "num_attention_heads", 0)  # a model of states has none
    check_context_size(recipe, world.size, num_heads, "" if attention.shared else attention.reason)
    strategy, recompute, context_size = _decide(recipe, world, collator, layouts, attention, shape)
    check_recompute(recompute, attention.by)
    # One process has nothing to share; only FSDP's mixed precision keeps float32 weights and computes in bfloat16.
    sharded = recipe.mixed_precision or (world.size > 1 and strategy == "shard")
    shares = _shares(recipe, world, config, shape, tried=traits.tried) if sharded else None
    model = LogprobModel(
        load_trainable(recipe, torch.device("cpu") if sharded else world.device, shares),
        autocast=torch.bfloat16 if recipe.narrow_adapters else None,
        plain_attention=traits.separate,
    )
    model.context_group = context_group(context_size, TIMEOUT)
    if not traits.tried:
        check_untried(model, recipe.model, gaps=recipe.positions.mode != "natural")
    if sharded and not attention.shared:
        model.min_passes = max(len(layout.response_lengths) for layout in layouts) if layouts else 0
    layers = decoder_layers(model)
    share = attention_share(_query_width(shape), sum(map(layer_weights, layers)) // len(layers))
    if recipe.compile:
        compile_layers(model)
    checkpoint_layers(model, recompute)
    if sharded:
        with shares.put_into(model) if shares else contextlib.nullcontext():
            shard(model, recipe, world)
    else:
        world.same_start(parameter for parameter in model.parameters() if parameter.requires_grad)
    return Prepared(model, sharded, attention, share)


def _shares(
    recipe: TrainRecipe, world: World, config: PreTrainedConfig, shape: ModelShape | str, *, tried: bool
) -> Shares | None:
    """Return what takes this process's shares of the weights as they are read; None, with a note, if they are read
    whole."""
    reason = why_whole(recipe, config, tried=tried)
    if not reason:
        size = recipe.parallel.shares(world.size)
        return Shares(world.rank % size, size, world.device)
    weight_bytes = 4 if recipe.tuning == "full" else getattr(torch, recipe.dtype).itemsize
    needed = "" if isinstance(shape, str) else f", {gigabytes(weight_bytes * shape.parameters)}"
    note(f"weights: every process reads the whole model into host memory{needed}: {reason}")
    return None


def _shape(config: PreTrainedConfig) -> ModelShape | str:
    """Return the sizes of a model, or why they are not known."""
    try:
        return model_shape(config)
    except UserError as error:
        return error.what


def _query_width(shape: ModelShape | str) -> int:
    """Return the mean width of a layer's query heads; 0 for one that does not attend, and where shapes are not known.
    With 0 rows are balanced by their tokens alone."""
    if isinstance(shape, str):
        return 0
    return sum(layer.count * layer.query_width for layer in shape.layers if layer.attends) // shape.num_layers


def _decide(
    recipe: TrainRecipe,
    world: World,
    collator: Collator,
    layouts: Sequence[RowLayout],
    attention: AttentionChoice,
    shape: ModelShape | str,
) -> tuple[Strategy, Recompute, int]:
    """Return the strategy, what is recomputed, and the number of processes that compute a row together."""
    asked = recipe.parallel.context_size
    size = 1 if asked == "auto" else asked  # unless an estimate says more
    if not layouts:
        return "replicate", "none", size
    strategy = "replicate" if world.size == 1 else recipe.parallel.strategy  # one process has nothing to share
    if strategy != "auto" and recipe.recompute != "auto" and (asked != "auto" or world.size == 1):
        return strategy, recipe.recompute, size
    if isinstance(shape, str):
        # What is left to choose is chosen without an estimate: the least memory.
        strategy = least_memory(recipe) if strategy == "auto" else strategy
        recompute = "full" if recipe.recompute == "auto" else recipe.recompute
        note(f"strategy: {strategy}, recompute: {recompute} (memory is not estimated: {shape})")
        return strategy, recompute, size
    row_tokens = attention.row_tokens(recipe.row_tokens)
    plan = StepPlan(
        shape=shape,
        recipe=recipe,
        row=largest_row(layouts, row_tokens, collator.pad_to_multiple),
        world_size=world.size,
        backend=attention.by,
        shared=attention.shared,
        device_bytes=min(world.gather(_device_bytes(world))),
        host_bytes=min(world.gather(_host_bytes())),
    )
    card, *_ = world.gather(CARDS[this_machine()[0]])  # all processes must choose alike
    rows = count_rows(recipe.samples_per_step, layouts, row_tokens)
    chosen = choose_step(plan, card, rows)
    if world.size > 1:
        note(f"strategy: {chosen.step.strategy} ({chosen.why_strategy})")
    if chosen.why_context:
        note(f"context size: {chosen.step.context_size} ({chosen.why_context})")
    note(f"recompute: {chosen.step.recompute} ({chosen.why_recompute})")
    return chosen.step.strategy, chosen.step.recompute, chosen.step.context_size


def _device_bytes(world: World) -> int:
    """Return the memory of the device; on a CPU what the machine has left, divided among the processes on it."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    return _host_bytes()


def _host_bytes() -> int:
    """Return the memory that is left here, divided among the processes on this machine."""
    return free_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
