"""Log-probabilities of the scored tokens: the only place that calls the output head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from logodata.models.text_config import text_config
from logotrain.rows.collate import Row

CHUNK_ELEMENTS = 2**25
"""Logits in memory at once: 128 MiB in float32, 261 rows of a vocabulary of 128K."""


@dataclass(frozen=True, slots=True)
class SampleLogprobs:
    """Log-probabilities of one sample's tokens, in nats, float32 (float64 for a float64 model).

    Attributes:
        prompt: [P - 1], of the prompt's tokens but the first; [0] unless prompts are scored.
        responses: [R_j] each, the preferred one first.
    """

    prompt: Tensor
    responses: list[Tensor]


class LogprobModel(nn.Module):
    """A causal language model whose forward gives the log-probabilities of a row's targets.

    The decoder runs over the whole row, the head over the scored positions only, a chunk at a time; each chunk's logits
    are computed again in the backward pass, so memory does not depend on how many there are. The head is called as a
    module inside this forward: its weight read from outside would be a shard under FSDP, and gradients would be lost.

    The model stays in evaluation mode, also while it trains. What a model does otherwise in training mode (dropout,
    jitter, layers left out, experts drawn at random) is noise to an objective that compares responses, and policy,
    reference and the model that is used later must be one function.

    Args:
        model: with or without adapters, inside :func:`logotrain.attention.shared_prefix.use_shared_prefix` when called.
        autocast: type in which float32 adapters on a narrower base compute, as they would once merged; None: every
            weight computes in its own. PEFT would otherwise keep a float32 copy of each target's input.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._autocast_dtype = autocast
        if autocast is not None:
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.cast_input_dtype_enabled = False
        self.eval()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """transformers' model: without PEFT around it, with the adapters in it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, row: Row) -> Tensor:
        """Log-probability of each of ``row.targets``, [T], float32 or float64.

        Args:
            row: on the model's device.
        """
        causal_lm = self.causal_lm
        head = causal_lm.get_output_embeddings()
        rows = max(1, CHUNK_ELEMENTS // text_config(causal_lm.config).vocab_size)
        with self._autocast(row.input_ids.device):
            hidden: Tensor = causal_lm.get_decoder()(
                input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, shared_prefix=row.layout
            ).last_hidden_state[0, row.gather_index]
            parts = [
                checkpoint(_token_logprobs, head, states, targets, use_reentrant=False, preserve_rng_state=False)
                for states, targets in zip(hidden.split(rows), row.targets.split(rows), strict=True)
            ]
        return torch.cat(parts)

    def generate(self, prompt_ids: Tensor, *, max_new_tokens: int) -> Tensor:
        """Greedy continuation of one prompt.

        Args:
            prompt_ids: int64 [1, P].
            max_new_tokens: it may end earlier, with an end-of-sequence token.

        Returns:
            int64 [n], the new tokens.
        """
        generate: Any = self.model.generate
        with self._autocast(prompt_ids.device):
            output: Tensor = generate(
                input_ids=prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        return output[0, prompt_ids.shape[1] :]

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast_dtype is None else torch.autocast(device.type, self._autocast_dtype)


def split_logprobs(logprobs: Tensor, row: Row) -> list[SampleLogprobs]:
    """The values of :meth:`LogprobModel.forward`, [T], by sample and response."""
    pieces = iter(logprobs.split([count for counts in row.num_targets for count in counts]))
    result = []
    for counts in row.num_targets:
        prompt, *responses = (next(pieces) for _ in counts)
        result.append(SampleLogprobs(prompt, responses))
    return result


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-softmax of ``logits`` at ``targets``, in float32 or better.

    In bfloat16 the mean over a response would carry an error of up to 0.17 on the loss's argument at beta 10.

    Args:
        logits: [R, V], any float type.
        targets: int64 [R].

    Returns:
        [R], float32 or float64.
    """
    return -cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def _token_logprobs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return token_logprobs(head(states), targets)
