"""What workers do: fetch a group of pools and prepare it, then answer it. Groups and results are pickled."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.build.pipeline import Asked, Pipeline
from logodata.build.preparing import Prepared
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.contract import QuestionOutcome
from logodata.engines.settings import EngineSettings
from logodata.judge.model import judge_engine
from logodata.judge.settings import ModelJudgeSettings
from logodata.models.loading import EMBEDDED, resolve_model
from logodata.recipe.settings import BuildRecipe

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.actor import ActorHandle

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker must know: the recipe as JSON, paths absolute, and the model's fingerprint."""

    recipe: str
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a group. ``fault`` ends the build: an error of the user's, or the traceback of our bug."""

    number: int
    outcomes: Sequence[QuestionOutcome] = ()
    engine_names: dict[str, str] = field(default_factory=dict)
    fault: UserError | str | None = None


def prepare_group(batch: pa.Table, job: Job, coordinator: ActorHandle) -> pa.Table:
    """The first stage: a group by its number, prepared. Row: ``data``, a pickled :class:`Result` or
    (number, questions)."""
    import ray

    number: int = batch["number"][0].as_py()
    while (taken := ray.get(coordinator.take.remote(number))) is None:
        time.sleep(POLL_S)
    try:
        group: list[Asked] = pickle.loads(ray.get(taken[0])) if taken else []
        pipeline = _preparing_pipeline(job)
        prepared = [one for pool, ids in group for one in pipeline.prepare(pool) if one.question.id in ids]
        return _row((number, prepared))
    except Exception as error:
        return _row(Result(number, fault=_fault(error)))


class Answerer:
    """The second stage: an engine, opened for the first group, that answers prepared groups. Row: ``data``, a pickled
    :class:`Result`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline: Pipeline | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a group."""
        prepared: Result | tuple[int, list[Prepared]] = pickle.loads(batch["data"][0].as_py())
        if isinstance(prepared, Result):
            return _row(prepared)
        number, questions = prepared
        try:
            # Faults are results: an error in an actor would be one line among tracebacks in Ray's logs.
            pipeline = self._pipeline = self._pipeline or _open(self._job)
            outcomes = pipeline.answer(questions, Tracker("", len(questions)))
            pipeline.forget()
            return _row(Result(number, outcomes, pipeline.engine_names))
        except Exception as error:
            return _row(Result(number, fault=_fault(error)))


def _row(value: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({"data": pa.array([pickle.dumps(value)], pa.large_binary())})


def _fault(error: Exception) -> UserError | str:
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))


@lru_cache(maxsize=1)
def _preparing_pipeline(job: Job) -> Pipeline:
    """One for all tasks that Ray gives to a process."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engines have the GPUs; Ray hides them only from who asks for some
    return _open(job)


def _open(job: Job) -> Pipeline:
    return Pipeline(BuildRecipe.model_validate_json(job.recipe), job.model_fingerprint)


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
