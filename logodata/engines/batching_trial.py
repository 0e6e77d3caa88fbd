"""Find out, on a small copy of a model, which of its prompts may stand in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from logodata.common.errors import UserError, pass_on
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import PrefixGroup, plan_batches
from logodata.engines.decoding import Choose, Row
from logodata.engines.own_generation import Own, generate_own
from logodata.engines.shared_generation import generate_shared
from logodata.models.rope import length_dependent_rope
from logodata.models.text_config import config_name
from logodata.models.tiny import (
    VOCABULARY,
    WINDOW,
    config_key,
    own_logits,
    own_random_state,
    plain_attention,
    small_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Batching(NamedTuple):
    """Which prompts of a model may stand in one batch.

    Attributes:
        way: ``shared``, prompts of any length, and what they begin with is computed once; else how the model's own
            code generates.
        reason: why it is not ``shared``; empty if it is.
    """

    way: Literal["shared", Own]
    reason: str = ""

    def __str__(self) -> str:
        how = {
            "shared": "prompts in a batch, what they begin with computed once",
            "padded": "prompts in a batch, each computed whole",
            "alike": "only prompts of one length in a batch, each computed whole",
            "uncached": "only prompts of one length in a batch, computed again for each new token",
        }
        return how[self.way] + (f" ({self.reason})" if self.reason else "")


def find_batching(config: PreTrainedConfig) -> Batching:
    """Return how a model generates in batches what it would generate alone.

    Raises:
        UserError: Transformers has no such model that writes text, or its ``generate`` does not continue a text as its
            forward would.
    """
    key = config_key(config)
    if key not in _known:
        with own_random_state(), torch.no_grad():
            _known[key] = _try(config)
    return _known[key]


_known: dict[str, Batching] = {}
"""What this process found, by :func:`logodata.models.tiny.config_key`."""

_LENGTHS = (3, 3 * WINDOW + 1, 4 * WINDOW - 1, 4 * WINDOW - 1)
_COMMON = 2 * WINDOW + 1
"""Lengths of the prompts that are tried, beyond the windows of a small copy, and of what the last three begin with."""

_TOLERANCE = 0.01
"""Largest difference, in nats, of log-probabilities in float32 that count as equal. Equal ones differ by less than
1e-3, others by more than 0.1."""

_STEPS = WINDOW + 3
"""Tokens that are generated after each."""


def _try(config: PreTrainedConfig) -> Batching:
    if rope := length_dependent_rope(config):
        return Batching("alike", f"RoPE of type {rope!r} depends on the longest row of a batch")
    model = small_model(config, config_name(config))
    if isinstance(model, str):
        return Batching("alike", f"no small copy of it could be tried: {model}")
    model.float()  # in float64 the masks of eager attention overflow where a pad sees nothing
    requests = _requests()
    truth = {request.id: _scores(own_logits(model, torch.tensor([_text(request)]))) for request in requests}
    if plain_attention(config) is None:
        with suppress(ValueError):  # those that have eager attention only
            model.set_attn_implementation("sdpa")
    if _gives(truth, lambda choose: generate_shared(model, _one_batch(requests), choose)):
        return Batching("shared")
    for way in get_args(Own):
        own = partial(generate_own, model, requests, way=way, max_tokens=10**6, max_rows=len(requests))
        if _gives(truth, own):
            return Batching(way, _REASONS[way])
    raise UserError(
        f"{type(model).__name__}.generate does not continue a text as its forward would",
        where=config_name(config),
        mend="use another model, or engine.kind=vllm",
    )


_REASONS: dict[Own, str] = {
    "padded": "pads between its tokens would change its logits",
    "alike": "pads beside its tokens would change its logits",
    "uncached": "its cache would change its logits",
}


def _requests() -> list[GenerationRequest]:
    sampling = Sampling(_STEPS, ())
    prompts = [
        [place * (7 if place < _COMMON else 11 + number) % VOCABULARY for place in range(length)]
        for number, length in enumerate(_LENGTHS)
    ]
    return [GenerationRequest(str(number), tuple(ids), sampling) for number, ids in enumerate(prompts)]


def _one_batch(requests: Sequence[GenerationRequest]) -> list[PrefixGroup]:
    (batch,) = plan_batches(requests, max_tokens=10**6, max_rows=len(requests))
    return batch


def _text(request: GenerationRequest) -> list[int]:
    """Return the tokens of a prompt and of the continuation that is tried."""
    return [*request.prompt_ids, *(place * 5 % VOCABULARY for place in range(_STEPS))]


def _scores(logits: Tensor) -> Tensor:
    """Return the log-probabilities of what is generated, [_STEPS, V], from the logits of a whole text."""
    return logits[0, -_STEPS - 1 : -1].float().log_softmax(-1)


def _gives(truth: Mapping[str, Tensor], run: Callable[[Choose], Iterator[GenerationResult]]) -> bool:
    """Return whether a way of generating gives the log-probabilities that are known for each request."""
    found: dict[str, list[Tensor]] = {name: [] for name in truth}

    def choose(logits: Tensor, rows: Sequence[Row]) -> list[int]:
        for row, scores in zip(rows, logits.log_softmax(-1), strict=True):
            found[row.request.id].append(scores)
        return [_text(row.request)[len(row.request.prompt_ids) + len(row.token_ids)] for row in rows]

    try:
        list(run(choose))
    except Exception as error:  # each model fails in its own way on what it does not know
        pass_on(error)
        return False
    return all(
        torch.allclose(torch.stack(found[name]), scores, rtol=0, atol=_TOLERANCE) for name, scores in truth.items()
    )
