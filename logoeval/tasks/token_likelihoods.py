"""How surprised a model is by each token of a text, in nats: over one reading of it, or under a window that slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from logodata.common.errors import UserError
from logodata.common.finite import DAMAGED

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

_SLICE_TOKENS = 512  # whose logits are in memory at once: 0.26 GB in float32 for a vocabulary of 128K


def token_nlls(model: PreTrainedModel, ids: Sequence[int], num_scored: int | None = None) -> NDArray[np.float64]:
    """Return the negative log-likelihoods in nats of the last ``num_scored`` of ``ids`` (by default all but the first),
    each given all of ``ids`` before it, [num_scored]. The text is read in one pass, at positions 0, 1, ..."""
    from logodata.models.logprobs import text_logprobs

    count = len(ids) - 1 if num_scored is None else num_scored
    return -text_logprobs(model, ids, count, _SLICE_TOKENS).double().cpu().numpy()


def sliding_windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the passes of a sliding window over ``num_tokens`` tokens, each as (end, how many of its last tokens it
    scores).

    The first pass reads the first ``window`` tokens and scores all but the first of them. Each further one ends
    ``stride`` tokens later (the last may move by less, to the end of the text) and scores the tokens that are new in
    it. So every token but the first is scored exactly once; token i (from 0) has i tokens before it if i < window, else
    between window - stride and window - 1, and with a stride of 1 always min(i, window - 1).

    This is the strided sliding window of Press, Smith and Lewis ("Shortformer", ACL 2021; "Train Short, Test Long",
    ICLR 2022), by which LOGO measured its curves on PG-19. Where the text ends within a stride, the last pass here is
    as long as the others; scripts that start windows at multiples of the stride read less there.
    """
    end = min(window, num_tokens)
    yield end, end - 1
    while end < num_tokens:
        scored = min(stride, num_tokens - end)
        end += scored
        yield end, scored


def sliding_nlls(
    model: PreTrainedModel,
    ids: Sequence[int],
    window: int,
    stride: int,
    *,
    num_begin: int = 0,
    on_pass: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Return the negative log-likelihood in nats of every token but the first under :func:`sliding_windows`, [len(ids)
    - 1].

    Every pass begins with the first ``num_begin`` of ``ids``, the tokenizer's beginning of a sequence, and reads so
    many tokens of text less, since models attend to them wherever they are. ``on_pass`` is told how many tokens each
    pass has read.
    """
    parts = []
    for end, scored in sliding_windows(len(ids), window, stride):
        start = max(end - window, 0)
        parts.append(token_nlls(model, [*ids[:num_begin], *ids[start + num_begin : end]], scored))
        on_pass(end - start)
    return np.concatenate(parts)


def check_logits(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Raise a ``UserError`` if a model gives no numbers, or other ones than its decoder and its head one by one, as
    :func:`token_nlls` computes them. It is tried on a few ``ids``."""
    import torch

    from logodata.models.logprobs import decoder_of, head_logits

    probe = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=probe, use_cache=False).logits[0]
        if logits.isnan().any():  # equal to nothing, not even to themselves
            raise UserError(f"the logits of {type(model).__name__} are nan", mend=DAMAGED)
        states = decoder_of(model)(input_ids=probe, use_cache=False).last_hidden_state[0]
        if not torch.allclose(logits, head_logits(model, states), atol=1e-3):
            raise UserError(
                f"{type(model).__name__} gives other log-probabilities than its decoder and its head one by one",
                mend="leave logoeval ppl out",
            )
