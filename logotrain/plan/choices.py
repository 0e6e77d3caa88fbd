"""The work and the time of a training run before it runs, and the choices that depend on memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from logodata.common.errors import UserError
from logotrain.parallel import under_torchrun
from logotrain.plan.memory import MemoryEstimate, estimate_memory, gigabytes
from logotrain.plan.shape import trained_weights
from logotrain.plan.step import StepPlan
from logotrain.recipe.defaults import has_gpu
from logotrain.recipe.settings import Implementation, Recompute, Strategy, TrainRecipe
from logotrain.rows.layout import SharedPrefixLayout
from logotrain.rows.packing import attention_share, row_cost

USED_SHARE = 0.5
"""The share of a card's measured matrix-product rate that a whole step is expected to reach. This is an assumption: the
best published LoRA trainers reach 0.50 to 0.55."""


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator.

    Attributes:
        memory_bytes: the memory that its driver reports; None if there is no limit.
        datasheet_flops: its dense bfloat16 rate, in FLOP/s; None if no time is estimated.
        measured_share: the share of that rate that a large matrix product reaches.
    """

    memory_bytes: int | None
    datasheet_flops: float | None
    measured_share: float = 0.8


_GIB = 2**30

# 790 of 989 TFLOP/s were measured on an H200; the other cards are assumed to reach the same share.
CARDS = {
    "a100-80gb": Card(int(79.2 * _GIB), 312e12),
    "a800-80gb": Card(int(79.2 * _GIB), 312e12),
    "h100-80gb": Card(int(79.1 * _GIB), 989e12),
    "h200-141gb": Card(int(139.8 * _GIB), 989e12),
    "l40s-48gb": Card(int(44.4 * _GIB), 362e12),
    "rtx4090-24gb": Card(int(23.5 * _GIB), 165e12),
    "cpu": Card(None, None),
}
"""The cards by the name that ``logotrain plan --card`` takes."""


def row_flops(step: StepPlan) -> float:
    """Return the FLOPs of the step's row: forward pass, recomputation and backward pass.

    A frozen weight costs 2 a token forward and 2 backward, a trained one 4 backward. Attention costs 2.5 times as much
    backward as forward, because flash kernels compute the scores again. The head's logits are computed twice. A token
    meets the experts that it is sent to. A layer with a window counts as one that attends to everything.
    """
    return _flops(step, step.computed.samples, step.scored_positions, head_again=True)


def reference_flops(step: StepPlan) -> float:
    """Return the FLOPs of the same samples in the pattern of the reference code.

    Each response has a row of its own, with logits at every position, and all but the head is computed again.
    """
    rows = step.row.separate
    return _flops(replace(step, recompute="full"), rows.samples, rows.total_length, head_again=False)


def _flops(step: StepPlan, samples: Sequence[SharedPrefixLayout], head_positions: int, *, head_again: bool) -> float:
    shape, full, trained = step.shape, step.recipe.tuning == "full", trained_weights(step.shape, step.recipe)
    tokens = sum(sample.total_length for sample in samples)
    linear = attention = 0.0
    for layer in shape.layers:
        weights = layer.count * layer.token_weights
        linear += 2.0 * weights * tokens
        if layer.attends:
            share = attention_share((layer.query_width + layer.output_width) // 2, layer.token_weights)
            attention += 2.0 * weights * (row_cost(samples, share) - tokens)
    adapters = 2.0 * trained.adapters * tokens
    head = 2.0 * shape.head_parameters * head_positions
    again = step.recompute != "none"
    return (
        linear * (1 + again + 1 + full)
        + adapters * (1 + again + 2)
        + attention * (1 + (step.recompute == "full") + 2.5)
        + head * (1 + head_again + 1 + (full or (shape.tied and trained.embedding)))
    )


def step_seconds(card: Card, flops_per_row: float, num_rows: int, num_gpus: int) -> float | None:
    """Return the expected seconds of a step whose rows are shared by ``num_gpus``; None if the card has no rate."""
    if card.datasheet_flops is None:
        return None
    return math.ceil(num_rows / num_gpus) * flops_per_row / (card.datasheet_flops * card.measured_share * USED_SHARE)


def check_strategy(recipe: TrainRecipe, world_size: int) -> None:
    """Refuse to replicate full tuning in bfloat16 on several processes, because only sharding computes it, and to split
    the weights over a number of processes that does not divide theirs.

    Raises:
        UserError: the recipe asks for it.
    """
    size = recipe.parallel.shard_size
    if size is not None and world_size > 1 and world_size % size:
        divisors = ", ".join(str(one) for one in range(2, world_size + 1) if world_size % one == 0)
        raise UserError(
            f"parallel.shard_size={size} does not divide the number of processes, {world_size}",
            mend=f"set it to one of {divisors}, or to null, which splits the weights over all",
        )
    if recipe.mixed_precision and recipe.parallel.strategy == "replicate" and world_size > 1:
        raise UserError(
            f"parallel.strategy=replicate cannot tune all weights in bfloat16 on {world_size} processes: only FSDP "
            "computes in bfloat16 on float32 weights",
            mend="set parallel.strategy to shard or auto, or dtype=float32",
        )


def recompute_choices(backend: Implementation) -> tuple[Recompute, ...]:
    """Return the choices of recompute that an attention back end allows, from the fastest to the smallest.

    FlexAttention's compiled kernel is no operator whose result could be kept, so ``selective`` would compute all again.
    """
    return ("none", "full") if backend in ("flex", "eager") else get_args(Recompute)


def check_recompute(choice: Recompute, backend: Implementation) -> None:
    """Refuse a choice that is not among :func:`recompute_choices`.

    Raises:
        UserError: it would recompute more than it says.
    """
    if choice not in recompute_choices(backend):
        raise UserError(
            "recompute=selective cannot keep what FlexAttention computed",
            mend="set recompute=full, or attention=flash or sdpa",
        )


def choose_strategy(step: StepPlan) -> tuple[Strategy, str]:
    """Choose who holds which weights, and return it with the reason.

    Full tuning and what one device cannot hold is sharded. The step's own strategy and recompute are not read.
    """
    recipe = step.recipe
    if recipe.mixed_precision:
        return "shard", "only FSDP computes in bfloat16 on float32 weights"
    if step.world_size == 1:
        return "replicate", "one process"
    if recipe.parallel.strategy != "auto":
        return recipe.parallel.strategy, "as asked for"
    if recipe.tuning == "full":
        return "shard", "full tuning"
    if step.device_bytes is None:
        return "replicate", "no limit of memory is known"
    smallest: Recompute = "full" if recipe.recompute == "auto" else recipe.recompute
    needed = estimate_memory(replace(step, strategy="replicate", recompute=smallest)).total
    holds = needed <= step.device_bytes
    verb = "holds" if holds else "cannot hold"
    reason = f"{gigabytes(step.device_bytes)} {verb} the whole model and a row, {gigabytes(needed)}"
    return ("replicate" if holds else "shard"), reason


def choose_recompute(step: StepPlan) -> tuple[Recompute, str]:
    """Choose what the backward pass computes again, and return it with the reason.

    It is the fastest choice that fits the device. The step's own recompute is not read. The reason says whether the
    estimate is rough.
    """
    if step.recipe.recompute != "auto":
        return step.recipe.recompute, "as asked for"
    if step.device_bytes is None:
        return "none", "no limit of memory is known"
    needed = {choice: estimate.total for choice, estimate in memory_by_recompute(step).items()}
    have = gigabytes(step.device_bytes)
    caveat = step.shape.caveat and f"; {step.shape.caveat}"
    larger = ""
    for choice, size in needed.items():
        if size <= step.device_bytes:
            return choice, f"{gigabytes(size)} fits in {have}{larger}{caveat}"
        larger = f", {choice} with {gigabytes(size)} does not"
    return "full", f"it needs least; {gigabytes(needed['full'])} will not fit in {have}{caveat}"


def memory_by_recompute(step: StepPlan) -> dict[Recompute, MemoryEstimate]:
    """Return the memory of the step under each choice of recompute that the back end allows."""
    return {choice: estimate_memory(replace(step, recompute=choice)) for choice in recompute_choices(step.backend)}


def this_machine() -> tuple[str, int]:
    """Return the name of this machine's card in :data:`CARDS`, and how many processes of this run use one.

    A card that is not in ``CARDS`` is entered there with its memory and without a rate.
    """
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1
    if not has_gpu():
        return "cpu", processes
    import torch

    device = torch.cuda.get_device_properties(0)
    for name, card in CARDS.items():
        kind = name.partition("-")[0].removeprefix("rtx")
        same_size = card.memory_bytes is not None and abs(card.memory_bytes / device.total_memory - 1) < 0.05
        if same_size and kind in device.name.lower().replace(" ", ""):
            return name, processes
    CARDS[device.name] = Card(device.total_memory, None)
    return device.name, processes
