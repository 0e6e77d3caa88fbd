"""Decide from the names of a model's layers which of them get an adapter, for plans and for training."""

from __future__ import annotations

import re
from collections.abc import Collection

from logodata.common.errors import UserError, did_you_mean
from logotrain.recipe.settings import ALL_LINEAR, ATTENTION, LoraSettings


def adapter_targets(
    settings: LoraSettings, linears: Collection[str], head: str, *, tied: bool, where: str
) -> tuple[list[str], bool]:
    """Return the names of the layers that get an adapter, and whether the whole token embedding is trained beside them.

    Args:
        settings: its ``attention``, ``all-linear`` and ``auto`` are resolved here.
        linears: paths of the decoder's linear layers that can get an adapter, such as ``self_attn.q_proj``.
        head: name of the output head's layer.
        tied: whether the token embedding and the output head are one weight.
        where: name of the model, for messages.

    Raises:
        UserError: the model has no layer that is asked for, or none at all. Or the output head would get an adapter and
            be trained whole, because it is tied to an embedding that is trained.
    """
    names = sorted({path.rpartition(".")[2] for path in linears})
    groups = {ALL_LINEAR: names, ATTENTION: _attention(linears)}
    wanted: dict[str, None] = {}
    for target in settings.target_modules:
        wanted |= dict.fromkeys(groups.get(target) or [target])
    linears = names
    there = {*linears, head}
    missing = [target for target in wanted if target not in there]
    if missing:
        raise UserError(
            f"lora.target_modules: no layer {missing[0]!r} in the model",
            where=where,
            mend=f"its linear layers: {', '.join(sorted(there))}",
        )
    if tied and head in wanted and settings.train_embeddings is True:
        raise UserError(
            f"{head!r} is tied to the token embedding: it cannot get an adapter and be trained whole with it",
            where=where,
            mend=f"leave {head} out of lora.target_modules, or set lora.train_embeddings=false",
        )
    return list(wanted), not tied if settings.train_embeddings == "auto" else settings.train_embeddings


def adapter_parameters(settings: LoraSettings, parameters: Collection[str], *, where: str) -> list[str]:
    """Return the ends of the names of the parameters that get an adapter, in alphabetical order.

    Args:
        settings: names them in ``target_parameters``.
        parameters: names of the decoder's parameters that can, such as ``layers.0.mlp.experts.down_proj``.
        where: name of the model, for messages.

    Raises:
        UserError: the model has no parameter of such a name.
    """
    names = {re.sub(r"^.*\.\d+\.", "", path) for path in parameters}
    for target in settings.target_parameters:
        if not any(f".{path}".endswith(f".{target}") for path in parameters):
            known = f"its weights outside of linear layers: {', '.join(sorted(names)) or 'none'}"
            raise UserError(
                f"lora.target_parameters: no parameter {target!r} in the model",
                where=where,
                mend=did_you_mean(target, sorted(names), known),
            )
    return sorted({*settings.target_parameters})


def _attention(linears: Collection[str]) -> list[str]:
    """Return the names of the linear layers inside of attention blocks and nowhere else; the paper's if it has them."""
    inside = {path.rpartition(".")[2] for path in linears if _BLOCK.search(path.rpartition(".")[0])}
    outside = {path.rpartition(".")[2] for path in linears if not _BLOCK.search(path.rpartition(".")[0])}
    return list(_PAPERS) if inside.issuperset(_PAPERS) else sorted(inside - outside)


_BLOCK = re.compile("attn|attention")
_PAPERS = ("q_proj", "k_proj", "v_proj", "o_proj")
