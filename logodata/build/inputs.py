"""Check a build's inputs in a moment, before torch is imported and before a folder is made."""

from __future__ import annotations

from pathlib import Path

from logodata.common.files import check_apart
from logodata.common.recipes.files import check_paths
from logodata.engines.prices import find_prices
from logodata.engines.settings import ModelSettings
from logodata.judge.settings import JudgeModelSettings, judge_engine
from logodata.models.adapters import check_adapter
from logodata.models.loading import check_model, model_folder
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings


def check_inputs(
    recipe: ModelSettings, source: SourceSettings, output: Path | None, judge: JudgeModelSettings | None = None
) -> None:
    """Check that models and files exist and that the output, if there is one, does not lie among them. The source is
    checked when it is read. A build brings its judge itself.

    Raises:
        UserError: A file does not exist, a table of prices has none of the model that is asked, a folder holds no
            model, or the output lies in an input.
    """
    models, cache = [recipe.model], None
    if isinstance(recipe, BuildRecipe):
        cache = recipe.generation.cache if isinstance(recipe.generation.cache, Path) else None
        judge = recipe.judge.asked
        if recipe.adapter is not None:
            check_adapter(recipe.adapter)
    if judge is not None:
        models += [judge.name] if judge.name is not None else []
        find_prices(judge_engine(recipe, judge), judge.name or recipe.model)
    find_prices(recipe.engine, recipe.model)
    for model in models:
        check_model(model)
    check_paths(recipe)
    if output is None:
        return
    check_apart(
        output,
        ("the source", source.path),
        ("the questions", source.questions),
        ("the cache", cache),
        ("the adapter", recipe.adapter if isinstance(recipe, BuildRecipe) else None),
        *(("the model", model_folder(model)) for model in models),
    )
