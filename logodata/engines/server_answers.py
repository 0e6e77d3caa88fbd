"""Interpret a server's answer as a result, a fault worth another try, or the end.

Worth another try (:class:`Fault`): lost and refused connections, timeouts, answers cut short, 408, 409, 429, 5xx, a
body that is not JSON although the status is 200 (a proxy's page, half an answer), and a response that the server
aborted. The end (:class:`UserError`): any other status, and JSON that is not a valid completion: no choice or several,
no token ids or impossible ones, an end other than the stop token or the requested length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import finish

HEADERS = {"Accept-Encoding": "identity"}
_LONGEST_ASKED_WAIT_S = 600.0  # a server that asks for a longer wait is tried again after this one
MAX_ANSWER_BYTES = 64 * 2**20
"""A longer answer is not read. A million token ids take about ten MiB."""

_IS_IT_ONE = "is this an OpenAI-compatible server?"


@dataclass(eq=False)
class Fault(Exception):
    """Something that another try may mend.

    ``of_server`` means that it says nothing about the request that met it, which therefore loses no try.
    ``is_rate_limit`` means that the server works but asks for fewer requests. ``asked_wait_s`` is the time in seconds
    that the server asks all of us to wait.
    """

    text: str
    of_server: bool = False
    is_rate_limit: bool = False
    asked_wait_s: float = 0.0


class Response(Protocol):
    """What is read of an answer; those of httpx have it, and those of other clients."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def text(self) -> str: ...

    def json(self) -> Any: ...


class Body:
    """The body of an answer while it arrives. It must be uncompressed, as :data:`HEADERS` ask: a few kilobytes could
    stand for gigabytes."""

    def __init__(self, response: httpx.Response) -> None:
        self._response, self._parts, self._size = response, list[bytes](), 0

    def add(self, part: bytes) -> None:
        """Add a part of the body.

        Raises:
            UserError: The body is too long.
        """
        self._parts.append(part)
        self._size += len(part)
        if self._size > MAX_ANSWER_BYTES:
            what = f"an answer of more than {MAX_ANSWER_BYTES // 2**20} MiB"
            raise UserError(what, where=str(self._response.url), mend=_IS_IT_ONE)

    def whole(self) -> httpx.Response:
        """Return the answer, read to its end."""
        kept = [(name, value) for name, value in self._response.headers.raw if name.lower() == b"retry-after"]
        return httpx.Response(self._response.status_code, headers=kept, content=b"".join(self._parts))


class Reader:
    """Reads answers, and keeps our key out of all messages (some servers repeat it)."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def transport_fault(self, error: httpx.RequestError) -> Fault:
        """Return the fault of a request that got no whole answer."""
        is_refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        text = "cannot reach the server" if is_refused else "no whole answer"
        return Fault(f"{text}: {type(error).__name__} {self.shorten(error)}", of_server=is_refused)

    def json(self, response: Response, *, where: str, mend: str) -> Any:
        """Return the body of a good answer.

        Raises:
            Fault: Another try may help.
            UserError: The server refuses.
        """
        status = response.status_code
        said = f"HTTP {status}: {self.shorten(response.text)}"
        if status == 429:
            raise Fault(said, of_server=True, is_rate_limit=True, asked_wait_s=_retry_after_s(response))
        if status in (408, 409) or status >= 500:
            wait_s = _retry_after_s(response)
            raise Fault(said, of_server=wait_s > 0, asked_wait_s=wait_s)
        if status != 200:
            raise UserError(said, where=where, mend=mend)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise Fault(f"the answer is not JSON: {self.shorten(response.text)}") from error

    def completion(self, answer: Any, request: GenerationRequest, url: str) -> GenerationResult:
        """Return the result in an answer of ``/v1/completions``.

        Raises:
            Fault: The server aborted the response.
            UserError: The answer does not answer this request.
        """
        where, max_new_tokens = f"{url}, request {request.id!r}", request.sampling.max_new_tokens
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UserError(f"the answer holds no choice: {self.shorten(answer)}", where=where, mend=_IS_IT_ONE)
        if len(choices) > 1:
            mend = "the server must leave n at 1"
            raise UserError(f"{len(choices)} choices, one was asked for", where=where, mend=mend)
        token_ids, reason = choices[0].get("token_ids"), choices[0].get("finish_reason")
        if reason == "abort":
            raise Fault("the server aborted the response")
        if not isinstance(token_ids, list):
            what = "the server returns no token ids, and tokenising its text again would be a guess"
            mend = "use a server that knows return_token_ids, such as vLLM 0.10 or newer, or engine.kind=chat"
            raise UserError(what, where=where, mend=mend)
        if wrong := [token for token in token_ids if type(token) is not int or token < 0]:
            raise UserError(f"{self.shorten(repr(wrong[0]))} is not a token id", where=where, mend=_IS_IT_ONE)
        if len(token_ids) > max_new_tokens or (reason == "length" and len(token_ids) < max_new_tokens):
            what = f"{len(token_ids)} tokens that end with {reason!r}, where at most {max_new_tokens} were asked for"
            raise UserError(what, where=where, mend="the server must heed max_tokens; it may have a limit of its own")
        return finish(request, token_ids, reason if reason is None else self.shorten(reason), where=url)

    def version(self, card: dict[str, Any], answer: Any) -> str:
        """Return what a server says about itself, in its model card and at ``/version``, such as ``vllm 0.32.0``, for
        manifests."""
        owner = self.shorten(card.get("owned_by") or "unknown server")
        if owner != "vllm":
            return owner
        reported = answer.get("version") if isinstance(answer, dict) else None
        return f"vllm {self.shorten(reported) if reported else 'of unknown version'}"

    def model_card(self, answer: Any, model: str, url: str, *, needs_adapter: bool) -> dict[str, Any]:
        """Return the entry of ``model`` in an answer of ``/v1/models``.

        Raises:
            UserError: There is no such entry, or it is not the adapter that it should be.
        """
        try:
            cards = {str(card["id"]): dict(card) for card in answer["data"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("the answer is not a list of models", where=f"{url}/models", mend=_IS_IT_ONE) from error
        if model not in cards:
            what = f"serves {self.shorten(', '.join(cards)) if cards else 'nothing'}, not {model}"
            mend = "start it with this model, or set engine.served_model to its name there"
            raise UserError(what, where=url, mend=mend)
        window = cards[model].get("max_model_len")
        if window is not None and type(window) is not int:
            raise UserError(f"max_model_len is {self.shorten(repr(window))}", where=f"{url}/models", mend=_IS_IT_ONE)
        if needs_adapter and not cards[model].get("parent"):
            mend = "name the adapter in engine.served_model"
            raise UserError(f"{model} is a base model there, not an adapter", where=url, mend=mend)
        return cards[model]

    def shorten(self, said: Any) -> str:
        """Return the first line of what a server says, printable and without our key."""
        text = str(said).replace(self._api_key, "***") if self._api_key else str(said)
        line = next((line for line in text.splitlines() if line.strip()), "empty answer")[:300]
        return "".join(letter if letter.isprintable() else " " for letter in line)


def _retry_after_s(response: Response) -> float:
    """Return the seconds that ``Retry-After`` asks for, by a number or a date (RFC 9110 section 10.2.3); else 0."""
    value = response.headers.get("Retry-After", "")
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(wait_s, 0.0), _LONGEST_ASKED_WAIT_S) if math.isfinite(wait_s) else 0.0
