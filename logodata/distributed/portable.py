"""A recipe that means the same on another machine, whose working directory is another one."""

from __future__ import annotations

from pathlib import Path

from logodata.engines.settings import EngineSettings
from logodata.model_judge import judge_engine
from logodata.models import EMBEDDED, resolve_model
from logodata.recipe import BuildRecipe
from logodata.verdicts import ModelJudgeSettings


def portable(recipe: BuildRecipe) -> BuildRecipe:
    """The recipe with absolute paths: a worker has another working directory."""
    generation, evaluator, judge = recipe.generation, recipe.evaluator, recipe.judge
    if isinstance(generation.cache, Path):
        generation = generation.model_copy(update={"cache": generation.cache.absolute()})
    named = {"entity_model": evaluator.entity_model, "embedding_model": evaluator.embedding_model}
    evaluator = evaluator.model_copy(update={key: _absolute(name) for key, name in named.items()})
    return recipe.model_copy(
        update={
            "model": _absolute(recipe.model),
            "chat_template": recipe.chat_template and recipe.chat_template.absolute(),
            "generation": generation,
            "engine": _served(recipe.engine, recipe.model),
            "evaluator": evaluator,
            "judge": judge.model_copy(
                update={
                    "embedding_model": _absolute(judge.embedding_model),
                    "model": judge.model and _portable_judge(recipe, judge.model),
                }
            ),
        }
    )


def _portable_judge(recipe: BuildRecipe, judge: ModelJudgeSettings) -> ModelJudgeSettings:
    return judge.model_copy(
        update={
            "name": judge.name and _absolute(judge.name),
            "chat_template": judge.chat_template and judge.chat_template.absolute(),
            "engine": _served(judge_engine(recipe, judge), judge.name or recipe.model),
        }
    )


def _served(engine: EngineSettings, model: str) -> EngineSettings:
    """With servers, the model's name there is by default what was given as model: said before paths are changed."""
    if engine.kind != "openai" or engine.served_model is not None:
        return engine
    return engine.model_copy(update={"served_model": resolve_model(model)})


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if name != EMBEDDED and path.is_dir() else name
