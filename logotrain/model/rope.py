"""Context extension: the rotary frequencies of a model's config, scaled to a longer window."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from logodata.common.errors import UserError
from logodata.models.text_config import config_name, config_window, head_dim, text_config
from logotrain.recipe.settings import RopeSettings


def scaled_config(config: PreTrainedConfig, rope: RopeSettings | None) -> PreTrainedConfig:
    """Return a copy of ``config`` whose text part has a window ``rope.factor`` times as long, its frequencies scaled.

    With base theta, rotary dimension d and factor s, frequency i of the d / 2 is theta ** (-2i / d). It becomes:

    - *linear*: 1 / s of it, which interpolates positions.
    - *ntk*: the frequency of the base theta * s ** (d / (d - 2)). The highest frequency stays, the lowest becomes 1 / s
      of what it was. The scaling is static: it does not depend on the row's length.
    - *yarn*: frequencies that turn more than 32 times within the old window stay, those that turn less than once are
      interpolated, those between are mixed. cos and sin are multiplied by 0.1 ln s + 1.

    The ntk base is computed here, transformers computes the others from ``rope_parameters``.

    Raises:
        UserError: the model has no plain RoPE over whole heads, it is scaled already, or the factor gives no whole
            number of positions.
    """
    scaled = copy.deepcopy(config)
    if rope is None:
        return scaled
    where, text = config_name(config), text_config(scaled)
    theta = _plain_theta(text, where)
    original = config_window(config)
    window = Fraction(str(rope.factor)) * original
    if window.denominator != 1:
        raise UserError(
            f"rope.factor={rope.factor:g} times the window of {original} is {float(window):g}",
            where=where,
            mend="choose a factor that gives a whole number of positions",
        )
    parameters: dict[str, Any]
    if rope.type == "ntk":
        dimension = head_dim(text)
        parameters = {"rope_type": "default", "rope_theta": theta * rope.factor ** (dimension / (dimension - 2))}
    else:
        parameters = {"rope_type": rope.type, "rope_theta": theta, "factor": float(rope.factor)}
    if rope.type == "yarn":
        parameters["original_max_position_embeddings"] = original
    text.rope_parameters = parameters
    text.max_position_embeddings = int(window)
    return scaled


@contextmanager
def own_rope(model: PreTrainedModel, config: PreTrainedConfig) -> Iterator[None]:
    """Let a model whose RoPE was scaled by :func:`scaled_config` compute with that of ``config`` within the block.

    Args:
        model: without PEFT around it.
        config: its config as it was before.

    Raises:
        UserError: the model keeps its frequencies where transformers' models do not.
    """
    # Layers get cosines and sines as inputs, so neither compiled layers nor shards of weights know of the exchange.
    scaled = [(path, module) for path, module in model.named_modules() if "inv_freq" in module._buffers]
    if not scaled:
        raise UserError(
            f"{type(model).__name__} keeps no RoPE frequencies that could be exchanged for those of LongPO's reference",
            where=config_name(config),
            mend="leave rope out of the recipe",
        )
    for path, module in scaled:
        build: Any = type(module)
        inv_freq: Any = module.inv_freq
        model.set_submodule(path, build(config=text_config(config)).to(inv_freq.device, inv_freq.dtype))
    try:
        yield
    finally:
        for path, module in scaled:
            model.set_submodule(path, module)


def _plain_theta(config: PreTrainedConfig, where: str) -> float:
    """Return the base of the RoPE; refuse one that is scaled already, turns part of a head, or differs by layer."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"the model's RoPE is of type {kind!r} already",
            where=where,
            mend="leave rope out, or take the model that it was scaled from",
        )
    if any(isinstance(value, dict) for value in parameters.values()) or not parameters.get("rope_theta"):
        raise UserError(
            "the model has no RoPE, or not the same in every layer", where=where, mend="leave rope out of the recipe"
        )
    share = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if share != 1:
        raise UserError(
            f"RoPE turns only {share:g} of each head (partial_rotary_factor)",
            where=where,
            mend="leave rope out of the recipe",
        )
    return float(parameters["rope_theta"])
