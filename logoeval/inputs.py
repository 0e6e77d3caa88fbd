"""What can be told of an evaluation's inputs in a moment: before torch is imported, before the first task's hours, and
before a folder is made."""

from __future__ import annotations

from pathlib import Path

from logodata.common.files import check_apart
from logodata.common.recipes.files import check_paths
from logodata.engines.prices import find_prices
from logodata.models.adapters import check_adapter
from logodata.models.loading import check_model, model_folder
from logoeval.recipe.settings import EvalRecipe
from logoeval.tasks.table import find_task


def check_inputs(recipe: EvalRecipe, out: Path, checkpoints: Path | None = None) -> None:
    """Raise a ``UserError`` if something is not there that the tasks of a recipe read, or holds no model, adapter,
    build or text, or if the folder ``out`` of the results lies among it."""
    check_model(recipe.model)
    find_prices(recipe.engine, recipe.model)
    if recipe.adapter is not None and checkpoints is None:  # which refuse one
        check_adapter(recipe.adapter)
    read = [found for task in recipe.tasks for found in find_task(task).evaluator.inputs(recipe.section(task))]
    check_paths(recipe if checkpoints is None else recipe.model_copy(update={"adapter": None}))
    check_apart(
        out,
        ("the model", model_folder(recipe.model)),
        ("the adapter", recipe.adapter),
        ("the checkpoints", checkpoints),
        *read,
    )
