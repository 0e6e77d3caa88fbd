"""What workers do: fetch a group of pools, prepare it, and answer it. Groups and results are pickled."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from logodata.build.pipeline import Asked, Pipeline
from logodata.build.preparing import Prepared
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.common.recipes.fields import move_paths
from logodata.common.user_files import expand_home
from logodata.contract import QuestionOutcome
from logodata.engines.settings import EngineSettings
from logodata.judge.settings import judge_engine
from logodata.models.loading import resolve_model
from logodata.recipe.settings import BuildRecipe

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.actor import ActorHandle

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker must know: the recipe as JSON with absolute paths, and the fingerprint of its model."""

    recipe: str
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class Result:
    """The outcomes of a group. A ``fault`` ends the build: an error of the user, or the traceback of our own bug."""

    number: int
    outcomes: Sequence[QuestionOutcome] = ()
    engine_names: dict[str, str] = field(default_factory=dict)
    fault: UserError | str | None = None


def prepare_group(batch: pa.Table, job: Job, coordinator: ActorHandle) -> pa.Table:
    """The first stage: fetch a group by its number and prepare it. The row ``data`` of the result holds a pickled
    (number, prepared questions), or a :class:`Result` with a fault."""
    import ray

    number: int = batch["number"][0].as_py()
    while (taken := ray.get(coordinator.take.remote(number))) is None:
        time.sleep(POLL_S)
    try:
        group: list[Asked] = pickle.loads(ray.get(taken[0])) if taken else []
        return _row((number, list(_preparing_pipeline(job).prepare(group))))
    except Exception as error:
        return _row(Result(number, fault=_fault(error)))


class Answerer:
    """The second stage: answers prepared groups by an engine, which is opened for the first group."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _pipeline(self) -> Pipeline:
        return _open(self._job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a group, and return a row ``data`` with a pickled :class:`Result`."""
        prepared: Result | tuple[int, list[Prepared]] = pickle.loads(batch["data"][0].as_py())
        if isinstance(prepared, Result):
            return _row(prepared)
        number, questions = prepared
        try:
            # Faults are results: an error in an actor would be one line among tracebacks in Ray's logs.
            outcomes = self._pipeline.answer(questions, Tracker("", len(questions)))
            self._pipeline.forget()
            return _row(Result(number, outcomes, self._pipeline.engine_names))
        except Exception as error:
            return _row(Result(number, fault=_fault(error)))


def _row(value: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({"data": pa.array([pickle.dumps(value)], pa.large_binary())})


def _fault(error: Exception) -> UserError | str:
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))


@lru_cache(maxsize=1)
def _preparing_pipeline(job: Job) -> Pipeline:
    """Return the one pipeline of all tasks that Ray gives to a process."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engines have the GPUs; Ray hides them only from who asks for some
    return _open(job)


def _open(job: Job) -> Pipeline:
    return Pipeline(BuildRecipe.model_validate_json(job.recipe), job.model_fingerprint)


def portable(recipe: BuildRecipe) -> BuildRecipe:
    """Return the recipe with absolute paths, because a worker has another working directory."""
    values = move_paths(recipe.model_dump(mode="json"), BuildRecipe, _absolute)
    values["engine"] = _served(recipe.engine, recipe.model)
    if judge := recipe.judge.asked:
        section = "model" if recipe.judge.model else "grades"
        values["judge"][section]["engine"] = _served(judge_engine(recipe, judge), judge.name or recipe.model)
    return BuildRecipe.model_validate(values)


def _served(engine: EngineSettings, model: str) -> EngineSettings:
    """Servers know the model by the name that was given, unless another one is set: keep it before paths change."""
    if not engine.asks_servers or engine.served_model is not None:
        return engine
    return engine.model_copy(update={"served_model": model if engine.kind == "chat" else resolve_model(model)})


def _absolute(name: str) -> str:
    path = expand_home(name)
    return str(path.absolute()) if path.exists() else name
