"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from logotrain.recipe.settings import OptimizerSettings


def make_optimizer(settings: OptimizerSettings, weights: Sequence[nn.Parameter]) -> Optimizer:
    """Return the optimizer that updates ``weights``."""
    values: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "adamw":
        return AdamW(weights, **values, fused=True)
    from bitsandbytes import optim

    classes = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    optimizer: Optimizer = classes[settings.name](weights, **values)
    return optimizer
