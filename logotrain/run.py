"""A training run as the user sees it: its folder, its settings, its end. With nothing to train it loads no torch."""

from __future__ import annotations

from pathlib import Path

from logodata.common.console import note, stderr
from logodata.common.run_dir import bind_settings, locked
from logotrain.recipe import TrainRecipe


def run(recipe: TrainRecipe, out: Path) -> Path:
    """Train as ``recipe`` says, in the folder ``out``; the same call continues a run that was stopped.

    Writes ``recipe.resolved.json``, ``inputs.json``, ``metrics.jsonl``, ``checkpoints/step-N/`` and ``final/``.

    Returns:
        ``out/final``, the finished adapter.

    Raises:
        UserError: recipe, data and model do not fit, or ``out`` belongs to other settings or other data.
    """
    with locked(out):
        if not (out / "metrics.jsonl").exists():
            # No step was finished: a recipe that was refused, or stopped early, may be mended in place.
            for name in ("recipe.resolved.json", "inputs.json"):
                (out / name).unlink(missing_ok=True)
        bind_settings(out, "recipe.resolved.json", recipe.model_dump(mode="json"))
        final = out / "final"
        if final.is_dir():
            note(f"already finished: {final}")
            return final

        from logodata.models import model_fingerprint
        from logotrain.data import load_data

        data = load_data(recipe)
        # A run must not continue on other data or another model that took the same path.
        inputs = {
            "model": model_fingerprint(recipe.model),
            "data": data.fingerprint(),
            "num_samples": len(data.samples),
        }
        bind_settings(out, "inputs.json", inputs)
        stderr.print(data.lengths())

        from logotrain.trainer import train

        return train(recipe, data, out)
