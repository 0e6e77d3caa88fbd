"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, create_model

from logodata.common.recipes.reading import RecipeModel
from logoeval.recipe.foreign_names import NAMES, VALUES
from logoeval.session import SessionSettings
from logoeval.tasks.table import TASKS

# Each task has a field of its name: its settings, or None where it is not measured.
if TYPE_CHECKING:
    _WithTasks = SessionSettings
else:
    _WithTasks = create_model(
        "_WithTasks",
        __base__=SessionSettings,
        **{
            task.name: (task.evaluator.settings | None, Field(default=None, description=f"{task.title}."))
            for task in TASKS
        },
    )


class EvalRecipe(_WithTasks):
    """One evaluation of one model. Two recipes that differ in ``model`` and ``adapter`` only can be compared."""

    own_model = "logoeval TASK --model MODEL, without a recipe, takes the task's own"
    foreign_names = NAMES
    foreign_values = VALUES

    def section(self, task: str) -> RecipeModel | None:
        """The settings of a task, by its name."""
        settings: RecipeModel | None = getattr(self, task)
        return settings

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that are measured, in the order of the table."""
        return [task.name for task in TASKS if self.section(task.name) is not None]
