"""Decide how much the load-balancing loss of a mixture of experts counts in a run."""

from __future__ import annotations

import re
from inspect import signature
from typing import Literal

import torch
from transformers import PreTrainedModel

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.models.text_config import text_config
from logotrain.loss.logprobs import LogprobModel
from logotrain.loss.routers import RouterRecord
from logotrain.parallel import without_backward
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
"""The names that configs give to the weight of the router loss: most models, JetMoe, DBRX."""

_ROUTER = re.compile(r"(^|\.)(gate|\w*router\w*)\.")
"""The paths of a router's parameters."""


def router_weight(
    setting: float | Literal["auto", False], model: LogprobModel, device: torch.device, *, where: str
) -> float | None:
    """Return the weight of the router loss in a sample's loss, and note it; None if it is left out.

    All processes of a run call this together, because a model is asked for the loss of two tokens.

    Args:
        setting: see :class:`logotrain.recipe.settings.TrainRecipe`.
        model: its trained weights are marked.
        device: of the model.
        where: name of the model, for messages.

    Raises:
        UserError: a weight is asked for, and the model computes no router loss.
    """
    causal_lm = model.causal_lm
    weight = _own_weight(causal_lm) if setting == "auto" else setting
    if not weight:
        return None
    if setting == "auto" and not _trains_routers(causal_lm):
        note("router loss: none (the routers are frozen)")
        return None
    if not _computes_loss(model, device):
        what = f"{type(causal_lm).__name__} computes no router loss"
        if setting != "auto":
            raise UserError(f"router_loss={weight:g}: {what}", where=where, mend="set router_loss=false")
        note(f"router loss: none (its config has a weight, {weight:g}, but {what})")
        return None
    note(f"router loss: {weight:g} times the model's own{' (its config)' if setting == 'auto' else ''}")
    return weight


def _own_weight(model: PreTrainedModel) -> float | None:
    config = text_config(model.config)
    places = (config, getattr(config, "ffn_config", None))
    found = [getattr(place, name, None) for place in places for name in _WEIGHTS]
    return next((value for value in found if value), None)


def _trains_routers(model: PreTrainedModel) -> bool:
    return any(weight.requires_grad and _ROUTER.search(name) for name, weight in model.named_parameters())


def _computes_loss(model: LogprobModel, device: torch.device) -> bool:
    if "output_router_logits" not in signature(model.causal_lm.forward).parameters:
        return False
    ids, layout = torch.zeros(1, 2, dtype=torch.int64), RowLayout((SharedPrefixLayout(1, (1,)),))
    row = Row(ids, torch.arange(2)[None], torch.tensor([0]), torch.tensor([0]), ((0, 1),), layout)
    record = RouterRecord(loss=True)
    with without_backward(model), model.unsplit():
        model(row.to(device), record)
    return bool(record.losses)
