"""Defaults that depend on the run: the learning rate without a recipe, and the dtype for the device."""

from __future__ import annotations

from pathlib import Path

from logodata.common.files import read_json
from logotrain.recipe.settings import TrainRecipe

ADAPTER_LR = 5e-6
"""Peak learning rate of adapters in a run without a recipe.

It is ten times the paper's 5e-7, which full tuning takes. In alignment-handbook too, zephyr-7b-dpo-qlora has ten times
the rate of zephyr-7b-dpo-full."""


def without_recipe(recipe: TrainRecipe) -> TrainRecipe:
    """Return ``recipe`` with :data:`ADAPTER_LR` if it trains adapters and sets no learning rate."""
    if recipe.tuning == "full" or "lr" in recipe.optimizer.model_fields_set:
        return recipe
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": ADAPTER_LR})})


def with_dtype(recipe: TrainRecipe, *, gpu: bool) -> TrainRecipe:
    """Return ``recipe`` in float32 if there is no GPU and it sets no ``dtype``.

    In bfloat16 a step takes minutes on most CPUs.
    """
    return recipe if gpu or "dtype" in recipe.model_fields_set else recipe.model_copy(update={"dtype": "float32"})


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
        settled, reason = with_dtype(recipe, gpu=has_gpu()), "this machine has no GPU"
    return settled, reason if settled.dtype != recipe.dtype else ""


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
