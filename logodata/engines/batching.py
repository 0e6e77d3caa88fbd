"""Prepare requests before any model sees them: check them, find shared prompt prefixes, form batches.

All functions are pure functions of token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from logodata.common.errors import UserError
from logodata.engines import FinishReason, GenerationRequest, GenerationResult, Sampling
from logodata.models.vocabulary import check_ids


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Requests whose prompts begin with the same ``prefix_length`` tokens and continue for at least one token each."""

    prefix_length: int
    requests: tuple[GenerationRequest, ...]

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The tokens that all prompts begin with."""
        return self.requests[0].prompt_ids[: self.prefix_length]

    @property
    def suffix_length(self) -> int:
        """The number of tokens after the prefix in the longest prompt."""
        return max(len(request.prompt_ids) for request in self.requests) - self.prefix_length


def check_requests(requests: Sequence[GenerationRequest], window: int | None, vocabulary: int | None) -> None:
    """Refuse requests that no engine may run.

    ``window`` is the most tokens of prompt and response together, and ``vocabulary`` the number of tokens that the
    model knows. None means that it is not known.

    Raises:
        UserError: Two requests have one id, a prompt is empty, a setting is out of range, prompt and response together
            exceed the window, or a token of the prompt or a stop token is outside the vocabulary. Nothing is truncated.
    """
    seen: set[str] = set()
    for request in requests:
        sampling, where = request.sampling, f"request {request.id!r}"
        if request.id in seen:
            raise UserError("this id occurs twice", where=where, mend="give every request its own id")
        seen.add(request.id)
        if not request.prompt_ids:
            raise UserError("the prompt is empty", where=where, mend="give at least one token")
        if sampling.max_new_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            mend = "max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1"
            raise UserError(f"sampling settings out of range: {sampling}", where=where, mend=mend)
        if vocabulary is not None:
            check_ids(vocabulary, request.prompt_ids, sampling.stop_ids, where=where)
        if window is not None and request.max_total_tokens > window:
            raise UserError(
                f"{len(request.prompt_ids)} prompt and {sampling.max_new_tokens} new tokens exceed the window {window}",
                where=where,
                mend="shorten the context or max_new_tokens",
            )


def request_seed(request: GenerationRequest) -> int:
    """Return the seed of one request, below 2**63, from the sampling seed and the id. Order and batch do not matter."""
    digest = hashlib.sha256(f"{request.sampling.seed}:{request.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def first_stop(token_ids: Sequence[int], sampling: Sampling) -> int | None:
    """Return the place of the token that ends a response under ``sampling``; None if none does."""
    places = (n for n, token in enumerate(token_ids) if token in sampling.stop_ids and n >= sampling.min_new_tokens)
    return next(places, None)


def finish(request: GenerationRequest, token_ids: Sequence[int], reason: str | None, *, where: str) -> GenerationResult:
    """Return the result of another engine's output, which still ends with its stop token.

    Raises:
        UserError: The output shows that the engine ignores ``stop_ids``, or that it gave up.
    """
    stops, place = request.sampling.stop_ids, f"{where}, request {request.id!r}"
    ended = reason == "stop"
    kept = tuple(token_ids[:-1] if ended else token_ids)
    if reason not in ("stop", "length"):
        raise UserError(f"generation ended with {reason!r}", where=place, mend="see the engine's log")
    if (ended and (not token_ids or token_ids[-1] not in stops)) or any(token in stops for token in kept):
        mend = "the engine must heed stop_token_ids and ignore_eos, as vLLM does"
        raise UserError("the response does not end at its stop token", where=place, mend=mend)
    finished: FinishReason = "stop" if ended else "length"
    return GenerationResult(request.id, kept, finished)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of leading tokens that ``a`` and ``b`` share. It bisects over slices: prompts can have 100K
    tokens."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def cache_order(requests: Iterable[GenerationRequest]) -> list[GenerationRequest]:
    """Sort requests by their tokens. Prompts that share a beginning follow one another, so a prefix cache computes it
    once and needs to hold only one prompt."""
    return sorted(requests, key=lambda request: (request.prompt_ids, request.id))


def share_prefixes(requests: Sequence[GenerationRequest], *, max_tokens: int, max_rows: int) -> list[PrefixGroup]:
    """Group requests so that few prompt tokens run through the model.

    In the order of their tokens, a prompt joins the group before it if it shares at least half of itself and the total
    gets cheaper. One token of every prompt stays out of the prefix: its logits begin the response.
    """
    groups: list[PrefixGroup] = []
    for request in cache_order(requests):
        length = len(request.prompt_ids)
        if groups:
            prefix, members = groups[-1].prefix_length, groups[-1].requests
            count, shared = len(members), min(prefix, common_prefix(members[-1].prompt_ids, request.prompt_ids))
            widest = max(len(member.prompt_ids) for member in (*members, request))
            fits = count < max_rows and (count + 1) * widest <= max_tokens
            # A group of n costs prefix + sum(length - prefix); with one more it costs shared + sum(length - shared).
            if fits and 2 * shared >= length and count * shared > (count - 1) * prefix:
                groups[-1] = PrefixGroup(shared, (*members, request))
                continue
        groups.append(PrefixGroup(length - 1, (request,)))
    return groups


def plan_batches(requests: Sequence[GenerationRequest], *, max_tokens: int, max_rows: int) -> list[list[PrefixGroup]]:
    """Form batches of prefix groups of similar shape. Rows x (longest prefix + longest suffix) stays within
    ``max_tokens``.

    Groups are sorted by size of suffix, then by length of prefix, since both are padded to the longest of the batch.
    """
    groups = share_prefixes(requests, max_tokens=max_tokens, max_rows=max_rows)
    groups.sort(key=lambda group: (group.suffix_length.bit_length(), group.prefix_length))
    batches: list[list[PrefixGroup]] = []
    rows = prefix = suffix = 0
    for group in groups:
        rows += len(group.requests)
        prefix, suffix = max(prefix, group.prefix_length), max(suffix, group.suffix_length)
        if batches and rows <= max_rows and rows * (prefix + suffix) <= max_tokens:
            batches[-1].append(group)
        else:
            batches.append([group])
            rows, prefix, suffix = len(group.requests), group.prefix_length, group.suffix_length
    return batches


def plan_whole(
    requests: Iterable[GenerationRequest], *, max_tokens: int, max_rows: int, alike: bool
) -> list[list[GenerationRequest]]:
    """Form batches of prompts of similar length, each computed whole. Rows x longest prompt stays within
    ``max_tokens``, and with ``alike`` all prompts of a batch have one length."""
    batches: list[list[GenerationRequest]] = []
    for request in sorted(requests, key=lambda request: (len(request.prompt_ids), request.prompt_ids, request.id)):
        length = len(request.prompt_ids)
        rows = len(batches[-1]) + 1 if batches else 0
        fits = 0 < rows <= max_rows and rows * length <= max_tokens
        if fits and (not alike or len(batches[-1][-1].prompt_ids) == length):
            batches[-1].append(request)
        else:
            batches.append([request])
    return batches
