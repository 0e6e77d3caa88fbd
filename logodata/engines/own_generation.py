"""Generate by a model's own ``generate`` and cache, where the engine's own batches would not be exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import plan_whole
from logodata.engines.decoding import Choose, Row
from logodata.models.rope import reset_rope

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Own = Literal["padded", "alike", "uncached"]
"""How a model's own code generates: for prompts of any length together; for prompts of one length only; or for those
without a cache, each token from all tokens before it."""


def generate_own(
    model: PreTrainedModel,
    requests: Sequence[GenerationRequest],
    choose: Choose,
    *,
    way: Own,
    max_tokens: int,
    max_rows: int,
) -> Iterator[GenerationResult]:
    """Yield the responses of each batch when all of it have ended. See
    :func:`logodata.engines.batching.plan_whole` for the limits."""
    for batch in plan_whole(requests, max_tokens=max_tokens, max_rows=max_rows, alike=way != "padded"):
        reset_rope(model)
        yield from _generate(model, batch, choose, cached=way != "uncached")


def _generate(
    model: PreTrainedModel, requests: Sequence[GenerationRequest], choose: Choose, *, cached: bool
) -> Iterator[GenerationResult]:
    rows = [Row(request) for request in requests]
    with _plain_generation(model), torch.inference_mode():
        generate: Any = model.generate
        ids, mask = left_padded([request.prompt_ids for request in requests], model.device)
        generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max(request.sampling.max_new_tokens for request in requests),
                do_sample=False,
                use_cache=cached,
                pad_token_id=0,
            ),
            logits_processor=LogitsProcessorList([_Chooser(rows, choose)]),
            stopping_criteria=StoppingCriteriaList([_Ended(rows)]),
        )
    for row in rows:
        yield row.result


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return left-padded ids and mask, both int64 [rows, longest]. Pads have id 0, and the mask hides them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids.to(device), mask.to(device)


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Set the model's own generation config aside: sampling is the request's, whatever the model's files ask for."""
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


class _Chooser(LogitsProcessor):
    """Gives all the probability to the token that is chosen for each row."""

    def __init__(self, rows: Sequence[Row], choose: Choose) -> None:
        self._rows, self._choose = rows, choose

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - as transformers calls it
        tokens = self._choose(scores, self._rows)
        for row, token in zip(self._rows, tokens, strict=True):
            if row.finish_reason is None:
                row.take(token)
        chosen = torch.full_like(scores, float("-inf"))
        chosen[range(len(tokens)), tokens] = 0
        return chosen


class _Ended(StoppingCriteria):
    """Says which rows have ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)
