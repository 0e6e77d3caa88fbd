"""The training loop, top to bottom."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain import checkpoint
from logotrain.collate import SharedPrefixRow, collate
from logotrain.data import TrainingData
from logotrain.interrupt import StopFlag, stop_on_signal
from logotrain.logprobs import response_logprobs
from logotrain.metrics import MetricsLog, SampleMetrics, step_metrics
from logotrain.model import load_trainable
from logotrain.objective import logo
from logotrain.recipe import TrainRecipe
from logotrain.schedule import Schedule
from logotrain.shared_prefix import use_shared_prefix

_FAR_BEHIND = -10.0
"""Where beta * margin starts below this, the sigmoid is saturated and every gradient is clipped."""


def train(recipe: TrainRecipe, data: TrainingData, out: Path) -> Path:
    """Train to the end, continuing from the newest intact checkpoint in ``out/checkpoints``.

    Args:
        recipe: how.
        data: on what; checked.
        out: the run's folder, locked by the caller.

    Returns:
        ``out/final``, the adapter.

    Raises:
        UserError: the model cannot be used, or the loss stopped being a number; the last checkpoint is kept.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint of the last whole step was written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trainable(recipe, device)
    optimizer = _make_optimizer(recipe, model)
    schedule = Schedule(recipe, len(data.samples))
    checkpoints = out / "checkpoints"
    done = checkpoint.restore(checkpoints, model, optimizer)
    if done:
        note(f"continuing after step {done} of {schedule.total_steps}")
    log = MetricsLog(out / "metrics.jsonl", last_step=done)

    def save(steps_done: int) -> None:
        checkpoint.save(checkpoints, steps_done, model, optimizer, keep=recipe.checkpoint.keep)

    with use_shared_prefix(model), stop_on_signal() as stop, progress("train", schedule.total_steps, done) as bar:
        for step in range(done, schedule.total_steps):
            started = time.perf_counter()
            batch = [(epoch, data.samples[index]) for epoch, index in schedule.samples(step)]
            lr = schedule.learning_rate(step)
            try:
                metrics = _train_step(model, optimizer, batch, lr=lr, recipe=recipe, target_length=data.target_length, stop=stop)
            except _Stopped:
                # Weights and optimizer are those of the last whole step.
                save(step)
                raise KeyboardInterrupt from None
            except _NotFinite as error:
                kept = f"checkpoint step-{max(_checkpoints(checkpoints))} is kept" if _checkpoints(checkpoints) else "there is no checkpoint yet"
                raise UserError(f"{error} at step {step + 1}; {kept}", where=str(out), mend="lower optimizer.lr, or look at this sample") from None
            if step == 0:
                _report_start(metrics, recipe)
            log.append({"step": step + 1, **metrics, "lr": lr, "seconds": time.perf_counter() - started})
            bar.advance(loss=metrics["loss"], margin=metrics["margin"])
            _stop_if_collapsed(metrics, recipe, out)
            if (step + 1) % recipe.checkpoint.every_steps == 0 or step + 1 == schedule.total_steps:
                save(step + 1)
    final = out / "final"
    checkpoint.export_adapter(model, final)
    return final
