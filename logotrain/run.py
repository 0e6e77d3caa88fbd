"""A training run as the user sees it: its folder, its settings, its end."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.console import note, show
from logodata.common.run_dir import bind_settings, locked
from logodata.common.sealed import SEAL, damage, put_aside
from logotrain.recipe import TrainRecipe

if TYPE_CHECKING:
    from logotrain.data import TrainingData

_FREE = ("row_tokens", "attention", "recompute", "compile", "parallel", "checkpoint", "collapse")
"""Fields that a run may be continued with changed: they do not change its result, but for rounding."""


def run(recipe: TrainRecipe, out: Path) -> Path:
    """Train as ``recipe`` says, in the folder ``out``; the same call continues a run that was stopped.

    Writes ``recipe.resolved.json``, ``inputs.json``, ``metrics.jsonl``, ``checkpoints/step-N/`` and ``final/``.

    Returns:
        ``out/final``, the finished adapter.

    Raises:
        UserError: recipe, data and model do not fit, or ``out`` belongs to other settings or other data.
    """
    from logotrain.parallel import launched

    with launched() as world, ExitStack() as stack:
        # The lock goes with the main process; the others wait for its word.
        world.on_main(lambda: stack.enter_context(locked(out)))
        final = out / "final"
        if world.on_main(lambda: _begin(recipe, out)):
            note(f"already finished: {final}")
            return final

        from logotrain.data import load_data

        data = load_data(recipe)
        world.on_main(lambda: _bind_inputs(recipe, data, out))
        if data.samples:
            show(data.lengths())

        from logotrain.parallel import lone_group
        from logotrain.trainer import train

        with lone_group(world) if recipe.tuning == "full" else nullcontext():
            return train(recipe, data, out, world)


def _begin(recipe: TrainRecipe, out: Path) -> bool:
    """Bind the folder to the recipe; whether it holds a finished run."""
    # Before a step is finished a recipe that was refused, or stopped early, may be mended in place.
    started = (out / "metrics.jsonl").exists()
    if not started:
        for name in ("inputs.json", "reference.jsonl"):
            (out / name).unlink(missing_ok=True)
    bind_settings(out, "recipe.resolved.json", recipe.model_dump(mode="json"), free=_FREE, started=started)
    return _is_finished(out / "final")


def _is_finished(final: Path) -> bool:
    """Whether the run left its result; a damaged one is put aside."""
    if not (final / SEAL).exists():
        return final.is_dir()  # of a version that sealed none
    fault = damage(final)
    if fault:
        put_aside(final, fault, "it is written again from the newest checkpoint")
    return not fault


def _bind_inputs(recipe: TrainRecipe, data: TrainingData, out: Path) -> None:
    """A run must not continue on other data or another model that took the same path."""
    from logodata.models import model_fingerprint

    inputs = {"model": model_fingerprint(recipe.model), "data": data.fingerprint(), "num_samples": len(data.samples)}
    bind_settings(out, "inputs.json", inputs)
