"""How fast a run is: tokens and samples a second, memory, share of the card's rate; and a trace of some steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.models.loading import load_config
from logotrain.metrics import Throughput
from logotrain.plan.cost import CARDS, model_flops, this_machine
from logotrain.plan.shape import ModelShape, model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import ProfileSettings
from logotrain.rows.collate import Draw
from logotrain.steps import Run

_GIB = 2**30


class Speedometer:
    """Measures the throughput of a run's steps. All processes call the same methods."""

    def __init__(self, run: Run) -> None:
        self._run = run
        card, _ = this_machine()
        self._peak_flops = CARDS[card].datasheet_flops
        self._shape = None if self._peak_flops is None else _shape(run)

    def start(self) -> float:
        """Begin a step, and return the time: what came before it does not count as its memory."""
        if self._run.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._run.world.device)
        return time.perf_counter()

    def measure(self, draws: Sequence[Draw], tokens: int, seconds: float) -> Throughput:
        """Return the throughput of the step that trained on ``draws``, all processes together, in ``seconds``."""
        memory = max(self._run.world.gather(_peak_memory(self._run.world.device)))
        return Throughput(
            tokens_per_second=round(tokens / seconds, 1),
            samples_per_second=round(len(draws) / seconds, 3),
            memory_gib=round(memory / _GIB, 3),
            mfu=self._mfu(draws, seconds),
        )

    def _mfu(self, draws: Sequence[Draw], seconds: float) -> float | None:
        if self._shape is None or self._peak_flops is None:
            return None
        run, flops = self._run, 0.0
        for _, sample in draws:
            row = run.collator.layout(sample)
            flops += model_flops(StepPlan(self._shape, run.recipe, row, shared=run.prepared.attention.shared))
        return round(flops / (seconds * run.world.size * self._peak_flops), 4)


def _shape(run: Run) -> ModelShape | None:
    try:
        return model_shape(load_config(run.recipe.model))
    except UserError as error:
        note(f"the share of the card's rate is not measured: {error.what}")
        return None


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes allocated on a GPU since the step began; on a CPU, the most that the process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class StepProfiler:
    """Writes a trace of some steps with torch.profiler, on the main process.

    Args:
        folder: where the trace goes, as ``steps-A-B.json.gz``.
        total_steps: number of steps of the run.

    Raises:
        UserError: the run has no such steps.
    """

    def __init__(self, settings: ProfileSettings | None, folder: Path, *, total_steps: int, is_main: bool) -> None:
        if settings is not None and settings.steps[1] > total_steps:
            first, last = settings.steps
            raise UserError(
                f"profile.steps=[{first}, {last}]: the run has {total_steps} steps", mend="choose steps of the run"
            )
        self._settings, self._folder = settings if is_main else None, folder
        self._running: torch.profiler.profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record the step of this number, from 1, within the block, if it is one of those to trace."""
        if self._settings is None or not self._settings.steps[0] <= number <= self._settings.steps[1]:
            yield
            return
        first, last = self._settings.steps
        if self._running is None:  # a run that goes on in the middle traces what is left
            self._running = torch.profiler.profile(profile_memory=True)
            self._running.start()
        with torch.profiler.record_function(f"step {number}"):
            yield
        if number == last:
            self._running.stop()
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"steps-{first}-{last}.json.gz"
            self._running.export_chrome_trace(str(path))
            self._running = None
            note(f"trace of steps {first} to {last}: {path} (open it at https://ui.perfetto.dev)")
