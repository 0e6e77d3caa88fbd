"""The section on the training run: its settings, and loss and margin by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.common.json_files import json_objects
from logodata.common.markup import join, tag
from logoeval.records import Excerpt
from logoeval.report import figures
from logoeval.report.tables import Section, figure
from logotrain.recipe.objectives import ObjectiveSettings
from logotrain.recipe.settings import LoraSettings, OptimizerSettings
from logotrain.run_files import METRICS_FILE, RECIPE_FILE, VALIDATION_FILE


class _Recipe(Excerpt):
    objective: ObjectiveSettings
    tuning: str
    lora: LoraSettings
    samples_per_step: int
    optimizer: OptimizerSettings


class _Step(Excerpt):
    step: int
    loss: float
    margin: float | None = None  # SFT computes none, and SoLoPO compares under the short prompt
    short_margin: float | None = None


_NO_RUN = "give the folder of a logotrain run"


def training_section(folder: Path) -> Section:
    """Return the section.

    Raises:
        UserError: the folder lacks ``metrics.jsonl`` or the recipe, or they are not what logotrain writes.
    """
    path = folder / RECIPE_FILE
    recipe = _Recipe.from_json(read_json(path), where=str(path), mend=_NO_RUN)
    path = folder / METRICS_FILE
    records = _read(path)
    held_out = _read(folder / VALIDATION_FILE) if (folder / VALIDATION_FILE).exists() else []
    steps, loss = [record.step for record in records], [record.loss for record in records]
    curves = [("loss", loss, [(found.step, found.loss) for found in held_out])]
    for name, label in (("margin", "margin"), ("short_margin", "margin under the short prompt")):
        values, points = (
            [(found.step, value) for found in of if (value := getattr(found, name)) is not None]
            for of in (records, held_out)
        )
        if values:
            curves.append((f"{label}, nats per token", [value for _, value in values], points))
    if not steps:
        raise UserError("holds no training step", where=str(path), mend="run logotrain again")
    trained = "all weights" if recipe.tuning == "full" else f"LoRA rank {recipe.lora.rank}"
    body = join(
        tag(
            "p",
            f"{steps[-1]} steps of {recipe.samples_per_step} samples; "
            f"objective {_named(recipe.objective.model_dump())}; "
            f"{trained}, peak learning rate {recipe.optimizer.lr:g}.",
        ),
        figure(
            [figures.step_curve(label, steps, values, points) for label, values, points in curves],
            "Each step sees other samples, so within the first pass the curve also follows which of them are hard. "
            f"What changed is better read off {'the points' if held_out else 'the held-out pairs above'}.",
        ),
    )
    return Section("The training run", body)


def _named(objective: dict[str, Any]) -> str:
    """Return an objective's name and settings, ``simpo (beta 10.0, gamma 3.0)``, also of one within another."""
    values = {name: _named(value) if isinstance(value, dict) else value for name, value in objective.items()}
    return f"{values.pop('name')} ({', '.join(f'{name} {value}' for name, value in values.items())})"


def _read(path: Path) -> list[_Step]:
    return [_Step.from_json(value, where=where, mend=_NO_RUN) for where, value in json_objects(path, mend=_NO_RUN)]
