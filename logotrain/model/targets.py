"""Decide from the names of a model's layers which of them get an adapter, for plans and for training."""

from __future__ import annotations

from collections.abc import Collection

from logodata.common.errors import UserError
from logotrain.recipe.settings import ALL_LINEAR, LoraSettings


def adapter_targets(
    settings: LoraSettings, linears: Collection[str], head: str, *, tied: bool, where: str
) -> tuple[list[str], bool]:
    """Return the names of the layers that get an adapter, and whether the whole token embedding is trained beside them.

    Args:
        settings: its ``all-linear`` and ``auto`` are resolved here.
        linears: names of the decoder's linear layers that can get an adapter.
        head: name of the output head's layer.
        tied: whether the token embedding and the output head are one weight.
        where: name of the model, for messages.

    Raises:
        UserError: the model has no layer that is asked for, or none at all. Or the output head would get an adapter and
            be trained whole, because it is tied to an embedding that is trained.
    """
    wanted = dict.fromkeys(settings.target_modules)
    if ALL_LINEAR in wanted and linears:
        wanted |= dict.fromkeys(sorted(linears))
        del wanted[ALL_LINEAR]
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
