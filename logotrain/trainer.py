"""The training loop, top to bottom."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
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
from logotrain.recipe import ObjectiveSettings, OptimizerSettings, TrainRecipe
from logotrain.schedule import Schedule
from logotrain.shared_prefix import use_shared_prefix

_FAR_BEHIND = -10.0
"""Below this value of beta * margin the sigmoid is saturated, and every gradient is clipped."""


def train(recipe: TrainRecipe, data: TrainingData, out: Path) -> Path:
    """Train to the end, continuing from the newest intact checkpoint in ``out/checkpoints``.

    Args:
        recipe: how.
        data: on what; already checked.
        out: the run's folder; the caller holds its lock.

    Returns:
        ``out/final``, the adapter.

    Raises:
        UserError: the model cannot be used, the loss is no longer a number, or the model collapsed.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint holds the last whole step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trainable(recipe, device)
    optimizer = _make_optimizer(model, recipe.optimizer)
    schedule = Schedule(recipe, len(data.samples))
    checkpoints = out / "checkpoints"
    done = saved = checkpoint.restore(checkpoints, model, optimizer)
    if done:
        note(f"continuing after step {done} of {schedule.total_steps}")
    log = MetricsLog(out / "metrics.jsonl", last_step=done)

    with use_shared_prefix(model), stop_on_signal() as stop, progress("train", schedule.total_steps, done) as bar:
        while done < schedule.total_steps:
            started = time.perf_counter()
            batch: list[tuple[PreferenceSample, SharedPrefixRow]] = []
            for epoch, index in schedule.samples(done):
                sample = data.samples[index]
                row = collate(
                    sample, settings=recipe.positions, target_length=data.target_length, seed=recipe.seed, epoch=epoch
                )
                batch.append((sample, row.to(device)))

            lr = schedule.learning_rate(done)
            metrics = _train_step(model, optimizer, batch, recipe, lr=lr, stop=stop)
            if metrics is None:
                if done > saved:
                    checkpoint.save(checkpoints, done, model, optimizer, keep=recipe.checkpoint.keep)
                raise KeyboardInterrupt
            done += 1

            if done == 1:  # no update has been made yet: these are the base model's figures
                _report_base(metrics, recipe.objective, len(batch))
            log.append({"step": done, **metrics, "lr": lr, "seconds": round(time.perf_counter() - started, 3)})
            bar.advance(loss=metrics["loss"], margin=metrics["margin"])
            _stop_if_collapsed(metrics, recipe, step=done)
            if done % recipe.checkpoint.every_steps == 0 or done == schedule.total_steps:
                checkpoint.save(checkpoints, done, model, optimizer, keep=recipe.checkpoint.keep)
                saved = done
    final = out / "final"
    checkpoint.export_adapter(model, final)
    return final


def _make_optimizer(model: PeftModel, settings: OptimizerSettings) -> AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(
        trained, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def _train_step(
    model: PeftModel,
    optimizer: AdamW,
    batch: list[tuple[PreferenceSample, SharedPrefixRow]],
    recipe: TrainRecipe,
    *,
    lr: float,
    stop: StopFlag,
) -> dict[str, float] | None:
    """One update from the mean loss of ``batch``, one row at a time.

    Returns:
        The step's metrics; None if the run was asked to stop before the step's end, and then nothing has changed.
    """
    optimizer.zero_grad(set_to_none=True)
    samples: list[SampleMetrics] = []
    for sample, row in batch:
        if stop:
            return None
        loss, metrics = _sample_loss(model, sample, row, recipe.objective)
        if not torch.isfinite(loss):
            raise _not_finite(f"loss is {loss.item()}", f"sample {sample.id}")
        (loss / len(batch)).backward()
        samples.append(metrics)
    for group in optimizer.param_groups:
        group["lr"] = lr
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = clip_grad_norm_(parameters, recipe.optimizer.max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise _not_finite(
            f"gradient norm is {grad_norm.item()}", "samples " + ", ".join(sample.id for sample, _ in batch)
        )
    optimizer.step()
    return {**step_metrics(samples), "grad_norm": grad_norm.item()}


def _sample_loss(
    model: PeftModel, sample: PreferenceSample, row: SharedPrefixRow, settings: ObjectiveSettings
) -> tuple[Tensor, SampleMetrics]:
    """The loss of one sample, a scalar with gradients, and its figures."""
    chosen, *rejected = (logprobs.mean() for logprobs in response_logprobs(model, row))
    terms = logo(
        chosen[None],
        torch.stack(rejected)[None],
        beta=settings.beta,
        gamma=settings.gamma,
        sft_weight=settings.sft_weight,
    )
    margin = terms.margin.item()
    return terms.loss[0], SampleMetrics(
        loss=terms.loss.item(),
        preference_loss=terms.preference.item(),
        sft_loss=terms.sft.item(),
        margin=margin,
        chosen_logp=chosen.item(),
        rejected_logp=chosen.item() - margin,
        accuracy=float(margin > 0),
        chosen_ended=float(sample.chosen.ended),
        rejected_ended=sum(response.ended for response in sample.rejected) / len(sample.rejected),
        tokens=row.layout.total_length,
    )


def _not_finite(what: str, where: str) -> UserError:
    return UserError(
        f"{what}; checkpoints written so far are kept", where=where, mend="lower optimizer.lr, or look at this sample"
    )


def _report_base(metrics: dict[str, float], settings: ObjectiveSettings, num_samples: int) -> None:
    """Say how far apart the base model holds the responses: ones that it finds absurd teach only their style."""
    scaled = settings.beta * metrics["margin"]
    margin = f"margin {metrics['margin']:+.3f} nats a token"
    note(f"base model, {num_samples} samples: {margin}, beta * margin = {scaled:+.1f}")
    if scaled < _FAR_BEHIND:
        mend = "prefer responses in the model's own words, or lower objective.beta"
        note(f"warning: beta * margin is below {_FAR_BEHIND:g}: the loss is saturated; {mend}")


def _stop_if_collapsed(metrics: dict[str, float], recipe: TrainRecipe, *, step: int) -> None:
    lowest = recipe.collapse.min_chosen_logp
    if lowest is not None and metrics["chosen_logp"] < lowest:
        found = f"preferred responses have {metrics['chosen_logp']:.2f} nats a token"
        raise UserError(
            f"the model collapsed: {found}, collapse.min_chosen_logp={lowest:g}",
            where=f"step {step}",
            mend="lower optimizer.lr or objective.beta, or raise objective.sft_weight",
        )
