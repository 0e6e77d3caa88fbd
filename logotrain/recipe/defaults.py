"""What is chosen where nothing was said: the learning rate of a run without a recipe, the dtype that suits the device,
and which device that is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from logodata.common.files import read_json
from logotrain.recipe.settings import TrainRecipe

ADAPTER_LR = 5e-6
"""Peak learning rate of adapters without a recipe: ten times the 5e-7 that the paper has and full tuning takes, as
alignment-handbook's zephyr-7b-dpo-qlora has ten times the rate of its zephyr-7b-dpo-full."""

_ON_CPU: Literal["float32"] = "float32"


def without_recipe(recipe: TrainRecipe) -> TrainRecipe:
    """A recipe that no file stands behind, with a learning rate for what it trains, unless it was given one."""
    if recipe.tuning == "full" or "lr" in recipe.optimizer.model_fields_set:
        return recipe
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": ADAPTER_LR})})


def with_dtype(recipe: TrainRecipe, *, gpu: bool) -> TrainRecipe:
    """The recipe, in float32 on a CPU if it says nothing of ``dtype``: bfloat16 takes minutes a step on most."""
    return recipe if gpu or "dtype" in recipe.model_fields_set else recipe.model_copy(update={"dtype": _ON_CPU})


def dtype_of_run(recipe: TrainRecipe, bound: Path | None) -> tuple[TrainRecipe, str]:
    """The recipe with the dtype of a run, and why it is another than the recipe's, if it is: the one with which the run
    began, else what suits this machine.

    Args:
        recipe: its own dtype goes first, if it says any.
        bound: the recipe that the run is bound to, as JSON; None before its first step.
    """
    if "dtype" in recipe.model_fields_set:
        return recipe, ""
    before = read_json(bound) if bound is not None else None
    if isinstance(before, dict) and before.get("dtype") in ("float32", "bfloat16"):
        settled, reason = recipe.model_copy(update={"dtype": before["dtype"]}), "as this run began"
    else:
        settled, reason = with_dtype(recipe, gpu=has_gpu()), "this machine has no GPU"
    return settled, reason if settled.dtype != recipe.dtype else ""


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
