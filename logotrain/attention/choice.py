"""Choose how a model's attention is computed: over shared prompts by one of the back ends, or in separate rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from logodata.common.errors import UserError
from logotrain.attention.shared_prefix import attention_of, choose_backend, use_shared_prefix
from logotrain.attention.variants import Feature
from logotrain.recipe.settings import Backend, Implementation


@dataclass(frozen=True, slots=True)
class Traits:
    """What training depends on in a model.

    Attributes:
        obstacle: why responses cannot share their prompt; empty if they can.
        features: the variants of attention that its layers ask for.
        separate: the attention of transformers that computes rows without sharing.
        tried: whether a small copy could be tried. If not, the other fields are what is safe to assume, and
            :func:`logotrain.trainable.check_untried` looks at the loaded model.
        takes_gaps: whether positions may have gaps: results depend on position ids, and no token on later ones.
    """

    obstacle: str
    features: frozenset[Feature] = frozenset()
    separate: Literal["sdpa", "eager"] = "eager"
    takes_gaps: bool = True
    tried: bool = True


class AttentionChoice(NamedTuple):
    """How the attention of a model is computed while it trains.

    Attributes:
        shared: whether the responses of a sample share one computation of their prompt.
        by: the back end of shared rows, or transformers' implementation for separate ones.
        reason: why.
    """

    shared: bool
    by: Implementation
    reason: str

    def __str__(self) -> str:
        if self.shared:
            return f"{self.by} ({self.reason})"
        return f"{self.by}, a row for each response, which computes its prompt again ({self.reason})"

    def row_tokens(self, wanted: int | None) -> int | None:
        """Return the most tokens of a row where ``wanted`` are asked for; None gives each sample a row of its own, as
        separate rows need."""
        return wanted if self.shared else None

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Make a model, plain or inside PEFT, compute its attention so within the block."""
        with use_shared_prefix(model, self.by) if self.by != "eager" and self.shared else attention_of(model, self.by):
            yield


def choose_attention(
    traits: Traits,
    device: torch.device,
    dtype: torch.dtype,
    *,
    sharing: Literal["auto", "prompt", "none"] = "auto",
    wanted: Literal["auto", Backend] = "auto",
    head_width: int = 0,
    here: bool = True,
) -> AttentionChoice:
    """Choose how the attention of a model is computed on a device.

    Args:
        traits: of the model.
        device: where it is computed.
        dtype: of queries, keys and values.
        sharing: see :class:`logotrain.recipe.settings.TrainRecipe`.
        wanted: the back end that is asked for.
        head_width, here: see :func:`logotrain.attention.shared_prefix.choose_backend`.

    Raises:
        UserError: what is asked for cannot be computed.
    """
    obstacle = traits.obstacle or ("as asked for" if sharing == "none" else "")
    if not obstacle:
        try:
            features = traits.features
            by = choose_backend(wanted, device, dtype, features=features, head_width=head_width, here=here)
            return AttentionChoice(True, *by)
        except UserError as error:
            if wanted != "auto" or sharing == "prompt":
                raise
            obstacle = error.what
    if wanted == "sdpa" and traits.separate == "eager":
        raise UserError(
            f"attention=sdpa: a row for each response needs transformers' eager attention here ({obstacle})",
            mend="set attention=auto",
        )
    if wanted in ("flash", "flex"):
        raise UserError(
            f"attention={wanted} is for shared prompts, and there are none: {obstacle}", mend="set attention=auto"
        )
    return AttentionChoice(False, traits.separate, obstacle)
