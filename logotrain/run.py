"""A training run as the user sees it: its folder, its settings, its end."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.console import note, show
from logodata.common.errors import UserError
from logodata.common.files import SEAL, bind_settings, damage, locked, put_aside
from logotrain.inputs import check_run
from logotrain.recipe.defaults import dtype_of_run
from logotrain.recipe.settings import TrainRecipe

if TYPE_CHECKING:
    from logotrain.data import TrainingData
    from logotrain.metrics import StepRecord
    from logotrain.parallel import World

RECIPE_FILE = "recipe.resolved.json"
"""The recipe with all defaults that a run is bound to."""

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

    if not (out / "final").exists():  # a finished run needs none of its inputs
        check_run(recipe, out)
    with launched() as world, ExitStack() as stack:
        # The lock goes with the main process; the others wait for its word.
        world.on_main(lambda: stack.enter_context(locked(out)))
        recipe = _settled(recipe, out, world)
        final = out / "final"
        if world.on_main(lambda: _begin(recipe, out)):
            note(f"already finished: {final}")
            world.on_main(lambda: _say_what_came_of_it(recipe, out))
            return final

        from logotrain.data import load_data

        data = load_data(recipe)
        world.on_main(lambda: _bind_inputs(recipe, data, out))
        if data.samples:
            show(data.lengths())

        from logotrain.parallel import lone_group
        from logotrain.trainer import train

        with lone_group(world) if recipe.tuning == "full" else nullcontext():
            final = train(recipe, data, out, world)
        world.on_main(lambda: _say_what_came_of_it(recipe, out))
        return final


def _say_what_came_of_it(recipe: TrainRecipe, out: Path) -> None:
    from logotrain.metrics import MetricsLog

    for line in summary(MetricsLog(out / "metrics.jsonl").steps(), recipe, out):
        note(line)


def _settled(recipe: TrainRecipe, out: Path, world: World) -> TrainRecipe:
    """The recipe with a dtype; all processes take the main one's."""
    bound = out / RECIPE_FILE
    settled, reason = world.on_main(lambda: dtype_of_run(recipe, bound if _started(out) and bound.exists() else None))
    if reason:
        note(f"dtype: {settled.dtype} ({reason}; dtype={recipe.dtype} asks for the other)")
    return settled


def _begin(recipe: TrainRecipe, out: Path) -> bool:
    """Bind the folder to the recipe; whether it holds a finished run."""
    final = out / "final"
    if final.exists() and not (final / SEAL).exists():
        # Somebody else's: it is neither to be called the result nor to be overwritten.
        raise UserError(
            "holds no files.json, so it is not this run's result",
            where=str(final),
            mend="move it elsewhere, then run the same command again",
        )
    _bind(out, RECIPE_FILE, recipe.model_dump(mode="json"), free=_FREE)
    return final.exists() and _is_whole(final)


def _bind(out: Path, name: str, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Bind the folder to ``settings`` as :func:`bind_settings` does, from its first finished step on.

    Until then a recipe that was refused, or stopped early, may be mended in place; reference log-probabilities, all
    that such a run may hold, stay only under the settings that they were computed with.
    """
    started = _started(out)
    if started or (out / name).exists():
        try:
            bind_settings(out, name, settings, free)
            return
        except UserError:
            if started:
                raise
    (out / "reference.jsonl").unlink(missing_ok=True)
    bind_settings(out, name, settings, free, started=False)


def _started(out: Path) -> bool:
    return any((out / made).exists() for made in ("metrics.jsonl", "final"))  # a run of no epochs logs no step


def _is_whole(final: Path) -> bool:
    """Whether the result is as it was written; a damaged one is put aside."""
    fault = damage(final)
    if fault:
        put_aside(final, fault, "it is written again from the newest checkpoint")
    return not fault


def _bind_inputs(recipe: TrainRecipe, data: TrainingData, out: Path) -> None:
    """A run must not continue on other data or another model that took the same path."""
    from logodata.models.facts import model_fingerprint

    inputs = {"model": model_fingerprint(recipe.model), "data": data.fingerprint(), "num_samples": len(data.samples)}
    _bind(out, "inputs.json", inputs)


_FIGURES = {"loss": "{:.3f}", "margin": "{:+.3f}", "accuracy": "{:.0%}", "chosen_logp": "{:.3f}"}
"""What is told of the first and the last step, in this order; a step holds those that its objective computes."""


def summary(steps: Sequence[StepRecord], recipe: TrainRecipe, out: Path) -> list[str]:
    """Lines for a person.

    Args:
        steps: the lines of ``metrics.jsonl``, in order; the first is of the untrained model.
        recipe: of the run.
        out: its folder, with ``final/``.
    """
    return [_trained(steps), *_next(recipe, out)]


def _trained(steps: Sequence[StepRecord]) -> str:
    if not steps:
        return "no step was trained (epochs=0)"
    first, last = steps[0], steps[-1]
    took = duration(sum(step.seconds for step in steps))
    if len(steps) == 1:
        return f"trained 1 step in {took}; before it: {', '.join(_figures(first))}"
    changes = (
        f"{before} -> {after.partition(' ')[2]}" for before, after in zip(_figures(first), _figures(last), strict=True)
    )
    return f"trained {len(steps)} steps in {took}; first to last step: {', '.join(changes)}"


def _figures(step: StepRecord) -> list[str]:
    values = {name: getattr(step, name) for name in _FIGURES}
    return [f"{name} {_FIGURES[name].format(value)}" for name, value in values.items() if value is not None]


def _next(recipe: TrainRecipe, out: Path) -> list[str]:
    final, results = out / "final", _beside(out, "eval")
    if recipe.tuning == "full":
        measured = ["--model", str(final)]
        return [f"next: {_line('logoeval', 'niah', *measured, '-o', results)}"]
    measured = ["--model", recipe.model, "--adapter", str(final), "--with-base"]
    merged = _beside(out, "merged")
    return [
        f"next: {_line('logoeval', 'niah', *measured, '-o', results)}",
        f"or:   {_line('logotrain', 'merge', final, '--model', recipe.model, '-o', merged)}",
    ]


def _beside(out: Path, ending: str) -> Path:
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.name}-{ending}")


def _line(*words: object) -> str:
    return shlex.join(map(str, words))


def duration(seconds: float) -> str:
    """Seconds as people say them: ``48 s``, ``5 min 12 s``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
