"""The model to train: a frozen base with adapters (and the token embedding where that is wanted), or all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from logodata.common.console import note, progress
from logodata.models.loading import load_config, load_model
from logodata.models.logprobs import unread_weights
from logotrain.model.adapters import add_adapters, start_from
from logotrain.model.rope import scaled_config
from logotrain.model.sharded_loading import Shares
from logotrain.recipe.settings import TrainRecipe


def load_trainable(
    recipe: TrainRecipe, device: torch.device, shares: Shares | None = None
) -> PreTrainedModel | PeftModel:
    """Load the model as training starts: with fresh adapters, which change nothing yet, or with all weights trained.

    Trained weights are float32, frozen ones have ``recipe.dtype``. The model is in evaluation mode and stays there (see
    :class:`logotrain.loss.logprobs.LogprobModel`); a note tells what that turns off. With ``shares`` most of its
    weights are hollow, and the shares hold this process's part of their values.

    Raises:
        UserError: the model cannot be loaded, its attention cannot be shared, or a target module is not in it.
    """
    config = scaled_config(load_config(recipe.model), recipe.rope)
    dtype = "float32" if recipe.tuning == "full" else recipe.dtype
    with shares.cut(recipe, config) if shares else _reading():
        base = load_model(
            recipe.model, config=config, dtype=dtype, device=str(device), four_bits=recipe.tuning == "qlora"
        )
    base.config.use_cache = False
    if recipe.tuning == "full":
        for weight in unread_weights(base):  # weight decay would shrink them
            weight.requires_grad_(False)
    if recipe.tuning == "qlora":
        _keep_differentiable(base)
    torch.manual_seed(recipe.seed)
    model = base if recipe.tuning == "full" else add_adapters(base, recipe.lora, name=recipe.model)
    if isinstance(model, PeftModel) and recipe.lora.init_adapter is not None:
        start_from(model, recipe.lora.init_adapter)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    note(f"{recipe.model}: {trained:,} of {base.num_parameters():,} weights are trained")
    if noise := noise_settings(base):
        fields = ", ".join(f"{field}={value:g}" for field, value in noise.items())
        note(f"{recipe.model}: dropout and jitter are off in training, policy and reference are one function: {fields}")
    return model.eval()


@contextmanager
def _reading() -> Iterator[None]:
    with progress("weights read", 1) as bar:
        yield
        bar.advance()


def _keep_differentiable(base: PreTrainedModel) -> None:
    """Keep 4-bit weights in the layout that has a backward pass."""
    # On a CPU with AVX512-BF16 bitsandbytes packs them anew, for good, at the first forward pass in evaluation mode.
    # Gradients of all later steps would end there, and only a warning says so.
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # bitsandbytes adds it


_NOISE = re.compile("drop|jitter|noise")


def noise_settings(model: PreTrainedModel) -> dict[str, float]:
    """Return every dropout, jitter and noise above 0, by name, for a note to the user; training does not depend on it.

    They are the fields of the config at any depth, and of modules those whose value no field of the config has.
    """
    fields = {name: value for name, value in _numbers(model.config.to_dict()) if value and _NOISE.search(name)}
    found: dict[str, float] = {}
    for path, module in model.named_modules():
        values = {"p": module.p} if isinstance(module, _DropoutNd) else vars(module)
        for name, value in values.items():
            noisy = isinstance(module, _DropoutNd) or _NOISE.search(name)
            if noisy and isinstance(value, float) and value and value not in fields.values():
                found[f"{path.rpartition('.')[2]}.{name}"] = value
    return fields | found


def _numbers(values: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the path and the value of each floating-point field of a config, a dict of dicts."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value
