"""What measures a task, and what a recipe, a run and a comparison ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from logodata.common.recipes.reading import RecipeModel
from logodata.engines.settings import EngineSettings
from logoeval.records import Outcome, SampleRow, TaskResult
from logoeval.session import Session

SettingsT = TypeVar("SettingsT", bound=RecipeModel)


@dataclass(frozen=True, slots=True)
class Evaluator(Generic[SettingsT]):
    """What measures one task."""

    settings: type[SettingsT]
    """The model of the task's section of a recipe."""
    version: int
    """Raised when prompts or scores change their meaning: results of two versions are not compared."""
    describe: Callable[[SettingsT, EngineSettings], Mapping[str, object]]
    """What two comparable runs have in common besides model, data type and seed; texts and data by their contents,
    wherever they lie."""
    run: Callable[[SettingsT, Session, Path], Outcome]
    """Measures the session's model. The path is the folder of the predictions: what a stopped run left there is not
    made again."""
    generates: bool = True
    """Whether the engine writes responses. Else the model's weights are asked for log-probabilities alone."""
    scores: bool = False
    """Whether the model's weights are asked for log-probabilities."""
    reasons: Callable[[SettingsT], bool] | None = None
    """Whether the model may reason before it responds, where that depends on the settings; else it may wherever the
    engine writes responses (:meth:`may_reason`)."""
    inputs: Callable[[SettingsT], Iterable[tuple[str, Path]]] = lambda _: ()
    """The paths that the task reads, each with its name in messages. It raises a ``UserError`` where one does not hold
    what the task needs, as far as a moment can tell."""
    limits: Callable[[TaskResult], Iterable[str]] = lambda _: ()
    """In what a result covers less than the whole task, so that a part never looks like the whole."""
    total: Callable[[TaskResult, Sequence[SampleRow], Mapping[str, object]], int | None] = lambda *_: None
    """How many samples the benchmark has of what these samples of a result, a slice of it, are of; None where that is
    not known."""

    def may_reason(self, settings: SettingsT) -> bool:
        """Return whether the model may reason before it responds: results then depend on the budget for it."""
        return self.generates if self.reasons is None else self.reasons(settings)
