"""Log-probabilities of tokens: the one place where training, evaluation and data sets take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from logodata.models.text_config import text_config


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


def head_logprobs(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """:func:`token_logprobs` of the logits that an output head gives, a chunk of tokens at a time.

    Each chunk's logits are computed again in the backward pass. So memory does not depend on the number of tokens: all
    logits of 64K tokens over a vocabulary of 128K would take 33 GB.

    Args:
        head: gives the logits [T, V] of states: a module, or :func:`head_logits` of a model. Under FSDP a weight that
            is read from outside of its module is a shard.
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


def text_logprobs(model: PreTrainedModel, ids: Sequence[int], num_scored: int, chunk_tokens: int) -> Tensor:
    """Return the log-probabilities of the last ``num_scored`` of ``ids``, [num_scored], each given all of ``ids``
    before it. The text is read in one pass, at positions 0, 1, ..., without gradients."""
    row = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        states = decoder_of(model)(input_ids=row, use_cache=False).last_hidden_state[0, -num_scored - 1 : -1]
        return head_logprobs(partial(head_logits, model), states, row[0, -num_scored:], chunk_tokens)


def _head_logprobs(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    return token_logprobs(head(states), targets)


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a causal language model that gives its last hidden states.

    In a model that also sees or hears it is the text decoder, which may be wrapped more than once.
    """
    decoder: Any = model.get_decoder()
    if not hasattr(decoder, "get_decoder"):  # ModernBERT calls a part of its head so
        decoder = model.base_model
    if decoder is model and model.get_output_embeddings() is not None:
        # Some models do not know the part's name (Llama 4 in transformers 5.19).
        decoder = next(child for child in model.children() if hasattr(child, "get_decoder"))
    return model if decoder is model else decoder_of(decoder)


def unread_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the weights that text never reaches: what is neither decoder nor head of a model that sees or hears."""
    if text_config(model.config) is model.config:
        return []
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    heads = [head for part in models if (head := part.get_output_embeddings()) is not None]  # it may lie further inside
    read = {weight for module in (decoder_of(model), *heads) for weight in module.parameters()}
    return [weight for weight in model.parameters() if weight not in read]


class _States(BaseModelOutputWithPast):
    """Last hidden states in place of a decoder's output. What else a model's forward asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def head_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits that a model's forward makes of its decoder's last hidden states.

    The forward itself makes them, with its decoder replaced by the states. Some models scale or cap their logits beside
    the head, each under another name in its config.

    Args:
        model: a causal language model, without PEFT around it.
        states: [T, d].

    Returns:
        [T, V].
    """
    given: Any = states[None]
    logits: Tensor = _forward_on(model, _States(last_hidden_state=given)).logits
    return logits[0]


def router_loss(model: PreTrainedModel, states: Tensor, logits: tuple[Tensor, ...]) -> Tensor | None:
    """Return the load-balancing loss, a scalar, that a mixture's forward computes from the logits of its routers.

    The forward itself computes it, since models differ in how they count their experts. Its decoder is replaced by an
    output that holds the logits.

    Args:
        model: a causal language model, without PEFT around it.
        states: [1, d], any states; the forward also computes their logits.
        logits: for each layer that has a router, [T, E].

    Returns:
        None if the forward computes none.
    """
    given: Any = states[None].detach()
    output = _States(last_hidden_state=given)
    output["router_logits"] = logits
    loss = _forward_on(model, output, output_router_logits=True).aux_loss
    return loss if isinstance(loss, Tensor) else None


def _forward_on(model: PreTrainedModel, output: _States, **inputs: Any) -> Any:
    """Return the output of a model's forward in which the decoder gives ``output``."""
    decoder = decoder_of(model)
    replaced = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: output
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        return model(input_ids=ids, use_cache=False, **inputs)
    finally:
        if replaced is None:
            del decoder.forward
        else:
            decoder.forward = replaced
