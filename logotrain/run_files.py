"""The files of a run's folder, by name, beside ``checkpoints/`` and ``final/``, and the data sets in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from logodata.dataset.samples import is_data_set
from logodata.pairs.rows import are_pairs
from logotrain.recipe.settings import TrainRecipe

RECIPE_FILE = "recipe.resolved.json"
"""The complete recipe, defaults included, that a run is bound to."""

INPUTS_FILE = "inputs.json"
"""Fingerprints of model and data, and numbers of samples."""

METRICS_FILE = "metrics.jsonl"
"""The figures of each step."""

VALIDATION_FILE = "validation.jsonl"
"""The figures of held-out samples; the first ones are those of the untrained model."""

REFERENCE_FILE = "reference.jsonl"
HELD_OUT_REFERENCE_FILE = "validation-reference.jsonl"
"""Log-probabilities of the untrained model, of the samples that are trained on and of those that are held out."""

REPETITION_FILE = "base.json"
"""How much the untrained model repeats itself."""


def is_started(out: Path) -> bool:
    """Return whether a run has trained a step, or is finished: a run with ``epochs=0`` logs no step."""
    return any((out / name).exists() for name in (METRICS_FILE, "final"))


def forget_untrained(out: Path) -> None:
    """Delete what was measured of the untrained model, which other settings measure anew."""
    for name in (REFERENCE_FILE, HELD_OUT_REFERENCE_FILE, VALIDATION_FILE, REPETITION_FILE):
        (out / name).unlink(missing_ok=True)


FOLDERS = {"path": "data", "validation": "validation-data", "mix": "mix-data"}
"""The folders of a run that imported pairs lie in, by the fields of ``data`` that may name pairs."""


def imported(recipe: TrainRecipe, out: Path) -> TrainRecipe:
    """Return ``recipe`` with data sets in place of pairs, which are in ``out``. Other data stay as they are.

    Nothing is written, see :func:`logotrain.pairs.import_data`.
    """
    found: dict[str, object] = {}
    for field, path in data_paths(recipe):
        # A run goes on, and is finished, also where its pairs are not there any more.
        was_imported = (out / FOLDERS[field] / "manifest.json").is_file() and not is_data_set(path)
        if was_imported or are_pairs(str(path)):
            mix, folder = recipe.data.mix, out / FOLDERS[field]
            found[field] = mix.model_copy(update={"path": folder}) if mix and field == "mix" else folder
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=found)}) if found else recipe


def data_paths(recipe: TrainRecipe) -> Iterator[tuple[str, Path]]:
    """Yield the fields of ``data`` that name data sets or pairs, and the paths."""
    data = recipe.data
    values = {"path": data.path, "validation": data.validation, "mix": data.mix and data.mix.path}
    yield from ((field, value) for field, value in values.items() if isinstance(value, Path))
