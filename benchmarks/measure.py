"""How it is measured: losses, gradients and memory first, then time in rounds."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from shape import Work


@dataclass(frozen=True)
class Variant:
    """Something to time.

    Attributes:
        name: its key in the JSON file.
        says: what it is.
        losses: what can be computed and compared with other variants that have the same key; the first one is timed.
        work: what it has to multiply.
    """

    name: str
    says: str
    losses: dict[str, Callable[[], Tensor]]
    work: Work

    @property
    def timed_loss(self) -> str:
        return next(iter(self.losses))


class Meter:
    """Time, memory and the rate of a matrix product on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        size = 8192 if device.type == "cuda" else 2048
        self._factors = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)]
        self._product_flops = 2 * size**3

    def seconds(self, work: Callable[[], object]) -> float:
        self._synchronize()
        started = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - started

    def steady_seconds(self, work: Callable[[], object]) -> float:
        """The same, again (at most twice) if memory had to be had from the driver: a variant does not pay for blocks
        that another one's sizes made unfit."""
        seconds = 0.0
        for _ in range(3):
            before = self._driver_calls()
            seconds = self.seconds(work)
            if self._driver_calls() == before:
                break
        return seconds

    def _driver_calls(self) -> int:
        if self.device.type != "cuda":
            return 0
        counts = torch.cuda.memory_stats()
        return int(counts.get("num_device_alloc", 0) + counts.get("num_device_free", 0))

    def copy_rate(self) -> float:
        """Bytes/s of a large copy on the device, read and written, the best of three."""
        source = torch.randn(2**30 if self.device.type == "cuda" else 2**24, device=self.device)  # 4 GiB, 64 MiB
        target = torch.empty_like(source)
        self.seconds(lambda: target.copy_(source))
        return 2 * source.nbytes / min(self.seconds(lambda: target.copy_(source)) for _ in range(3))

    def product_rate(self) -> float:
        """FLOP/s of a large square matrix product, the best of three."""
        return self._product_flops / min(self.seconds(lambda: torch.mm(*self._factors)) for _ in range(3))

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """Most memory held during ``work`` above what was held before it.

        CUDA: the allocator's figure. Linux with glibc: the kernel's high-water mark of resident memory, freed tensors
        handed back at once; other systems have none.
        """
        if self.device.type == "cuda":
            self._synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            self._synchronize()
            return torch.cuda.max_memory_allocated() - before
        if platform.libc_ver()[0] != "glibc":
            work()
            return None
        _hand_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
        work()
        return _resident("VmHWM") - before

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def _hand_back_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """As CUDA's allocator does. By itself glibc gives tensors over 32 MB back, and the patterns with large batches, the
    reference first of all, would pay for fresh pages in every operation."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Stepper:
    """Runs steps and reads the gradients they leave."""

    def __init__(self, model: PeftModel) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.last_loss = torch.tensor(0.0)

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Forward and backward."""
        for parameter in self._trained:
            parameter.grad = None
        value = loss()
        value.backward()
        self.last_loss = value.detach()

    def gradient(self) -> Tensor:
        """All gradients of the last step in one row."""
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self._trained])


@dataclass(frozen=True)
class Found:
    """What was seen of a variant before the clock ran."""

    losses: dict[str, float]
    differences: dict[str, dict[str, Any]]  # by loss: from which variant, and how far off
    peak_bytes: int | None


def examine(
    variants: list[Variant], stepper: Stepper, meter: Meter, faults: dict[str, str] | None = None
) -> dict[str, Found]:
    """Loss, gradients and memory of every variant; one that does not fit into memory is named and left out.

    Args:
        variants: those that others are compared with first.
        stepper: runs them.
        meter: measures their memory.
        faults: gets what went wrong by variant, and then no fault ends the comparison of the others. None: running out
            of memory is the only one that does not.
    """
    baselines: dict[str, tuple[str, float, Tensor]] = {}
    found: dict[str, Found] = {}
    for variant in variants:
        losses: dict[str, float] = {}
        differences: dict[str, dict[str, Any]] = {}
        peak: int | None = None
        gc.collect()  # what a variant that did not fit left in cycles
        try:
            for key, loss in variant.losses.items():
                peak_of_loss = meter.peak_bytes(partial(stepper.step, loss))
                peak = peak_of_loss if peak is None else peak
                losses[key] = value = stepper.last_loss.item()
                gradient = stepper.gradient()
                if key not in baselines:
                    baselines[key] = (variant.name, value, gradient)
                    continue
                against, expected, expected_gradient = baselines[key]
                norm = expected_gradient.norm()
                differences[key] = {
                    "against": against,
                    "loss": abs(value - expected) / abs(expected),
                    "gradient": ((gradient - expected_gradient).norm() / norm).item(),
                }
        except Exception as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if faults is None and not out_of_memory:
                raise
            fault = "out of memory" if out_of_memory else f"{type(error).__name__}: {error}"
            print(f"{variant.name}: {fault}, left out", flush=True)
            if faults is not None:
                faults[variant.name] = fault
            continue
        found[variant.name] = Found(losses, differences, peak)
        print(f"  {variant.name:32} {_show_losses(losses, differences)}", flush=True)
    return found


def _show_losses(losses: dict[str, float], differences: dict[str, dict[str, Any]]) -> str:
    parts = []
    for key, value in losses.items():
        text = f"{key}: {value:.6f}"
        if key in differences:
            off = differences[key]
            text += f" (off {off['against']} by {off['loss']:.1e}, gradients by {off['gradient']:.1e})"
        parts.append(text)
    return ", ".join(parts)


def time_rounds(
    variants: list[Variant],
    stepper: Stepper,
    meter: Meter,
    rounds: int,
    *,
    deadline: float = math.inf,
    after_round: Callable[[dict[str, list[float]], list[float]], None] = lambda _seconds, _rates: None,
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each variant in each round, and the rate of the matrix product in each round.

    Args:
        variants: what to time.
        stepper: runs them.
        meter: its clock.
        rounds: how many.
        deadline: of ``time.monotonic()``; a round that would end after it is not begun, but for the first.
        after_round: gets what was measured so far.
    """
    keep_freed_memory()
    started = time.monotonic()
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    rates = []
    for number in range(rounds):
        if number and time.monotonic() + (time.monotonic() - started) / number > deadline:
            print(f"  no time for round {number + 1} of {rounds}", flush=True)
            break
        first = number % len(variants)
        for variant in variants[first:] + variants[:first]:
            loss = variant.losses[variant.timed_loss]
            seconds[variant.name].append(meter.steady_seconds(partial(stepper.step, loss)))
        rates.append(meter.product_rate())
        shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in seconds.items())
        print(f"  round {number + 1} of {rounds}, seconds: {shown}", flush=True)
        after_round(seconds, rates)
    return seconds, rates
