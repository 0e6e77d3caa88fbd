"""Variants of attention that a model's layers ask for: which earlier tokens they see, sinks, and capped scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

Feature = Literal["sliding", "chunked", "softcap", "sinks", "other"]
"""A variant of attention, as a back end can or cannot compute it."""


class Reach(NamedTuple):
    """Which earlier tokens a layer attends to, counted in the sequence of a prompt and one response.

    The count is neither the place in the row nor the position id: another response may stand between the two tokens,
    and position ids may have gaps.

    Attributes:
        kind: ``full`` means all of them; ``sliding`` the last ``size`` tokens, the attending one included; ``chunked``
            those in the same chunk of ``size`` tokens; ``other`` what no back end computes.
        size: tokens; 0 for ``full`` and ``other``.
    """

    kind: Literal["full", "sliding", "chunked", "other"] = "full"
    size: int = 0

    def visible(self, query: Tensor, key: Tensor) -> Tensor | bool:
        """Return whether the token at index ``key`` is in reach of the later one at ``query``; they broadcast."""
        match self.kind:
            case "full":
                return True
            case "sliding":
                return key > query - self.size
            case "chunked":
                return key // self.size == query // self.size
            case "other":
                raise ValueError("the mask is neither causal nor causal within a window or a chunk")


FULL = Reach()


class Variant(NamedTuple):
    """How a layer's attention differs from plain causal attention.

    Attributes:
        reach: the tokens that it sees.
        softcap: scores are capped smoothly at this value, as in Gemma 2 (arXiv 2408.00118); None leaves them.
        sinks: [H], a score for each head that takes part in the softmax and adds nothing to the output, as in GPT-OSS.
    """

    reach: Reach = FULL
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """What a back end must be able to compute."""
        found: set[Feature] = set() if self.reach.kind == "full" else {self.reach.kind}
        if self.softcap is not None:
            found.add("softcap")
        if self.sinks is not None:
            found.add("sinks")
        return frozenset(found)


PLAIN = Variant()


def layer_reach(*, mask_function: Callable[..., Any], local_size: int | None = None, **_: Any) -> Reach:
    """Return the reach that a mask of transformers gives; transformers calls it in place of making the mask.

    A mask function says which tokens attend to which. It is compared with the reaches of ``local_size`` at the indices
    where they differ. Models also make masks that no layer uses, so what is found is judged by the layers.
    """
    if mask_function is causal_mask_function:
        return FULL
    if local_size:
        edges = [0, 1, *(local_size * times + step for times in (1, 2, 3) for step in (-1, 0, 1))]
        query, key = torch.tensor(edges)[:, None], torch.arange(max(edges) + 1)[None]
        found = mask_function(0, 0, query, key)
        for kind in ("sliding", "chunked"):
            reach = Reach(kind, local_size)
            if torch.equal(found.cpu(), reach.visible(query, key) & (key <= query)):
                return reach
    return Reach("other")
