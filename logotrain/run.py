"""Run a training in its folder: lock the folder, bind it to its settings, train, and print a summary."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note, show
from logodata.common.errors import UserError
from logodata.common.files import SEAL, bind_settings, damage, file_sha256, locked, put_aside, read_json
from logodata.common.recipes.reading import as_today
from logodata.common.verbosity import quiet_transformers
from logodata.contract import ImportManifest
from logodata.dataset.samples import read_manifest
from logodata.models.adapters import ADAPTER_FILES
from logotrain.inputs import check_run
from logotrain.metrics import MetricsLog, StepRecord, describe_change
from logotrain.pairs import import_data
from logotrain.recipe.defaults import dtype_of_run, with_positions
from logotrain.recipe.settings import TrainRecipe, ValidationSettings
from logotrain.run_files import (
    INPUTS_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    VALIDATION_FILE,
    forget_untrained,
    imported,
    is_started,
)
from logotrain.validation import ValidationRecord, best_record, read_validation

if TYPE_CHECKING:
    from logotrain.data.training_data import TrainingData
    from logotrain.parallel import World

_FREE = (
    "row_tokens",
    "attention",
    "recompute",
    "compile",
    "parallel",
    "checkpoint",
    "collapse",
    "report_to",
    "project",
    "profile",
)
"""Fields that may change when a run continues. They change the result only by rounding."""


def run(recipe: TrainRecipe, out: Path) -> Path:
    """Train as ``recipe`` says, in the folder ``out``. The same call continues a run that was stopped. Pairs are
    imported into ``out/data`` first, held-out ones into ``out/validation-data``, those of ``data.mix`` into
    ``out/mix-data``.

    It writes ``recipe.resolved.json``, ``inputs.json``, ``metrics.jsonl``, ``checkpoints/step-N/`` and ``final/``.

    Returns:
        ``out/final``, the finished adapter or, after full tuning, the model.

    Raises:
        UserError: recipe, data and model do not fit together, or ``out`` belongs to other settings or other data.
    """
    from logotrain.parallel import launched

    if not (out / "final").exists():  # a finished run needs none of its inputs
        check_run(recipe, out)
    with launched() as world, ExitStack() as stack:
        # The main process holds the lock for all.
        world.on_main(lambda: stack.enter_context(locked(out)))
        final = out / "final"
        if not final.exists():
            world.on_main(lambda: import_data(recipe, out, started=is_started(out)))
        recipe = _settled(recipe, out, world)
        if world.on_main(lambda: _begin(recipe, out)):
            note(f"already finished: {final}")
            world.on_main(lambda: _print_summary(recipe, out))
            return final

        quiet_transformers()  # before PEFT is imported
        from logotrain.data.loading import load_data

        data = load_data(imported(recipe, out))
        world.on_main(lambda: _bind_inputs(recipe, data, out))
        if data.samples:
            show(data.lengths())

        from logotrain.parallel import lone_group
        from logotrain.trainer import train

        with lone_group(world) if recipe.tuning == "full" else nullcontext():
            final = train(recipe, data, out, world)
        if world.is_main:  # without the others, which ended while a checkpoint's command still ran
            _print_summary(recipe, out)
        return final


def _print_summary(recipe: TrainRecipe, out: Path) -> None:
    steps, held_out = MetricsLog(out / METRICS_FILE).steps(), read_validation(out / VALIDATION_FILE)
    for line in summary(steps, held_out, recipe, out):
        note(line)


def _settled(recipe: TrainRecipe, out: Path, world: World) -> TrainRecipe:
    """Return the recipe with its dtype and positions decided, which the main process does for all."""
    bound = out / RECIPE_FILE
    settled, reason = world.on_main(lambda: dtype_of_run(recipe, bound if is_started(out) and bound.exists() else None))
    if reason:
        note(f"dtype: {settled.dtype} ({reason}; dtype={recipe.dtype} asks for the other)")
    positions = world.on_main(lambda: with_positions(imported(settled, out)).positions)
    return settled.model_copy(update={"positions": positions})


def _begin(recipe: TrainRecipe, out: Path) -> bool:
    """Bind the folder to the recipe, and return whether it holds a finished run. A damaged result is put aside."""
    final = out / "final"
    if final.exists() and not (final / SEAL).exists():
        # The user or an old version wrote it. It is not this run's result, and it must not be overwritten.
        raise UserError(
            "holds no files.json, so it is not this run's result",
            where=str(final),
            mend="move it elsewhere, then run the same command again",
        )
    _bind(out, RECIPE_FILE, recipe.model_dump(mode="json"), free=_FREE, upgrade=_as_today)
    if not final.exists():
        return False
    fault = damage(final)
    if fault:
        put_aside(final, fault, "it is written again from the newest checkpoint")
    return not fault


def _as_today(settings: dict[str, Any]) -> dict[str, Any]:
    recipe = as_today(TrainRecipe, settings)
    return settings if recipe is None else recipe.model_dump(mode="json")


def _bind(
    out: Path,
    name: str,
    settings: Mapping[str, Any],
    free: Collection[str] = (),
    upgrade: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Bind the folder to ``settings`` with :func:`bind_settings`, so that they stay fixed after the first step.

    Before the first step the settings may still change. What was measured of the untrained model under other settings
    is deleted then.
    """
    started = is_started(out)
    if started or (out / name).exists():
        try:
            bind_settings(out, name, settings, free, as_today=upgrade)
            return
        except UserError:
            if started:
                raise
    forget_untrained(out)
    bind_settings(out, name, settings, free, started=False)


def _bind_inputs(recipe: TrainRecipe, data: TrainingData, out: Path) -> None:
    """Bind the run to the contents of model and data, because the files at their paths may be replaced."""
    from logodata.models.facts import model_fingerprint

    inputs = {"model": model_fingerprint(recipe.model), "data": data.fingerprint(), "num_samples": len(data.samples)}
    if data.validation:
        inputs["num_validation"] = len(data.validation)
    if data.left_out:
        inputs["num_left_out"] = data.left_out
    if data.mix:
        inputs |= {"mix": data.mix_fingerprint(), "num_mix": len(data.mix), "mix_per_epoch": data.mix_per_epoch}
    if recipe.lora.init_adapter is not None and recipe.tuning != "full":
        inputs["init_adapter"] = file_sha256(recipe.lora.init_adapter / ADAPTER_FILES[1])
    _bind(out, INPUTS_FILE, inputs)


def summary(
    steps: Sequence[StepRecord], held_out: Sequence[ValidationRecord], recipe: TrainRecipe, out: Path
) -> list[str]:
    """Return the lines that are printed at the end of a run: what was trained, and the next commands.

    The metrics of the first of ``steps`` are those of the untrained model.
    """
    return [
        _trained(steps),
        *_mixed(steps),
        *_left_out(recipe, out),
        *_held_out(held_out, recipe.validation),
        *_next(recipe, out),
    ]


def _trained(steps: Sequence[StepRecord]) -> str:
    if not steps:
        return "no step was trained (epochs=0)"
    first, last = steps[0], steps[-1]
    took = duration(sum(step.seconds for step in steps))
    if len(steps) == 1:
        return f"trained 1 step in {took}; before it: {first.describe()}"
    return f"trained {len(steps)} steps in {took}; first to last step: {describe_change(first, last)}"


def _mixed(steps: Sequence[StepRecord]) -> Iterator[str]:
    """Yield how many samples were those of ``data.mix``."""
    if any(step.mix is not None for step in steps):
        yield f"short samples among those trained on (data.mix): {sum(step.mix or 0 for step in steps)}"


def _left_out(recipe: TrainRecipe, out: Path) -> Iterator[str]:
    """Yield how many samples were not trained on, which only objectives with a short prompt leave out."""
    if recipe.objective.uses_short_prompt and (number := read_json(out / INPUTS_FILE).get("num_left_out")):
        yield f"samples left out because all their chunks are critical: {number}"


def _held_out(records: Sequence[ValidationRecord], settings: ValidationSettings) -> Iterator[str]:
    """Yield what the held-out samples say of the training."""
    best = best_record(records, settings)
    if best is None:
        return
    before, last = records[0], records[-1]
    yield f"held-out samples, step 0 to {last.step}: {describe_change(before, last)}"
    kept = f"; final/ holds {'it' if settings.final == 'best' else f'step {last.step}'}"
    yield f"best step by {settings.metric}: {best.step} ({best.describe()}){kept if best is not last else ''}"
    if before.score(settings) >= best.score(settings):
        yield f"warning: no step is better than the model was before training (by {settings.metric})"


def _next(recipe: TrainRecipe, out: Path) -> list[str]:
    final, full = out / "final", recipe.tuning == "full"
    measured = ["--model", final] if full else ["--model", recipe.model, "--adapter", final, "--with-base"]
    data = imported(recipe, out).data
    commands = []
    if _are_imported(data.validation):
        commands.append(_command("logoeval", "pairs", *measured, "--data", data.validation, "-o", _beside(out, "eval")))
    elif not _are_imported(data.path):  # a build's contexts are long, other people's pairs mostly are not
        commands.append(_command("logoeval", "niah", *measured, "-o", _beside(out, "eval")))
    if not full:
        commands.append(_command("logotrain", "merge", final, "--model", recipe.model, "-o", _beside(out, "merged")))
    lines = [f"{word} {command}" for word, command in zip(("next:", "or:  "), commands, strict=False)]
    if _are_imported(data.path) and data.validation is None:
        lines.append("no pairs were held out (data.validation=0.1): nothing says how the model does on new ones")
    return lines


def _are_imported(folder: Path | float | None) -> bool:
    if not isinstance(folder, Path) or not (folder / "manifest.json").is_file():
        return False
    return isinstance(read_manifest(folder), ImportManifest)


def _beside(out: Path, ending: str) -> Path:
    """Return the path of ``out`` with ``-ending`` after its name."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.name}-{ending}")


def _command(*words: object) -> str:
    return shlex.join(map(str, words))


def duration(seconds: float) -> str:
    """Format seconds for people: ``48 s``, ``5 min 12 s``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
