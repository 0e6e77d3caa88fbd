"""Read the recipe of a run, and take the defaults that depend on the run: learning rate, dtype and positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logodata.common.console import note
from logodata.common.files import read_json
from logodata.common.recipes.files import shipped_recipes
from logodata.common.recipes.reading import as_overrides, load_recipe
from logodata.contract import ImportManifest
from logodata.dataset.samples import read_manifest
from logotrain.recipe.settings import TrainRecipe

ADAPTER_LR = 5e-6
"""Peak learning rate of adapters in a run without a recipe.

It is ten times the paper's 5e-7, which full tuning takes. In alignment-handbook too, zephyr-7b-dpo-qlora has ten times
the rate of zephyr-7b-dpo-full."""


def load_train_recipe(
    file: Path | None, model: str | None, overrides: Sequence[str], **fields: object
) -> tuple[TrainRecipe, Path | None]:
    """Read the recipe of a training, and return it with the file that it was read from.

    Without a file ``--model embedded`` takes the shipped embedded.yaml, and any other model the defaults, with a
    learning rate for what is trained.

    Args:
        file: the recipe.
        model: the value of ``--model``.
        overrides: ``key=value``; options hold over them.
        fields: the values of other options, by dotted key; None if an option is not given.

    Raises:
        UserError: see :func:`logodata.common.recipes.reading.load_recipe`.
    """
    overrides = [*overrides, *as_overrides({"model": model, **fields})]
    if file is None and model == "embedded":
        file = shipped_recipes() / "embedded.yaml"
        note("--model embedded: settings of recipes/embedded.yaml (model=embedded alone takes the defaults)")
    recipe = load_recipe(TrainRecipe, "train", file, overrides)
    if file is None:
        if recipe.tuning != "full" and "lr" not in recipe.optimizer.model_fields_set:
            recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": ADAPTER_LR})})
        rate = f"optimizer.lr={recipe.optimizer.lr:g} for tuning={recipe.tuning}"
        note(f"no recipe: the paper's settings for Llama-3-8B, and {rate}; --dry-run shows them all")
    return recipe, file


def with_dtype(recipe: TrainRecipe, *, gpu: bool) -> TrainRecipe:
    """Return ``recipe`` in float32 if there is no GPU that computes in bfloat16 and it sets no ``dtype``.

    In bfloat16 a step takes minutes on most CPUs, and there are no kernels for GPUs older than Ampere.
    """
    return recipe if gpu or "dtype" in recipe.model_fields_set else recipe.model_copy(update={"dtype": "float32"})


def with_positions(recipe: TrainRecipe) -> TrainRecipe:
    """Return ``recipe`` with natural positions if its data were imported without chunks and it sets no
    ``positions.mode``: the paper's gaps stand between chunks."""
    folder = recipe.data.path
    if folder is None or "mode" in recipe.positions.model_fields_set or not (folder / "manifest.json").is_file():
        return recipe
    manifest = read_manifest(folder)
    if not isinstance(manifest, ImportManifest) or manifest.pairs.chunk_tokens is not None:
        return recipe
    note(
        "positions: natural (imported pairs have no chunks, between which the paper's gaps stand; positions.mode=pose "
        "or randpos needs none, and an import with chunk_tokens=512 makes them, which is data.pairs.chunk_tokens=512)"
    )
    return recipe.model_copy(update={"positions": recipe.positions.model_copy(update={"mode": "natural"})})


def dtype_of_run(recipe: TrainRecipe, bound: Path | None) -> tuple[TrainRecipe, str]:
    """Return ``recipe`` with the dtype of the run, and the reason if that differs from the recipe's, else "".

    The recipe's dtype is taken if it sets one, else the dtype with which the run began, else the one for this machine.
    ``bound`` is the JSON file of the recipe that the run is bound to; None before its first step.
    """
    if "dtype" in recipe.model_fields_set:
        return recipe, ""
    before = read_json(bound) if bound is not None else None
    if isinstance(before, dict) and before.get("dtype") in ("float32", "bfloat16"):
        settled, reason = recipe.model_copy(update={"dtype": before["dtype"]}), "as this run began"
    else:
        reason = "this machine's GPU does not compute in it" if has_gpu() else "this machine has no GPU"
        settled = with_dtype(recipe, gpu=computes_bfloat16())
    return settled, reason if settled.dtype != recipe.dtype else ""


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def computes_bfloat16() -> bool:
    """Return whether this machine has a GPU with instructions for bfloat16."""
    import torch

    return has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
