"""Log-probabilities of response tokens: the only place that reads the output head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from logotrain.collate import SharedPrefixRow

_CHUNK_ELEMENTS = 2**24
"""Logits turned to float32 at once: 64 MiB, 131 rows of a vocabulary of 128K."""


def response_logprobs(model: PreTrainedModel, row: SharedPrefixRow) -> list[Tensor]:
    """Log-probability of every response token given the prompt and the response before it, in nats.

    The head runs inside the model's own forward, at response positions only: called from outside, its gradients would
    be lost to other ranks under sharding.

    Args:
        model: inside :func:`logotrain.shared_prefix.use_shared_prefix`.
        row: on the model's device.

    Returns:
        One tensor a response, [R_j], float32 (float64 for a float64 model).
    """
    logits = model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        use_cache=False,
        logits_to_keep=row.gather_index,
        shared_prefix=row.layout,
    ).logits[0]
    if logits.shape[0] != row.targets.shape[0]:
        raise ValueError(f"the model ignores logits_to_keep: {tuple(logits.shape)} for {row.targets.shape[0]} targets")
    return list(token_logprobs(logits, row.targets).split(row.layout.response_lengths))


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-softmax of ``logits`` at ``targets``, in float32 or better, a chunk of rows at a time.

    Each chunk is computed again in the backward pass, so that only the logits themselves stay in memory. In bfloat16
    the mean over a response would carry an error of up to 0.17 on the loss's argument at beta 10.

    Args:
        logits: [R, V], any float type.
        targets: int64 [R].

    Returns:
        [R], float32 or float64.
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    parts = [
        checkpoint(_token_logprobs, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
