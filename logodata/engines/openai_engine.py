"""Generation with OpenAI-compatible servers: ``/v1/completions`` with token ids as the prompt, and token ids back.

Tried with vLLM. A server that returns text only is refused: tokenising its text again need not give the tokens it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

import httpx

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import check_requests, finish, request_seed

_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_WAIT_S = 600.0  # a server that wants more is asked again all the same


class OpenAIEngine:
    """An engine over running servers, all of which serve the same model.

    RoPE is decided when a server starts; no request can change it, and no answer tells. For an adapter that was trained
    with a scaled one, start vLLM with ``--hf-overrides`` and the ``rope_parameters`` and ``max_position_embeddings`` of
    the adapter's ``base_config.json``, or serve the merged model (``logotrain merge``).

    Args:
        base_urls: such as ``http://127.0.0.1:8000/v1``; the ``/v1`` may be missing.
        model: the model's name on the servers.
        needs_adapter: require that the name stands for an adapter, not for its base model.
        api_key: sent as bearer token, never printed.
        max_model_len: tokens of prompt and response; by default what the servers say, else no limit of ours.
        concurrency: requests in flight per server.
        timeout_s: seconds to wait for one answer.
        max_retries: tries after the first one on 429, 5xx, lost connections and answers cut short.
        first_wait_s: seconds before the first retry; each wait is twice the one before, less a random part.

    Raises:
        UserError: a server cannot be reached or does not serve ``model``.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        *,
        needs_adapter: bool = False,
        api_key: str | None = None,
        max_model_len: int | None = None,
        concurrency: int = 32,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        first_wait_s: float = 1.0,
    ) -> None:
        self._urls = [url.rstrip("/").removesuffix("/v1") + "/v1" for url in base_urls]
        self._model, self._needs_adapter, self._api_key = model, needs_adapter, api_key
        self._concurrency, self._timeout_s = concurrency, timeout_s
        self._max_retries, self._first_wait_s = max_retries, first_wait_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        served = [self._find_model(url) for url in self._urls]
        windows = [card.get("max_model_len") for card in served]
        self._window = min((int(window) for window in (*windows, max_model_len) if window), default=None)
        self.name = f"openai ({self._server_version(served[0])})"

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Send requests, so many at a time, and yield results as they come.

        The event loop runs in a thread of its own: answers are read on time, whatever the caller does between them.

        Raises:
            UserError: see :func:`logodata.engines.batching.check_requests`, raised before anything is sent; or a server
                refuses a request, fails for good, or returns no token ids.
        """
        check_requests(requests, self._window)
        inbox: queue.SimpleQueue[GenerationResult | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._complete_all(requests, inbox))

        def work() -> None:
            try:
                loop.run_until_complete(task)
                inbox.put(None)
            except BaseExceptionGroup as errors:  # of the workers; the first to fail cancelled the others
                inbox.put(errors.exceptions[0])
            except BaseException as error:
                inbox.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=work, name="openai-engine", daemon=True)
        thread.start()
        try:
            while (item := inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # The caller stopped early, or was interrupted: drop what is in flight.
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _complete_all(self, requests: Sequence[GenerationRequest], inbox: queue.SimpleQueue[Any]) -> None:
        num_workers = self._concurrency * len(self._urls)
        work = iter(_spread(requests, len(self._urls)))
        limits = httpx.Limits(max_connections=num_workers, max_keepalive_connections=num_workers)
        timeout = httpx.Timeout(self._timeout_s, connect=min(self._timeout_s, 30.0), pool=None)
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits) as client:

            async def worker() -> None:
                for server, request in work:
                    inbox.put(await self._complete(client, server, request))

            async with asyncio.TaskGroup() as group:
                for _ in range(min(num_workers, len(requests))):
                    group.create_task(worker())

    async def _complete(self, client: httpx.AsyncClient, server: int, request: GenerationRequest) -> GenerationResult:
        """One request, with retries; each try goes to the next server."""
        body = self._body(request)
        fault, url = "", ""
        for attempt in range(self._max_retries + 1):
            url = self._urls[(server + attempt) % len(self._urls)]
            asked_wait_s = 0.0
            try:
                response = await client.post(f"{url}/completions", json=body)
            except httpx.TransportError as error:
                fault = f"{type(error).__name__} {error}"
            else:
                if response.status_code == 200:
                    try:
                        return self._read(response.json(), request, url)
                    except ValueError:
                        fault = f"the answer is not JSON: {self._excerpt(response)}"
                elif response.status_code == 429 or response.status_code >= 500:
                    fault = f"HTTP {response.status_code}: {self._excerpt(response)}"
                    asked_wait_s = _retry_after_s(response)
                else:
                    raise UserError(
                        f"HTTP {response.status_code}: {self._excerpt(response)}",
                        where=f"{url}, request {request.id!r}",
                        mend="the server refuses this request; its log says more",
                    )
            if attempt < self._max_retries:
                backoff_s = self._first_wait_s * 2**attempt * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(min(backoff_s, _LONGEST_WAIT_S), asked_wait_s))
        raise UserError(
            f"failed {self._max_retries + 1} times, at last: {fault}",
            where=f"{url}, request {request.id!r}",
            mend="check the server, then run the same command again to continue",
        )

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        return {
            "model": self._model,
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            **({"min_tokens": sampling.min_new_tokens} if sampling.min_new_tokens else {}),
            "temperature": sampling.temperature,
            "top_p": 1.0 if greedy else sampling.top_p,
            "seed": request_seed(request),
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,  # the stop ids are the whole truth
            "return_token_ids": True,
            # vLLM fills what is left out from the model's generation config, which may hold penalties.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _read(self, answer: Any, request: GenerationRequest, url: str) -> GenerationResult:
        try:
            choice = answer["choices"][0]
            token_ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise UserError(
                "the answer holds no choice",
                where=f"{url}, request {request.id!r}",
                mend="is this an OpenAI-compatible server?",
            ) from error
        if not isinstance(token_ids, list):
            raise UserError(
                "the server returns no token ids, and tokenising its text again would be a guess",
                where=url,
                mend="use a server that knows return_token_ids, such as vLLM 0.10 or newer",
            )
        return finish(request, token_ids, reason, where=url)

    def _find_model(self, url: str) -> dict[str, Any]:
        """The entry of ``/v1/models`` for our model."""
        answer = self._get(f"{url}/models")
        try:
            cards = {str(card["id"]): dict(card) for card in answer["data"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "the answer is not a list of models", where=f"{url}/models", mend="is this an OpenAI-compatible server?"
            ) from error
        if self._model not in cards:
            raise UserError(
                f"serves {', '.join(cards) or 'nothing'}, not {self._model}",
                where=url,
                mend="start it with this model, or set engine.served_model to its name there",
            )
        card = cards[self._model]
        if self._needs_adapter and not card.get("parent"):
            raise UserError(
                f"{self._model} is a base model there, not an adapter",
                where=url,
                mend="name the adapter in engine.served_model",
            )
        return card

    def _get(self, url: str) -> Any:
        try:
            response = httpx.get(url, headers=self._headers, timeout=min(self._timeout_s, 30.0))
        except httpx.TransportError as error:
            raise UserError(
                f"cannot reach the server: {type(error).__name__} {error}",
                where=url,
                mend="start it, or mend engine.base_urls",
            ) from error
        if response.status_code != 200:
            raise UserError(
                f"HTTP {response.status_code}: {self._excerpt(response)}",
                where=url,
                mend="check engine.base_urls and engine.api_key_env",
            )
        try:
            return response.json()
        except ValueError as error:
            raise UserError(
                f"the answer is not JSON: {self._excerpt(response)}", where=url, mend="check engine.base_urls"
            ) from error

    def _server_version(self, card: dict[str, Any]) -> str:
        """``vllm 0.32.0``, where the server tells; goes into manifests only."""
        owner = str(card.get("owned_by") or "unknown server")
        if owner != "vllm":
            return owner
        version = self._get(self._urls[0].removesuffix("/v1") + "/version")
        return f"vllm {version.get('version', 'of unknown version')}"

    def _excerpt(self, response: httpx.Response) -> str:
        """The first line of an answer's body, without our key (some servers repeat it)."""
        line = next((line for line in response.text.splitlines() if line.strip()), "empty answer")[:300]
        return line.replace(self._api_key, "***") if self._api_key else line


def _spread(requests: Sequence[GenerationRequest], num_servers: int) -> list[tuple[int, GenerationRequest]]:
    """Each server gets one stretch of the prompts sorted by their tokens; the stretches take turns.

    So all servers work, and prompts with a common beginning meet in one server's prefix cache.
    """
    ordered = sorted(requests, key=lambda request: request.prompt_ids)
    bounds = [len(ordered) * server // num_servers for server in range(num_servers + 1)]
    stretches = [ordered[start:end] for start, end in pairwise(bounds)]
    longest = max(len(stretch) for stretch in stretches)
    return [
        (server, stretch[turn])
        for turn in range(longest)
        for server, stretch in enumerate(stretches)
        if turn < len(stretch)
    ]


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that ``Retry-After`` asks for, a number or a date (RFC 9110 section 10.2.3); 0 if it asks for none."""
    value = response.headers.get("Retry-After", "")
    if value.replace(".", "", 1).isdigit():
        wait_s = float(value)
    else:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(wait_s, 0.0), _LONGEST_ASKED_WAIT_S)
