"""What a part of gpu.py is given: a device, a shape, a deadline, and a place for its numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from measure import Meter
from patterns import Attention
from shape import CUDA_SHAPE, Shape

SMALL = Shape(64, 160, 2, 4, 2, 503, rank=4, prompt=96, response=8, rejected=2)
"""To try the parts where there is no GPU."""


@dataclass(frozen=True)
class Bench:
    """What a part is given.

    Attributes:
        device: where it runs.
        small: whether at :data:`SMALL`.
        attention: of logotrain's training, as a recipe names it.
        deadline: of ``time.monotonic()``: the part is ended soon after.
        save: keeps the part's result so far, in case that it is ended.
        scratch: an empty folder.
        earlier: results of the parts before, by name.
    """

    device: torch.device
    small: bool
    attention: Attention
    deadline: float
    save: Callable[[dict[str, Any]], None]
    scratch: Path
    earlier: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """Llama-3-8B and a sample of 8K tokens."""
        return SMALL if self.small else CUDA_SHAPE

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()

    def meter(self) -> Meter:
        """A clock on the device."""
        return Meter(self.device, self.dtype)

    def product_rate(self) -> float:
        """FLOP/s of a large matrix product, as the first part measured it, or measured now."""
        known = self.earlier.get("ceilings", {}).get("matrix_product_flops_per_second")
        return float(known) if known else self.meter().product_rate()


def gib(size: float | None) -> str:
    """``12.3 GiB``, as the planner counts; small ones in MiB."""
    if size is None:
        return "?"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
