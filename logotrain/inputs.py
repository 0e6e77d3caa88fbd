"""Quick checks of a command's inputs, before torch is imported and before a folder is made."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import check_apart
from logodata.dataset.samples import read_manifest, sample_files
from logodata.models.adapters import check_adapter
from logodata.models.loading import check_model, model_folder
from logodata.pairs.rows import are_pairs
from logotrain.recipe.settings import TrainRecipe
from logotrain.run_files import data_paths, imported, is_started
from logotrain.trackers import check_trackers


def check_inputs(recipe: TrainRecipe, *outputs: Path | None, run: Path | None = None) -> None:
    """Check that the data set, if there is one, and the model exist, and that no output lies inside of them. Pairs that
    are to be imported are checked when they are. Those that the folder ``run`` holds already may be gone.

    Raises:
        UserError: the data set or the model does not exist or is not one, or an output lies inside of one.
    """
    given = dict(data_paths(recipe))
    there = dict(data_paths(recipe if run is None else imported(recipe, run)))
    for field, folder in there.items():
        if folder == given[field] and not are_pairs(str(folder)):
            sample_files(folder)
            read_manifest(folder)
    if recipe.data.pairs is not None and there == given and not any(are_pairs(str(path)) for path in given.values()):
        raise UserError("data.pairs says how pairs are read, and there are none", mend="leave it out, or give pairs")
    check_model(recipe.model)
    start = recipe.lora.init_adapter
    if start is not None and recipe.tuning == "full":
        mend = "merge it first (logotrain merge) and train the merged model, or leave it out"
        raise UserError("lora.init_adapter: full tuning starts from no adapter", where=str(start), mend=mend)
    if start is not None:
        check_adapter(start)
    inputs = (
        ("the data set", given.get("path")),
        ("the held-out data", given.get("validation")),
        ("the data of data.mix", given.get("mix")),
        ("the model", model_folder(recipe.model)),
        ("the adapter", start),
    )
    for output in outputs:
        if output is not None:
            check_apart(output, *inputs)


def check_run(recipe: TrainRecipe, out: Path) -> None:
    """Check the inputs of a training run with :func:`check_inputs`; it needs data unless ``epochs`` is 0.

    Raises:
        UserError: see :func:`check_inputs`; or the recipe has no data but ``epochs`` is not 0.
    """
    if recipe.data.path is None and recipe.epochs:
        raise UserError("no data", mend="give --data DIR, a folder that logodata build wrote, or a file of pairs")
    check_trackers(recipe.report_to)
    if recipe.optimizer.name != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"optimizer.name={recipe.optimizer.name}: bitsandbytes is not installed", mend="pip install bitsandbytes"
        )
    check_inputs(recipe, out, run=out if is_started(out) else None)


def check_merge(model: str, adapter: Path, out: Path) -> None:
    """Check that the adapter and the model exist, and that ``out`` does not.

    Raises:
        UserError: the adapter or the model does not exist, or ``out`` exists or lies inside of one of them.
    """
    check_adapter(adapter)
    check_model(model)
    if out.exists():
        raise UserError("exists already", where=str(out), mend="choose another -o")
    check_apart(out, ("the adapter", adapter), ("the model", model_folder(model)))
