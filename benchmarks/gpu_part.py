"""What gpu.py gives to a part: a device, a shape, a deadline, and a place for its figures."""

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
"""The shape for a trial of the parts on a CPU."""


@dataclass(frozen=True)
class Bench:
    """What a part is given.

    Attributes:
        device: where the part computes.
        small: whether it computes at :data:`SMALL` instead of the 8B shape.
        attention: the back end of logotrain's training, as a recipe names it.
        deadline: a value of ``time.monotonic()``. The part is killed soon after it.
        save: writes the part's result so far, which remains if the part ends early.
        scratch: an empty folder.
        earlier: the results of other parts, by name.
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
        """The model and the sample: Llama-3-8B with 8K tokens, or :data:`SMALL`."""
        return SMALL if self.small else CUDA_SHAPE

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and activations."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()

    def meter(self) -> Meter:
        """A meter of time and memory on the device."""
        return Meter(self.device, self.dtype)

    def product_rate(self) -> float:
        """FLOP/s of a large matrix product: what the part ``ceilings`` measured, or else a measurement of now."""
        known = self.earlier.get("ceilings", {}).get("matrix_product_flops_per_second")
        return float(known) if known else self.meter().product_rate()


def gib(size: float | None) -> str:
    """A size as text, such as ``12.3 GiB``; below one GiB in MiB."""
    if size is None:
        return "?"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
