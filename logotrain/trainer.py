"""A run, top to bottom: what is prepared, and the loop of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from logodata.common.console import note, progress
from logodata.dataset.log_probs import FAR_BEHIND
from logodata.models.loading import load_config
from logotrain.checkpoints.export import export
from logotrain.checkpoints.saving import CheckpointWriter, restore, restore_step
from logotrain.data.training_data import TrainingData
from logotrain.guards import RepetitionGuard, check_chosen, no_gradient_lost
from logotrain.interrupt import StopFlag, Stopped, stop_on_signal
from logotrain.loss.reference import ReferenceLogprobs
from logotrain.loss.router_weight import router_weight
from logotrain.metrics import Metrics, MetricsLog, StepRecord, cut_half_line
from logotrain.model.rope import own_rope
from logotrain.optimizer import make_optimizer
from logotrain.parallel import World
from logotrain.prepare import prepare
from logotrain.recipe.objectives import ObjectiveSettings
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator, Draw
from logotrain.run_files import (
    HELD_OUT_REFERENCE_FILE,
    METRICS_FILE,
    REFERENCE_FILE,
    REPETITION_FILE,
    VALIDATION_FILE,
)
from logotrain.schedule import Schedule
from logotrain.steps import Run, check_update, measure, train_step, trained_weights
from logotrain.throughput import Speedometer, StepProfiler
from logotrain.trackers import Trackers
from logotrain.trainable import check_split, check_weights
from logotrain.validation import Validation, ValidationRecord


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
    schedule = Schedule(recipe, len(data.samples), num_mixed=len(data.mix), mix_per_epoch=data.mix_per_epoch)
    total = schedule.total_steps
    profiler = StepProfiler(recipe.profile, out / "profile", total_steps=total, is_main=world.is_main)
    collator = Collator.of(recipe, data.target_length, data.unspread)
    held_out: list[Draw] = [(0, sample) for sample in data.validation]  # the same positions at each measurement
    layouts = [collator.layout(sample) for sample in (*data.samples, *data.mix, *data.validation)]
    prepared = prepare(recipe, world, collator, layouts if data.samples else [])
    model = prepared.model
    optimizer = make_optimizer(recipe.optimizer, trained_weights(model))
    for name in (METRICS_FILE, REFERENCE_FILE, HELD_OUT_REFERENCE_FILE):
        world.on_main(partial(cut_half_line, out / name))
    log = MetricsLog(out / METRICS_FILE)
    logged = world.on_main(lambda: len(log.steps()))
    done = restore(out / "checkpoints", model.model, optimizer, world, logged=logged)
    _tell_beginning(recipe, schedule, done)
    world.on_main(partial(log.cut, done))
    validation = Validation(
        recipe.validation, out / VALIDATION_FILE, world, done=done, total_steps=total, active=bool(held_out)
    )
    writer = CheckpointWriter(out / "checkpoints", recipe.checkpoint, world, best=validation.best_step)

    with stop_on_signal() as stop:
        with prepared.attention.of(model.causal_lm), no_gradient_lost():
            check_weights(model, world, recipe.model)
            check_split(model, world, recipe.model)
            weight = router_weight(recipe.router_loss, model, world.device, where=recipe.model)
            run = Run(recipe, world, prepared, optimizer, collator.split(model.context_group.size), weight)
            reference_of = partial(_reference, run, untrained=done == 0, stop=stop)
            to_train = (draw for step in range(done, total) for draw in _draws(schedule, data, step))
            reference = reference_of(out / REFERENCE_FILE, to_train)
            held_out_reference = reference_of(out / HELD_OUT_REFERENCE_FILE, held_out)
            prompts = [sample.prompt_ids for sample in data.samples[: recipe.collapse.num_prompts]]
            repetition = RepetitionGuard(
                recipe.collapse, model, prompts, world, out / REPETITION_FILE, untrained=done == 0
            )
            with writer.closing(stop), Trackers(recipe, out, done=done, is_main=world.is_main) as trackers:
                loop = _Loop(
                    run=run,
                    schedule=schedule,
                    data=data,
                    reference=reference,
                    held_out=held_out,
                    held_out_reference=held_out_reference,
                    validation=validation,
                    repetition=repetition,
                    writer=writer,
                    log=log,
                    trackers=trackers,
                    profiler=profiler,
                    speed=Speedometer(run),
                    stop=stop,
                    done=done,
                    saved=done,
                )
                loop.run_all()
        final = out / "final"
        if recipe.validation.final == "best" and validation.best_step not in (None, loop.done):
            restore_step(out / "checkpoints", validation.best_step, model.model, optimizer, world)
        export(model.model, final, world, name=recipe.model, dtype=getattr(torch, recipe.dtype))
        # Last: they may take hours, and the other processes end without waiting for them.
        writer.end_commands(stop)
    return final


@dataclass(slots=True, kw_only=True)
class _Loop:
    """The steps of a run. ``done`` is the number of those that are trained, ``saved`` of those in a checkpoint."""

    run: Run
    schedule: Schedule
    data: TrainingData
    reference: ReferenceLogprobs | None
    held_out: Sequence[Draw]
    held_out_reference: ReferenceLogprobs | None
    validation: Validation
    repetition: RepetitionGuard
    writer: CheckpointWriter
    log: MetricsLog
    trackers: Trackers
    profiler: StepProfiler
    speed: Speedometer
    stop: StopFlag
    done: int
    saved: int

    def run_all(self) -> None:
        """Train what is left. Measure and save at the steps where it is due, and at the end."""
        recipe, total = self.run.recipe, self.schedule.total_steps
        if self.validation.due(self.done):
            with progress("held-out samples", len(self.held_out)) as bar:
                self.validate(bar.advance)
        with progress("train", total, self.done) as bar:
            while self.done < total and not self.validation.exhausted:
                record = self.step()
                bar.advance(1, **_progress_figures(record))
                check_chosen(recipe.collapse, record.chosen_logp, self.done, short_chosen_logp=record.short_chosen_logp)
                self.repetition.check(record.repetition, step=self.done)
                if self.done % recipe.checkpoint.every_steps == 0:
                    self.save()
                self.validate(lambda _: None)
            if self.done < total:
                best = self.validation.best_step
                note(f"stopped after step {self.done}: no better since step {best} (validation.patience)")
                self.repetition.check(self.repetition.measure(self.done, last=True), step=self.done)
            self.save()

    def step(self) -> StepRecord:
        """Make one update, and log it."""
        run, started = self.run, self.speed.start()
        batch, lr = _draws(self.schedule, self.data, self.done), self.schedule.learning_rate(self.done)
        with self.profiler.step(self.done + 1):
            updated = train_step(run, batch, self.reference, step=self.done + 1, lr=lr, stop=self.stop)
        if updated is None:
            raise self.stopped()
        self.done += 1
        metrics, grad_norm = updated
        seconds = time.perf_counter() - started
        if self.done == 1:  # no update had been made yet: these are the base model's figures
            _report_base(metrics, run.recipe.objective, len(batch))
        unspread = run.collator.unspread
        record = StepRecord(
            **metrics.model_dump(),
            **self.speed.measure(batch, metrics.tokens, seconds).model_dump(),
            step=self.done,
            mix=sum(sample.id in unspread for _, sample in batch) if self.data.mix else None,
            grad_norm=grad_norm,
            repetition=self.repetition.measure(self.done, last=self.done == self.schedule.total_steps),
            lr=lr,
            seconds=round(seconds, 3),
        )
        run.world.on_main(partial(self.log.append, record))
        self.trackers.log("train", self.done, record.model_dump())
        return record

    def validate(self, advance: Callable[[int], None]) -> None:
        """Measure the held-out samples if it is due, and save the step if it is the best one."""
        if not self.validation.due(self.done):
            return
        started = time.perf_counter()
        found = measure(
            self.run, self.held_out, self.held_out_reference, step=self.done, stop=self.stop, advance=advance
        )
        if found is None:
            raise self.stopped()
        seconds = round(time.perf_counter() - started, 3)
        record = ValidationRecord(**found.model_dump(), step=self.done, seconds=seconds)
        self.validation.append(record)
        self.trackers.log("validation", self.done, record.model_dump())
        note(f"held-out samples after step {self.done}: {record.describe()}")
        if self.validation.best_step == self.done:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the last step, unless there is one."""
        if self.done > self.saved:
            check_update(self.run, self.done)
            model = self.run.prepared.model.model
            self.writer.save(self.done, model, self.run.optimizer, best=self.validation.best_step)
            self.saved = self.done

    def stopped(self) -> Stopped:
        """Save the last step, and return what ends the run."""
        self.save()
        return Stopped()


def _draws(schedule: Schedule, data: TrainingData, step: int) -> list[Draw]:
    """Return the samples of a step, each with its epoch, which decides its positions. Those of the mix have natural
    positions, which are the same in every epoch, and so are the untrained model's log-probabilities."""
    of_data = len(data.samples)
    return [
        (epoch, data.samples[index]) if index < of_data else (0, data.mix[index - of_data])
        for epoch, index in schedule.samples(step)
    ]


def _tell_beginning(recipe: TrainRecipe, schedule: Schedule, done: int) -> None:
    if done:
        note(f"continuing after step {done} of {schedule.total_steps}")
    elif 0 < schedule.stream_length < recipe.samples_per_step:
        note(
            f"warning: {schedule.stream_length} samples in all epochs, samples_per_step={recipe.samples_per_step}: the "
            "whole run is one step; lower samples_per_step for more"
        )


def _reference(
    run: Run, path: Path, draws: Iterable[Draw], *, untrained: bool, stop: StopFlag
) -> ReferenceLogprobs | None:
    """Return the untrained model's log-probabilities of ``draws``, computed if they are missing; None if the objective
    reads none."""
    if not run.recipe.objective.uses_reference:
        return None
    recipe = run.recipe
    reference = ReferenceLogprobs(path, untrained=untrained, redraws=recipe.redraws_reference)
    run = replace(run, collator=replace(run.collator, parts=recipe.objective.reference_parts))
    own = recipe.objective.reference_has_own_rope and recipe.rope is not None
    with own_rope(run.prepared.model.causal_lm, load_config(recipe.model)) if own else nullcontext():
        reference.complete(
            list(draws),
            run.prepared.model,
            run.collator,
            run.world,
            share=lambda block: [indices for indices, _ in run.rows(block)],
            block=recipe.samples_per_step,
            stop=stop,
        )
    return reference


def _progress_figures(record: StepRecord) -> dict[str, Any]:
    names = ("margin", "short_margin")
    margin = {name: value for name in names if (value := getattr(record, name)) is not None}
    return {"loss": record.loss, **margin, "tokens/s": round(record.tokens_per_second)}


def _report_base(metrics: Metrics, settings: ObjectiveSettings, num_samples: int) -> None:
    """Tell how far apart the base model holds the responses. Those that it finds absurd teach only their style."""
    found, prompt = metrics.margin, ""
    if not settings.parts[-1].rejected:
        found, prompt = metrics.short_margin, " under the short prompt"
    if found is None or settings.mean_margin_scale is None:
        return
    scaled = settings.mean_margin_scale * found
    margin = f"margin{prompt} {found:+.3f} nats a token"
    note(f"base model, {num_samples} samples: {margin}, beta * margin = {scaled:+.1f}")
    if scaled < FAR_BEHIND:
        mend = "prefer responses in the model's own words, or lower the objective's beta"
        note(f"warning: beta * margin is below {FAR_BEHIND:g}: the loss is saturated; {mend}")
