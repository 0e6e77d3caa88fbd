"""Log-probabilities of a row's scored tokens: the model that is trained, as the loss sees it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from logodata.models.logprobs import head_logprobs
from logodata.models.text_config import text_config
from logotrain.rows.collate import Row

CHUNK_ELEMENTS = 2**25
"""Logits in memory at once: 128 MiB in float32, 261 tokens over a vocabulary of 128K."""


@dataclass(frozen=True, slots=True)
class SampleLogprobs:
    """Log-probabilities of one sample's tokens, in nats, float32 (float64 for a float64 model).

    Attributes:
        prompt: [P - 1], those of the prompt's tokens after the first; [0] unless prompts are scored.
        responses: [R_j] for each response, the preferred one first.
    """

    prompt: Tensor
    responses: list[Tensor]


class LogprobModel(nn.Module):
    """A causal language model whose forward gives the log-probabilities of a row's targets.

    The decoder runs over the whole row, the head over the scored positions only
    (:func:`logodata.models.logprobs.head_logprobs`), inside this forward: elsewhere FSDP would give it a shard of its
    weight, and gradients would be lost.

    The model stays in evaluation mode, also while it trains. What a model does otherwise in training mode (dropout,
    jitter, layers left out, experts drawn at random) is noise to an objective that compares responses, and policy,
    reference and the model that is used later must be one function.

    Args:
        model: with or without adapters; it is called inside
            :func:`logotrain.attention.shared_prefix.use_shared_prefix`.
        autocast: dtype in which float32 adapters on a narrower base compute, as they would once merged. PEFT would
            keep a float32 copy of each target's input. With None every weight computes in its own dtype.
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
        """The model of transformers without PEFT around it; the adapters are in it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, row: Row) -> Tensor:
        """Return the log-probability of each of ``row.targets``, [T], float32 or float64."""
        causal_lm = self.causal_lm
        head = causal_lm.get_output_embeddings()
        chunk_tokens = max(1, CHUNK_ELEMENTS // text_config(causal_lm.config).vocab_size)
        with self._autocast(row.input_ids.device):
            hidden: Tensor = causal_lm.get_decoder()(
                input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, shared_prefix=row.layout
            ).last_hidden_state[0, row.gather_index]
            return head_logprobs(head, hidden, row.targets, chunk_tokens)

    def generate(self, prompt_ids: Tensor, *, max_new_tokens: int) -> Tensor:
        """Return the new tokens, int64 [n], of the greedy continuation of one prompt, int64 [1, P].

        It has ``max_new_tokens`` tokens, or fewer if it ends with an end-of-sequence token.
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
    """Split the values of :meth:`LogprobModel.forward`, [T], by sample and response."""
    pieces = iter(logprobs.split([count for counts in row.num_targets for count in counts]))
    result = []
    for counts in row.num_targets:
        prompt, *responses = (next(pieces) for _ in counts)
        result.append(SampleLogprobs(prompt, responses))
    return result
