"""Train on pairs that were made elsewhere: they are imported first, into the run's folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logodata.common.errors import UserError
from logodata.pairs.rows import are_pairs
from logotrain.recipe.settings import TrainRecipe
from logotrain.run_files import FOLDERS, RECIPE_FILE, data_paths, imported


def import_data(recipe: TrainRecipe, out: Path, *, started: bool = False) -> None:
    """Import the pairs of ``recipe``, if it has any, into folders in ``out``. A finished import is only compared with
    the pairs. Before the run is ``started``, one of other pairs or settings is made again.

    Raises:
        UserError: see :func:`logodata.pairs.importing.import_pairs` and
            :func:`logotrain.data.loading.checked_target_length`; or the pairs are others than those of the folder.
    """
    for field, path in data_paths(recipe):
        if are_pairs(str(path)):
            if recipe.objective.uses_short_prompt:
                what = f"objective.name={recipe.objective.name} needs critical chunks, which pairs do not have"
                raise UserError(
                    what, where=str(path), mend=f"give {_SETTINGS[field]} a folder that logodata build wrote"
                )
            # A finished run loads no torch.
            from logodata.models.loading import load_config
            from logodata.pairs.importing import OtherImport, import_pairs
            from logodata.pairs.settings import ImportRecipe
            from logotrain.data.loading import checked_target_length
            from logotrain.model.rope import scaled_config

            window = checked_target_length(recipe, scaled_config(load_config(recipe.model), recipe.rope))
            how = recipe.data.pairs.model_dump() if recipe.data.pairs else {}
            settings = ImportRecipe(path=str(path), model=recipe.model, window=window, **how)
            folder = out / FOLDERS[field]
            try:
                import_pairs(settings, folder, section="data.pairs.")
            except OtherImport:
                if started or not (out / RECIPE_FILE).exists():  # without it the import is not this run's
                    raise
                shutil.rmtree(folder)
                import_pairs(settings, folder, section="data.pairs.")


_SETTINGS = {"path": "--data", "validation": "data.validation", "mix": "data.mix.path"}
"""What names each of the :func:`data_paths`."""


@contextmanager
def imported_for_now(recipe: TrainRecipe) -> Iterator[TrainRecipe]:
    """Give the block ``recipe`` with data sets in place of pairs, which are deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="logotrain-pairs-") as folder:
        import_data(recipe, Path(folder))
        yield imported(recipe, Path(folder))
