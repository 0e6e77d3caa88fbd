"""Log-probabilities of tokens: the one place where training, evaluation and data sets take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-softmax of ``logits`` at ``targets``, in nats, in float32 or better.

    In bfloat16 the mean over a response would carry an error of up to 0.17 on the loss's argument at beta 10.

    Args:
        logits: [T, V], any float type.
        targets: int64 [T].

    Returns:
        [T], float32 or float64.
    """
    return -cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def head_logprobs(head: nn.Module, states: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """:func:`token_logprobs` of the logits that an output head gives, a chunk of tokens at a time.

    Each chunk's logits are computed again in the backward pass. So memory does not depend on the number of tokens: all
    logits of 64K tokens over a vocabulary of 128K would take 33 GB.

    Args:
        head: called as a module: under FSDP its weight, read from outside, is a shard.
        states: [T, d], the last hidden states.
        targets: int64 [T], the token that each of them predicts.
        chunk_tokens: tokens whose logits are in memory at once.

    Returns:
        [T], nats, float32 or float64.
    """
    chunks = zip(states.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    return torch.cat(
        [checkpoint(_head_logprobs, head, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )


def _head_logprobs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return token_logprobs(head(states), targets)
