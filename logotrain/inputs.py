"""What can be told of a command's inputs in a moment: before torch is imported, and before a folder is made."""

from __future__ import annotations

from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import check_apart
from logodata.dataset.samples import read_manifest, sample_files
from logodata.models.adapters import check_adapter
from logodata.models.loading import check_model, model_folder
from logotrain.recipe.settings import TrainRecipe


def check_inputs(recipe: TrainRecipe, *outputs: Path | None) -> None:
    """Check that data and model are there, and that no output lies among them.

    Args:
        recipe: may name no data, as a plan does.
        outputs: files or folders to write; None counts as none.

    Raises:
        UserError: something is not there, or is no build, or no model.
    """
    if recipe.data.path is not None:
        sample_files(recipe.data.path)
        read_manifest(recipe.data.path)
    check_model(recipe.model)
    for output in outputs:
        if output is not None:
            check_apart(output, ("the data set", recipe.data.path), ("the model", model_folder(recipe.model)))


def check_run(recipe: TrainRecipe, out: Path) -> None:
    """:func:`check_inputs` for a training, which needs data.

    Raises:
        UserError: see there; or there are no data, though something is to be trained.
    """
    if recipe.data.path is None and recipe.epochs:
        raise UserError("no data", mend="give --data DIR, a folder that logodata build wrote")
    check_inputs(recipe, out)


def check_merge(model: str, adapter: Path, out: Path) -> None:
    """Check that adapter and model are there, and ``out`` is not.

    Raises:
        UserError: one is not as it should be.
    """
    check_adapter(adapter)
    check_model(model)
    if out.exists():
        raise UserError("exists already", where=str(out), mend="choose another -o")
    check_apart(out, ("the adapter", adapter), ("the model", model_folder(model)))
