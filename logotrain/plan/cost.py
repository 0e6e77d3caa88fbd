"""The work and the time of a training run before it runs, on cards that are known."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from logotrain.parallel import under_torchrun
from logotrain.plan.shape import trained_weights
from logotrain.plan.step import StepPlan
from logotrain.recipe.defaults import has_gpu
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
        link: bytes a second that it sends to the other cards of its machine, by their datasheet.
        host_link: bytes a second to host memory, and as many back; None where that is its own memory.
        measured_share: the share of that rate that a large matrix product reaches.
    """

    memory_bytes: int | None
    datasheet_flops: float | None
    link: float | None = None
    host_link: float | None = None
    measured_share: float = 0.8


MACHINE_CARDS = 8
"""Number of cards of one machine."""

NETWORK_LINK = 50e9
"""Bytes a second that a card sends to another machine: InfiniBand of 400 Gbit/s a card, as in NVIDIA's DGX H100. This
is an assumption."""

USED_LINK = 0.7
"""The share of a link's rate that an exchange reaches. This is an assumption."""

_GIB = 2**30
_PCIE_4, _PCIE_5 = 32e9, 64e9  # 16 lanes, each way

# 790 of 989 TFLOP/s were measured on an H200; the other cards are assumed to reach the same share. Links are half of
# what NVIDIA's datasheets give as NVLink's rate, which counts both ways: 600 GB/s for A100, 400 for A800, 900 for H100
# and H200.
CARDS = {
    "a100-80gb": Card(int(79.2 * _GIB), 312e12, 300e9, _PCIE_4),
    "a800-80gb": Card(int(79.2 * _GIB), 312e12, 200e9, _PCIE_4),
    "h100-80gb": Card(int(79.1 * _GIB), 989e12, 450e9, _PCIE_5),
    "h200-141gb": Card(int(139.8 * _GIB), 989e12, 450e9, _PCIE_5),
    "l40s-48gb": Card(int(44.4 * _GIB), 362e12, _PCIE_4, _PCIE_4),
    "rtx4090-24gb": Card(int(23.5 * _GIB), 165e12, _PCIE_4, _PCIE_4),
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


def model_flops(step: StepPlan) -> float:
    """Return the FLOPs of the step's row without what is computed again: layers, attention scores and logits. A share
    of the card's rate is of these (PaLM, arXiv 2204.02311, appendix B)."""
    step = replace(step, recompute="none")
    samples, positions = step.computed.samples, step.scored_positions
    return _flops(step, samples, positions, head_again=False, attention_backward=2.0)


def reference_flops(step: StepPlan) -> float:
    """Return the FLOPs of the same samples in the pattern of the reference code.

    Each response has a row of its own, with logits at every position, and all but the head is computed again.
    """
    rows = step.row.separate
    return _flops(replace(step, recompute="full"), rows.samples, rows.total_length, head_again=False)


def forward_flops(step: StepPlan) -> float:
    """Return the FLOPs of the step's row where it is computed without gradients, and its responses alone are scored."""
    return sum(_forward(step, step.computed.samples, sum(step.row.response_lengths)))


def _flops(
    step: StepPlan,
    samples: Sequence[SharedPrefixLayout],
    head_positions: int,
    *,
    head_again: bool,
    attention_backward: float = 2.5,
) -> float:
    full, trained = step.recipe.tuning == "full", trained_weights(step.shape, step.recipe)
    linear, adapters, attention, head = _forward(step, samples, head_positions)
    again = step.recompute != "none"
    return (
        linear * (1 + again + 1 + full)
        + adapters * (1 + again + 2)
        + attention * (1 + (step.recompute not in ("none", "selective")) + attention_backward)
        + head * (1 + head_again + 1 + (full or (step.shape.tied and trained.embedding)))
    )


def _forward(
    step: StepPlan, samples: Sequence[SharedPrefixLayout], head_positions: int
) -> tuple[float, float, float, float]:
    """Return the FLOPs of a forward pass in linear layers, adapters, attention and the head."""
    shape = step.shape
    tokens = sum(sample.total_length for sample in samples)
    linear = attention = 0.0
    for layer in shape.layers:
        weights = layer.count * layer.token_weights
        linear += 2.0 * weights * tokens
        if layer.attends:
            share = attention_share((layer.query_width + layer.output_width) // 2, layer.token_weights)
            attention += 2.0 * weights * (row_cost(samples, share) - tokens)
    adapters = 2.0 * trained_weights(shape, step.recipe).adapters * tokens
    return linear, adapters, attention, 2.0 * shape.head_parameters * head_positions


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one process sends for one row, in bytes.

    Attributes:
        exchanged: between tokens and heads, in the context group. The attention waits for it.
        gathered: weights that are split over processes, and gradients of full tuning; while layers compute.
        offloaded: inputs of layers, to host memory and back; while layers compute.
    """

    exchanged: float
    gathered: float
    offloaded: float


def traffic(step: StepPlan) -> Traffic:
    """Return what a process sends for the step's row.

    All-to-all sends (C - 1) / C of the slices of queries, keys, values and outputs, in every layer: forward, backward,
    and where the layer is computed again. A process gathers (S - 1) / S of the weights for the forward pass, and again
    for the backward pass.
    """
    shape, recipe = step.shape, step.recipe
    b, size = step.activation_bytes, step.context_size
    passes = 2 + (step.recompute != "none")
    widths = 0.0
    for layer in shape.layers:
        queries, keys = step.head_shares(layer)
        states = queries * (layer.query_width + layer.output_width) + keys * (layer.key_width + layer.value_width)
        widths += layer.count * layer.attends * states
    exchanged = passes * b * step.own_tokens * widths * (size - 1)  # a share of the heads, of C slices
    gathered = 0.0
    if step.strategy == "shard":
        full = recipe.tuning == "full"
        gathered = (b * (1 + recipe.parallel.reshard_after_forward) + 4 * full) * shape.parameters
        gathered *= 1 - 1 / step.shard_size
    offloaded = 2 * b * step.own_tokens * shape.hidden * shape.num_layers * (step.recompute == "offloaded")
    return Traffic(exchanged, gathered, offloaded)


def step_seconds(card: Card, step: StepPlan, flops_per_row: float, num_rows: int) -> float | None:
    """Return the expected seconds of a step of ``num_rows`` rows over all processes; None if the card has no rates.

    Weights and inputs of layers travel while the layers compute. The time of a row is that of what takes longest, and
    that of the exchange beside it.
    """
    computing = compute_seconds(card, flops_per_row / step.context_size)
    if computing is None or card.link is None or card.host_link is None:
        return None
    sent = traffic(step)
    gathering = sent.gathered / (_link(card, step.shard_size) * USED_LINK)
    offloading = sent.offloaded / (card.host_link * USED_LINK)
    exchanging = sent.exchanged / (_link(card, step.context_size) * USED_LINK)
    rows = math.ceil(num_rows / (step.world_size // step.context_size))
    return rows * (max(computing, gathering, offloading) + exchanging)


def compute_seconds(card: Card, flops: float) -> float | None:
    """Return the seconds that a card computes for so many FLOPs; None if it has no rate."""
    return None if card.datasheet_flops is None else flops / (card.datasheet_flops * card.measured_share * USED_SHARE)


def _link(card: Card, processes: int) -> float:
    """Return the bytes a second that a process sends to others of so many."""
    assert card.link is not None
    return card.link if processes <= MACHINE_CARDS else min(card.link, NETWORK_LINK)


def this_machine() -> tuple[str, int]:
    """Return the name of this machine's card in :data:`CARDS`, and how many processes of this run use one.

    A card that is not in ``CARDS`` is entered there with its memory and without rates.
    """
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1
    if not has_gpu():
        return "cpu", processes
    import torch

    device = torch.cuda.get_device_properties(0)
    for name, card in CARDS.items():
        kind = name.partition("-")[0].removeprefix("rtx")
        same_size = card.memory_bytes is not None and abs(card.memory_bytes / device.total_memory - 1) < 0.05
        slower = kind == "h100" and "pcie" in device.name.lower()  # it has three quarters of the rate
        if same_size and not slower and kind in device.name.lower().replace(" ", ""):
            return name, processes
    CARDS[device.name] = Card(device.total_memory, None, host_link=_PCIE_4)
    return device.name, processes
