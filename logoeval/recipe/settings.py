"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, create_model

from logodata.common.files import read_json
from logodata.common.recipes.files import shipped_recipes
from logodata.common.recipes.reading import RecipeModel, as_overrides, load_recipe
from logoeval.recipe.foreign_names import NAMES, VALUES
from logoeval.records import PREDICTIONS_DIR, has_predictions
from logoeval.session import SessionSettings
from logoeval.tasks.table import TASKS, task_names

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
        """Return the settings of a task."""
        settings: RecipeModel | None = getattr(self, task)
        return settings

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that are measured, in the order of the table."""
        return [task.name for task in TASKS if self.section(task.name) is not None]


def load_eval_recipe(
    file: Path | None, task: str | None, fields: Mapping[str, object], overrides: Sequence[str]
) -> EvalRecipe:
    """Read the recipe of an evaluation from its file, options and overrides.

    Args:
        file: the recipe; without one the model ``embedded`` takes the shipped embedded.yaml.
        task: the only task that is kept, with its defaults where the file does not have it; None keeps all tasks.
        fields: what options say, by dotted key; None says nothing. They hold over ``overrides``.
        overrides: ``key=value``.

    Raises:
        UserError: see :func:`logodata.common.recipes.reading.load_recipe`.
    """
    # A section that is only turned on comes first: what overrides say in it holds.
    sections = {key: value for key, value in fields.items() if value == {}}
    values = {key: value for key, value in fields.items() if value != {}}
    given = [*as_overrides(sections), *overrides, *as_overrides(values)]
    if file is None and fields["model"] == "embedded":
        file = shipped_recipes() / "embedded.yaml"
    if task is None:
        return load_recipe(EvalRecipe, "eval", file, given)
    given += [f"{other}=null" for other in task_names() if other != task]
    recipe = load_recipe(EvalRecipe, "eval", file, given)
    if recipe.section(task) is None:
        recipe = load_recipe(EvalRecipe, "eval", file, [f"{task}={{}}", *given])
    return recipe


def with_begun_dtype(recipe: EvalRecipe, folder: Path) -> EvalRecipe:
    """Return ``recipe`` with the dtype in which evaluations in ``folder`` or its subfolders began, if it leaves that to
    the machine: another machine may suit another one, and the two would not be compared. A task without predictions has
    not begun, whatever was written before them."""
    if recipe.engine.dtype != "auto":
        return recipe
    bound = [path for pattern in ("", "*/") for path in folder.glob(f"{pattern}{PREDICTIONS_DIR}/*.json")]
    began = [read_json(path) for path in bound if has_predictions(path.parent, path.stem)]
    dtypes = {str(found["dtype"]) for found in began if isinstance(found, dict) and "dtype" in found}
    if len(dtypes) != 1:
        return recipe
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"dtype": dtypes.pop()})})
