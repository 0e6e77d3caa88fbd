"""What can be told of an evaluation's inputs in a moment: before torch is imported, before the first task's hours, and
before a folder is made."""

from __future__ import annotations

from pathlib import Path

from logodata.common.files import check_apart
from logodata.common.recipes.files import check_paths
from logodata.dataset.samples import sample_files
from logodata.models.adapters import check_adapter
from logodata.models.loading import check_model, model_folder
from logoeval.recipe.settings import EvalRecipe
from logoeval.tasks.needles.haystacks import BUILT_IN
from logoeval.tasks.texts import PYDOC, text_files


def check_inputs(recipe: EvalRecipe, out: Path, checkpoints: Path | None = None) -> None:
    """Check that what a recipe reads is there, of all of its tasks, and that no output lies among it.

    Args:
        recipe: with the tasks that will run.
        out: folder of the results.
        checkpoints: of ``--checkpoints``.

    Raises:
        UserError: something is not there, or holds no model, adapter, build or text.
    """
    check_model(recipe.model)
    if recipe.adapter is not None and checkpoints is None:  # which refuse one
        check_adapter(recipe.adapter)
    data = [settings.data for settings in (recipe.qa, recipe.pairs) if settings is not None]
    for folder in data:
        sample_files(folder)
    texts = [] if recipe.ppl is None or recipe.ppl.text == PYDOC else [Path(recipe.ppl.text)]
    if recipe.niah is not None:
        texts += [Path(name) for name in recipe.niah.haystacks if name not in BUILT_IN]
    for text in texts:
        text_files(text)
    check_paths(recipe if checkpoints is None else recipe.model_copy(update={"adapter": None}))
    check_apart(
        out,
        ("the model", model_folder(recipe.model)),
        ("the adapter", recipe.adapter),
        ("the checkpoints", checkpoints),
        *(("the data set", folder) for folder in data),
        ("the data", None if recipe.longbench is None else recipe.longbench.data),
        *(("a text", text) for text in texts),
        ("the tasks", None if recipe.short is None else recipe.short.include_path),
        ("the heads", None if recipe.niah is None or recipe.niah.retrieval is None else recipe.niah.retrieval.heads),
    )
