"""The training loop, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.dataset.log_probs import FAR_BEHIND
from logotrain.checkpoints.export import export
from logotrain.checkpoints.saving import CheckpointWriter, restore
from logotrain.data import TrainingData
from logotrain.guards import RepetitionGuard, check_chosen, no_gradient_lost
from logotrain.interrupt import StopFlag, Stopped, stop_on_signal
from logotrain.loss.logprobs import LogprobModel, SampleLogprobs, split_logprobs
from logotrain.loss.objective import sample_loss
from logotrain.loss.reference import ReferenceLogprobs
from logotrain.loss.router_weight import router_weight
from logotrain.loss.routers import RouterRecord
from logotrain.metrics import Metrics, MetricsLog, StepRecord, cut_half_line, mean_metrics
from logotrain.parallel import World
from logotrain.prepare import Prepared, prepare
from logotrain.recipe.settings import (
    LogoSettings,
    ObjectiveSettings,
    OptimizerSettings,
    SimpoSettings,
    TrainRecipe,
    scores_prompt,
    uses_reference,
)
from logotrain.rows.collate import Collator, Draw
from logotrain.rows.packing import share_rows
from logotrain.schedule import Schedule
from logotrain.trainable import check_weights

_SHOWN_SAMPLES = 3
"""The number of samples that an error about a step names."""


@dataclass(frozen=True, slots=True)
class _Run:
    recipe: TrainRecipe
    world: World
    prepared: Prepared
    optimizer: AdamW
    collator: Collator
    reference: ReferenceLogprobs | None
    router_weight: float | None

    def rows(self, draws: Sequence[Draw]) -> list[tuple[list[int], bool]]:
        """Return this process's rows of a step, each as indices into ``draws`` and whether the row counts."""
        return share_rows(
            [self.collator.layout(sample) for _, sample in draws],
            self.world.size,
            self.world.rank,
            row_tokens=self.prepared.attention.row_tokens(self.recipe.row_tokens),
            attention_share=self.prepared.attention_share,
        )


def train(recipe: TrainRecipe, data: TrainingData, out: Path, world: World) -> Path:
    """Train to the last step, from the newest intact checkpoint in ``out/checkpoints`` if there is one.

    All processes call this with equal arguments. The caller holds the lock of ``out``.

    Returns:
        ``out/final``, an adapter or, after full tuning, a model.

    Raises:
        UserError: the model cannot be used, a loss, gradient or weight is not finite, or the model collapsed.
            Checkpoints never hold weights that are not finite.
        Stopped: SIGINT or SIGTERM was received; a checkpoint holds the last complete step.
        KeyboardInterrupt: SIGINT was received twice.
    """
    collator = Collator.of(recipe, data.target_length)
    prepared = prepare(recipe, world, collator, [collator.layout(sample) for sample in data.samples])
    model = prepared.model
    optimizer = _make_optimizer(model, recipe.optimizer)
    schedule = Schedule(recipe, len(data.samples))
    writer = CheckpointWriter(out / "checkpoints", recipe.checkpoint, world)
    for name in ("metrics.jsonl", "reference.jsonl"):
        world.on_main(partial(cut_half_line, out / name))
    log = MetricsLog(out / "metrics.jsonl")
    logged = world.on_main(lambda: len(log.steps()))
    done = saved = restore(out / "checkpoints", model.model, optimizer, world, logged=logged)
    if done:
        note(f"continuing after step {done} of {schedule.total_steps}")
    elif 0 < schedule.stream_length < recipe.samples_per_step:
        note(
            f"warning: {schedule.stream_length} samples in all epochs, samples_per_step={recipe.samples_per_step}: the "
            "whole run is one step; lower samples_per_step for more"
        )
    world.on_main(partial(log.cut, done))
    reference = None
    if uses_reference(recipe.objective):
        reference = ReferenceLogprobs(out / "reference.jsonl", untrained=done == 0)

    def draws(step: int) -> list[Draw]:
        return [(epoch, data.samples[index]) for epoch, index in schedule.samples(step)]

    def save(step: int) -> None:
        _check_weights(run, step)
        writer.save(step, model.model, optimizer)

    with stop_on_signal() as stop:
        with prepared.attention.of(model.causal_lm), no_gradient_lost():
            check_weights(model, world, recipe.model)
            weight = router_weight(recipe.router_loss, model, world.device, where=recipe.model)
            run = _Run(recipe, world, prepared, optimizer, collator, reference, weight)
            if reference is not None:
                reference.complete(
                    [draw for step in range(done, schedule.total_steps) for draw in draws(step)],
                    model,
                    collator,
                    world,
                    share=lambda block: [indices for indices, _ in run.rows(block)],
                    block=recipe.samples_per_step,
                    stop=stop,
                )
            prompts = [sample.prompt_ids for sample in data.samples[: recipe.collapse.num_prompts]]
            repetition = RepetitionGuard(recipe.collapse, model, prompts, world, out / "base.json", untrained=done == 0)
            with writer.closing(stop), progress("train", schedule.total_steps, done) as bar:
                while done < schedule.total_steps:
                    started = time.perf_counter()
                    batch, lr = draws(done), schedule.learning_rate(done)
                    updated = _train_step(run, batch, step=done + 1, lr=lr, stop=stop)
                    if updated is None:
                        if done > saved:
                            save(done)
                        raise Stopped
                    done += 1
                    metrics, grad_norm = updated
                    if done == 1:  # no update had been made yet: these are the base model's figures
                        _report_base(metrics, recipe.objective, len(batch))
                    record = StepRecord(
                        **metrics.model_dump(),
                        step=done,
                        grad_norm=grad_norm,
                        repetition=repetition.measure(done, last=done == schedule.total_steps),
                        lr=lr,
                        seconds=round(time.perf_counter() - started, 3),
                    )
                    world.on_main(partial(log.append, record))
                    bar.advance(1, loss=record.loss, **({} if record.margin is None else {"margin": record.margin}))
                    check_chosen(recipe.collapse, record.chosen_logp, step=done)
                    repetition.check(record.repetition, step=done)
                    if done % recipe.checkpoint.every_steps == 0 or done == schedule.total_steps:
                        save(done)
                        saved = done
        final = out / "final"
        export(model.model, final, world, name=recipe.model, dtype=getattr(torch, recipe.dtype))
        # Last: they may take hours, and no process waits for ever for the main one to export.
        writer.end_commands(stop)
    return final


def _make_optimizer(model: LogprobModel, settings: OptimizerSettings) -> AdamW:
    return AdamW(
        _trained(model),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _trained(model: LogprobModel) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _train_step(
    run: _Run, draws: Sequence[Draw], *, step: int, lr: float, stop: StopFlag
) -> tuple[Metrics, float] | None:
    """Make update number ``step`` (from 1), and return its metrics and gradient norm.

    None means that the run was asked to stop before the end of the step; then nothing has changed.
    """
    world, model, sharded = run.world, run.prepared.model, run.prepared.sharded
    run.optimizer.zero_grad(set_to_none=True)
    found: list[tuple[int, Metrics]] = []
    rows = run.rows(draws)
    for number, (indices, counts) in enumerate(rows):
        if world.any(bool(stop)):
            return None
        if sharded:
            # Unsharded gradients of full tuning are too large to keep until the last row.
            last = number == len(rows) - 1 or run.recipe.tuning == "full"
            model.set_requires_gradient_sync(last)  # type: ignore[operator]  # FSDP adds it
        batch = [draws[index] for index in indices]
        row = run.collator(batch).to(world.device)
        losses = []
        routers = RouterRecord(loss=run.router_weight is not None)
        samples = split_logprobs(model(row, routers), row)
        for place, (index, draw, logprobs) in enumerate(zip(indices, batch, samples, strict=True)):
            reference = None if run.reference is None else run.reference.of(draw, world.device)
            loss, metrics = _sample_loss(draw[1], logprobs, run.recipe.objective, reference)
            if run.router_weight is not None:
                loss = loss + run.router_weight * routers.losses[place]
                values = {"loss": loss.item(), "router_loss": routers.losses[place].item()}
                metrics = metrics.model_copy(update=values)
            if routers.shares:
                metrics = metrics.model_copy(update={"expert_share": routers.shares[place]})
            losses.append(loss)
            if counts:
                found.append((index, metrics))
        # FSDP averages gradients over processes, but len(draws) counts the samples of all processes.
        weight = (world.size if sharded else 1) / len(draws) if counts else 0.0
        (torch.stack(losses).sum() * weight).backward()
    everything = sorted((pair for pairs in world.gather(found) for pair in pairs), key=lambda pair: pair[0])
    for index, metrics in everything:
        if metrics.fault is not None:
            raise _not_finite(metrics.fault, f"step {step}, sample {draws[index][1].id}", untrained=step == 1)
    parameters = _trained(model)
    if not sharded:
        world.add_gradients(parameters)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    norm = clip_grad_norm_(parameters, run.recipe.optimizer.max_grad_norm)
    grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    if not math.isfinite(grad_norm):
        names = [sample.id for _, sample in draws]
        more = f" and {len(names) - _SHOWN_SAMPLES} more" if len(names) > _SHOWN_SAMPLES else ""
        where = f"step {step}, samples {', '.join(names[:_SHOWN_SAMPLES])}{more}"
        raise _not_finite(f"gradient norm is {grad_norm}", where, untrained=step == 1)
    run.optimizer.step()
    return mean_metrics([metrics for _, metrics in everything]), grad_norm


def _sample_loss(
    sample: PreferenceSample, logprobs: SampleLogprobs, settings: ObjectiveSettings, reference: Tensor | None
) -> tuple[Tensor, Metrics]:
    """Return the loss of one sample, a scalar with gradients, and its metrics."""
    prompt = logprobs.prompt if scores_prompt(settings) else None
    terms = sample_loss(settings, logprobs.responses, prompt=prompt, reference=reference)
    chosen = logprobs.responses[0].mean().item()
    margin = None if terms.margin is None else terms.margin.item()
    return terms.loss[0], Metrics(
        loss=terms.loss.item(),
        preference_loss=terms.preference.item(),
        sft_loss=terms.sft.item(),
        margin=margin,
        chosen_logp=chosen,
        rejected_logp=None if margin is None else chosen - margin,
        accuracy=None if margin is None else float(margin > 0),
        chosen_ended=float(sample.chosen.ended),
        rejected_ended=sum(response.ended for response in sample.rejected) / len(sample.rejected),
        tokens=len(sample.prompt_ids) + sum(len(values) for values in logprobs.responses),
    )


def _check_weights(run: _Run, step: int) -> None:
    """Refuse weights that the update of ``step`` made infinite or NaN, because a run cannot continue from them."""
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in _trained(run.prepared.model))
    # aminmax returns NaN if there is one. Unlike isfinite it needs no memory, and full tuning has none to spare.
    extremes = [extreme for weight in own if weight.numel() for extreme in torch.aminmax(weight.detach())]
    if run.world.any(not all(math.isfinite(extreme.item()) for extreme in extremes)):
        raise _not_finite("the update made weights infinite or NaN", f"step {step}")


def _not_finite(what: str, where: str, *, untrained: bool = False) -> UserError:
    if untrained:
        mend = (
            "no update was made yet: try dtype=float32 or a lower objective.beta; else the model's weights are damaged"
        )
    else:
        mend = "checkpoints from before are kept; start again in another -o with a lower optimizer.lr or objective.beta"
    return UserError(what, where=where, mend=mend)


def _report_base(metrics: Metrics, settings: ObjectiveSettings, num_samples: int) -> None:
    """Tell how far apart the base model holds the responses. Those that it finds absurd teach only their style."""
    if metrics.margin is None or not isinstance(settings, LogoSettings | SimpoSettings):
        return
    scaled = settings.beta * metrics.margin
    margin = f"margin {metrics.margin:+.3f} nats a token"
    note(f"base model, {num_samples} samples: {margin}, beta * margin = {scaled:+.1f}")
    if scaled < FAR_BEHIND:
        mend = "prefer responses in the model's own words, or lower objective.beta"
        note(f"warning: beta * margin is below {FAR_BEHIND:g}: the loss is saturated; {mend}")
