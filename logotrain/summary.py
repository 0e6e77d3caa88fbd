"""The end of a training in a few lines: what its record says, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logotrain.recipe import TrainRecipe

_FIGURES = {"loss": "{:.3f}", "margin": "{:+.3f}", "accuracy": "{:.0%}", "chosen_logp": "{:.3f}"}
"""What is told of the first and the last step, in this order; a step holds those that its objective computes."""


def summary(steps: Sequence[Mapping[str, Any]], recipe: TrainRecipe, out: Path) -> list[str]:
    """Lines for a person.

    Args:
        steps: the lines of ``metrics.jsonl``, in order; the first is of the untrained model.
        recipe: of the run.
        out: its folder, with ``final/``.
    """
    return [_trained(steps), *_next(recipe, out)]


def _trained(steps: Sequence[Mapping[str, Any]]) -> str:
    if not steps:
        return "no step was trained (epochs=0)"
    first, last = steps[0], steps[-1]
    took = duration(sum(step["seconds"] for step in steps))
    if len(steps) == 1:
        return f"trained 1 step in {took}; before it: {', '.join(_figures(first))}"
    changes = (
        f"{before} -> {after.partition(' ')[2]}" for before, after in zip(_figures(first), _figures(last), strict=True)
    )
    return f"trained {len(steps)} steps in {took}; first to last step: {', '.join(changes)}"


def _figures(step: Mapping[str, Any]) -> list[str]:
    return [f"{name} {form.format(step[name])}" for name, form in _FIGURES.items() if name in step]


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
