"""Choose the next token of each response: the likeliest, or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from logodata.common.errors import UserError
from logodata.common.finite import DAMAGED
from logodata.engines import FinishReason, GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import request_seed

_NUCLEUS_CANDIDATES = 256


class Row:
    """A response that is being generated."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.last_token = 0
        self.finish_reason: FinishReason | None = None
        # It is on the CPU whatever the model's device, so that a seed means the same everywhere.
        self.generator = torch.Generator().manual_seed(request_seed(request))

    def take(self, token: int) -> bool:
        """Add the chosen token. Return True if it ends the response."""
        self.last_token = token
        if token in self.request.sampling.stop_ids:
            self.finish_reason = "stop"
        else:
            self.token_ids.append(token)
            if len(self.token_ids) == self.request.sampling.max_new_tokens:
                self.finish_reason = "length"
        return self.finish_reason is not None

    @property
    def result(self) -> GenerationResult:
        """The response, once it has ended."""
        return GenerationResult(self.request.id, tuple(self.token_ids), self.finish_reason or "length")


Choose = Callable[[Tensor, Sequence[Row]], list[int]]
"""Returns the next token of each row, from float32 logits [B, V], which it may change."""


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Return the next token of each row, from float32 logits [B, V].

    Raises:
        UserError: The logits of a row are NaN, so its greedy token would be arbitrary.
    """
    for index, row in enumerate(rows):
        sampling = row.request.sampling
        if len(row.token_ids) < sampling.min_new_tokens:
            logits[index, list(sampling.stop_ids)] = float("-inf")
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    nan = logits[range(len(rows)), tokens].isnan().tolist()  # argmax returns the index of a NaN if there is one
    for index, row in enumerate(rows):
        if nan[index] and row.finish_reason is None:
            raise UserError("the model's logits are nan", where=f"request {row.request.id}", mend=DAMAGED)
        if row.finish_reason is None and row.request.sampling.temperature > 0:
            tokens[index] = draw(logits[index], row.request.sampling, row.generator)
    return tokens


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from the nucleus of softmax(logits / temperature), logits float32 [V], with one uniform number.

    The nucleus (Holtzman et al. 2020) is the smallest set of most probable tokens whose mass reaches ``top_p``.
    """
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    uniform = float(torch.rand((), generator=generator))
    if sampling.top_p == 1.0:
        cumulative, order = probabilities.cumsum(dim=-1), None
    else:
        # The most likely few nearly always hold the nucleus; sorting 50K entries per row costs a fifth of a decode
        # step.
        values, order = probabilities.topk(min(_NUCLEUS_CANDIDATES, len(probabilities)))
        if values.sum() < sampling.top_p:
            values, order = probabilities.sort(descending=True)
        cumulative = values.cumsum(dim=-1)
        cumulative = cumulative[: int((cumulative - values < sampling.top_p).sum())]
    # Rounding may put uniform * mass on the last border.
    index = min(int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)), len(cumulative) - 1)
    return index if order is None else int(order[index])
