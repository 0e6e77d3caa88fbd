"""Log-probabilities of a row's scored tokens: the model that is trained, as the loss sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from logodata.models.logprobs import decoder_of, head_logits, head_logprobs
from logodata.models.text_config import text_config
from logotrain.attention.context_parallel import ALONE, ContextGroup
from logotrain.attention.shared_prefix import shares_prompt
from logotrain.loss.routers import RouterRecord, prepare_routers
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout

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
        model: with or without adapters.
        autocast: dtype in which float32 adapters on a narrower base compute, as they would once merged. PEFT would
            keep a float32 copy of each target's input. With None every weight computes in its own dtype.
        plain_attention: the implementation of transformers' attention that generates.

    Attributes:
        context_group: the processes that each row is split over; they call the model with equal rows.
        min_passes: forward passes that a row takes at least, where each response is a row of its own.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        autocast: torch.dtype | None = None,
        plain_attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        self.model = model
        self.plain_attention, self.min_passes = plain_attention, 0
        self.context_group = ALONE
        self._autocast_dtype = autocast
        if autocast is not None:
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.cast_input_dtype_enabled = False
        prepare_routers(self.causal_lm)
        self.eval()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model of transformers without PEFT around it; the adapters are in it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @contextmanager
    def unsplit(self) -> Iterator[None]:
        """Compute whole rows within the block, each process the same or its own."""
        group, self.context_group = self.context_group, ALONE
        try:
            yield
        finally:
            self.context_group = group

    def forward(self, row: Row, routers: RouterRecord | None = None) -> Tensor:
        """Return the log-probability of each of ``row.targets``, [T], float32 or float64.

        Inside of :func:`logotrain.attention.shared_prefix.use_shared_prefix` the prompt is computed once for all
        responses. Elsewhere each response is computed after its prompt in a row of its own, by the model's own
        attention. The values are equal. ``routers`` is filled with what the routers of a mixture of experts do.
        """
        with self._autocast(row.input_ids.device):
            if shares_prompt(self.causal_lm):
                return self._shared_logprobs(row, routers)
            states = self._separate_states(row, routers)
            if routers is not None:
                routers.finish(self.causal_lm, states, row.layout)
            return self._head_logprobs(states, row.targets)

    def _shared_logprobs(self, row: Row, routers: RouterRecord | None) -> Tensor:
        """Compute this process's slice of a row, and return the log-probabilities of all targets, [T]."""
        group = self.context_group
        own = group.own(row.layout.total_length)
        states = self._states(
            row.input_ids[:, own], row.position_ids[:, own], routers, shared_prefix=row.layout, context_group=group
        )
        if routers is not None:
            routers.finish(self.causal_lm, states, row.layout, group)
        here = torch.nonzero((row.gather_index >= own.start) & (row.gather_index < own.stop)).flatten()
        # The head scores at least one token on each process: its weights are gathered by all, and gradients flow back
        # through the layers of all.
        scored = here if len(here) else here.new_zeros(1)
        index = (row.gather_index[scored] - own.start).clamp(0, len(states) - 1)
        logprobs = self._head_logprobs(states[index], row.targets[scored])
        return group.gather(logprobs[: len(here)], here, len(row.targets))

    def _head_logprobs(self, states: Tensor, targets: Tensor) -> Tensor:
        chunk_tokens = max(1, CHUNK_ELEMENTS // text_config(self.causal_lm.config).vocab_size)
        return head_logprobs(partial(head_logits, self.causal_lm), states, targets, chunk_tokens)

    def _states(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        routers: RouterRecord | None = None,
        start: int = 0,
        **layout: RowLayout | ContextGroup,
    ) -> Tensor:
        """Return the last hidden states of a row, [N, d], and record what routers do from the token ``start`` on."""
        decoder: nn.Module = decoder_of(self.causal_lm)
        run = decoder if routers is None else partial(routers.run, decoder, start)
        output = run(
            input_ids=input_ids,
            position_ids=position_ids,
            # Without a mask transformers takes gaps between positions for borders of packed documents.
            attention_mask=torch.ones_like(input_ids),
            use_cache=False,
            **layout,
        )
        states: Tensor = output.last_hidden_state
        return states[0]

    def _separate_states(self, row: Row, routers: RouterRecord | None) -> Tensor:
        """Return the hidden states that predict ``row.targets``, [T, d], from a row for each response."""
        found: list[Tensor] = []
        separate = row.separate()
        # The tokens of a prompt are recorded with its first response, and not again.
        starts = [
            sample.prompt_length if response else 0
            for sample in row.layout.samples
            for response in range(len(sample.response_lengths))
        ]
        for (indices, scored), start in zip(separate, starts, strict=True):
            states = self._states(row.input_ids[:, indices], row.position_ids[:, indices], routers, start)
            found.append(states[scored])
        states = torch.cat(found)
        indices, _ = separate[0]
        for _ in range(self.min_passes - len(separate)):
            # Sharded processes must all run equally often, forward and backward.
            more = self._states(row.input_ids[:, indices], row.position_ids[:, indices])
            states = states + 0 * more[:1]
        return states

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
