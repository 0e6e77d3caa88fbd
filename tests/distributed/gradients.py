"""Runs in float64, and the whole gradient of a run's first step, written as it meets the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from logotrain import prepare, steps


@contextmanager
def keep_first_gradients(path: Path, *, write: bool = True) -> Iterator[None]:
    """Within the block the first gradients that are clipped go to ``path``, before they are."""
    clip, seen = steps.clip_grad_norm_, []

    def spy(parameters: list[Any], *arguments: Any) -> Any:
        if not seen:
            seen.append(True)
            found = {}
            for number, parameter in enumerate(parameters):
                gradient = parameter.grad
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                found[f"{number:03}"] = whole.detach().clone().contiguous()
            if write:
                save_file(found, path)
        return clip(parameters, *arguments)

    with patch.object(steps, "clip_grad_norm_", spy):
        yield


@contextmanager
def in_float64() -> Iterator[None]:
    """Within the block runs of dtype float32 compute in float64, so that rounding hides nothing. Layers are traced as
    for ``compile``, and no code is generated."""
    load = prepare.load_trainable

    def loaded(*arguments: Any) -> Any:
        model = load(*arguments).double()
        causal_lm = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        causal_lm.set_experts_implementation("eager")  # torch's grouped product has no float64
        return model

    with (
        patch.object(prepare, "load_trainable", loaded),
        patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
    ):
        yield
