"""What can be told of a build's inputs in a moment: before torch is imported, and before a folder is made."""

from __future__ import annotations

from pathlib import Path

from logodata.common.recipe_files import check_paths
from logodata.common.run_dir import check_apart
from logodata.drafts import QuestionsRecipe
from logodata.models import check_model, model_folder
from logodata.recipe import BuildRecipe


def check_inputs(recipe: BuildRecipe | QuestionsRecipe, output: Path) -> None:
    """Check that models and files are there, and that no output lies among them; the source is checked as it is read.

    Raises:
        UserError: something is not there, or is no model.
    """
    models, cache = [recipe.model], None
    if isinstance(recipe, BuildRecipe):
        cache = recipe.generation.cache if isinstance(recipe.generation.cache, Path) else None
        judge = recipe.judge.model
        models += [judge.name] if judge is not None and judge.name is not None else []
    for model in models:
        check_model(model)
    check_paths(recipe)
    check_apart(
        output,
        ("the source", recipe.source.path),
        ("the questions", recipe.source.questions),
        ("the cache", cache),
        *(("the model", model_folder(model)) for model in models),
    )
