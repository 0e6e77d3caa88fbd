"""Train on pairs that were made elsewhere: they are imported first, into the run's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logodata.common.errors import UserError
from logodata.dataset.samples import is_data_set
from logodata.pairs.rows import are_pairs
from logotrain.recipe.settings import TrainRecipe, uses_short_prompt

FOLDERS = {"path": "data", "validation": "validation-data", "mix": "mix-data"}
"""The folders of a run that imported pairs lie in, by the fields of ``data`` that may name pairs."""


def imported(recipe: TrainRecipe, out: Path) -> TrainRecipe:
    """Return ``recipe`` with data sets in place of pairs, which are in ``out``. Other data stay as they are.

    Nothing is written, see :func:`import_data`.
    """
    found: dict[str, object] = {}
    for field, path in _paths(recipe):
        # A run goes on, and is finished, also where its pairs are not there any more.
        was_imported = (out / FOLDERS[field] / "manifest.json").is_file() and not is_data_set(path)
        if was_imported or are_pairs(str(path)):
            mix, folder = recipe.data.mix, out / FOLDERS[field]
            found[field] = mix.model_copy(update={"path": folder}) if mix and field == "mix" else folder
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=found)}) if found else recipe


def import_data(recipe: TrainRecipe, out: Path) -> None:
    """Import the pairs of ``recipe``, if it has any, into folders in ``out``. A finished import is only compared with
    the pairs.

    Raises:
        UserError: see :func:`logodata.pairs.importing.import_pairs` and
            :func:`logotrain.data.loading.checked_target_length`; or the pairs are others than those of the folder.
    """
    for field, path in _paths(recipe):
        if are_pairs(str(path)):
            if uses_short_prompt(recipe.objective):
                what = f"objective.name={recipe.objective.name} needs critical chunks, which pairs do not have"
                raise UserError(
                    what, where=str(path), mend=f"give {_SETTINGS[field]} a folder that logodata build wrote"
                )
            # A finished run loads no torch.
            from logodata.models.loading import load_config
            from logodata.pairs.importing import import_pairs
            from logodata.pairs.settings import ImportRecipe
            from logotrain.data.loading import checked_target_length
            from logotrain.model.rope import scaled_config

            window = checked_target_length(recipe, scaled_config(load_config(recipe.model), recipe.rope))
            how = recipe.data.pairs.model_dump() if recipe.data.pairs else {}
            settings = ImportRecipe(path=str(path), model=recipe.model, window=window, **how)
            import_pairs(settings, out / FOLDERS[field], section="data.pairs.")


_SETTINGS = {"path": "--data", "validation": "data.validation", "mix": "data.mix.path"}
"""What names each of the :func:`_paths`."""


def _paths(recipe: TrainRecipe) -> Iterator[tuple[str, Path]]:
    data = recipe.data
    values = {"path": data.path, "validation": data.validation, "mix": data.mix and data.mix.path}
    yield from ((field, value) for field, value in values.items() if isinstance(value, Path))


@contextmanager
def imported_for_now(recipe: TrainRecipe) -> Iterator[TrainRecipe]:
    """Give the block ``recipe`` with data sets in place of pairs, which are deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="logotrain-pairs-") as folder:
        import_data(recipe, Path(folder))
        yield imported(recipe, Path(folder))
