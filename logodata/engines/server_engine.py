"""Ask running servers, several requests at a time: what engines over servers have in common.

An engine says how a request is sent and how its answer is read. :mod:`logodata.engines.server_answers` decides which
faults are retried, :mod:`logodata.engines.server_retries` which server gets a request, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.batching import check_requests
from logodata.engines.server_answers import HEADERS, Body, Fault, Reader, Response
from logodata.engines.server_retries import RateLimit, Schedule, Server, note_down

if TYPE_CHECKING:
    from logodata.engines.settings import EngineSettings

_CHECK_S = 30.0  # a server that takes longer to connect, or to list its models, counts as down


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return one context for all clients: reading the certificates takes longer than a short answer."""
    return httpx.create_ssl_context()


async def send(
    client: httpx.AsyncClient, method: str, url: str, content: dict[str, Any] | None = None
) -> httpx.Response:
    """Send a request and read the answer. Redirections are answers too, so that the key goes to no other server."""
    async with client.stream(method, url, json=content, follow_redirects=False) as response:
        body = Body(response)
        async for part in response.aiter_raw():
            body.add(part)
    return body.whole()


@dataclass(slots=True)
class _Call:
    """The state of one call of :meth:`OpenAIEngine.generate`."""

    schedule: Schedule
    num_workers: int
    """The number of workers per server."""
    inbox: queue.SimpleQueue[GenerationResult | BaseException | None] = field(default_factory=queue.SimpleQueue)
    """What the event loop's thread hands over: results, then None or the exception that ended it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Make idle workers look at the schedule again."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait(self, wait_s: float) -> None:
        """Sleep for ``wait_s`` seconds, or until woken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(wait_s) else wait_s):
                await self.changed.wait()


class ServerEngine(ABC):
    """An engine over running servers that all serve the same model. Only one call of :meth:`generate` may run at a
    time.

    Args:
        settings: The servers, and how they are asked. The servers' own limits hold as well.
        api_key: The key, sent as bearer token and never printed.
        first_wait_s: Seconds before the first retry. Each wait is twice the one before, less a random part.

    Raises:
        UserError: No server can be reached, or one that can be reached refuses.
    """

    _window: int | None = None
    """The most tokens of a prompt with its response, where it is known."""
    _vocabulary: int | None = None

    def __init__(self, settings: EngineSettings, *, api_key: str | None, first_wait_s: float) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
            raise UserError("the API key holds white space, or characters that no header can carry", mend="set it anew")
        self._servers = [
            Server(
                self._base(url.rstrip("/")),
                RateLimit(settings.requests_per_minute) if settings.requests_per_minute else None,
                RateLimit(settings.tokens_per_minute) if settings.tokens_per_minute else None,
            )
            for url in settings.base_urls
        ]
        self._settings, self._reader, self._first_wait_s = settings, Reader(api_key), first_wait_s
        self._check_s = min(settings.timeout_s, _CHECK_S)
        self._headers = {**HEADERS, **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
        answers = [self._first_look(server) for server in self._servers]
        self._cards = [answer for answer in answers if not isinstance(answer, Fault)]
        """What the servers that answer say of the model."""
        if not self._cards:
            mend = "start it, or mend engine.base_urls"
            raise UserError("; ".join(f"{server.url}: {server.fault}" for server in self._servers), mend=mend)
        for server in self._servers:
            if not server.is_checked:
                note_down(server)

    @property
    def window(self) -> int | None:
        """The most tokens of a prompt with its response; None where it is not known."""
        return self._window

    def _base(self, url: str) -> str:
        """Return the address that paths are put behind."""
        return url.removesuffix("/v1") + "/v1"

    @abstractmethod
    def _body(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        """Return the path below the server's address that a request goes to, and what is sent there."""

    @abstractmethod
    def _result(self, answer: Any, request: GenerationRequest, url: str) -> GenerationResult:
        """Return the result in a server's answer.

        Raises:
            Fault: Another try may help.
            UserError: The answer does not answer this request.
        """

    @abstractmethod
    def _read_card(self, response: httpx.Response, url: str) -> dict[str, Any]:
        """Return what a server says of the model, at ``/v1/models``.

        Raises:
            Fault: Another try may help.
            UserError: The server does not serve the model.
        """

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Send requests, several at a time, and yield results as they arrive.

        The event loop runs in a thread of its own, so answers are read on time whatever the caller does between them.

        Raises:
            UserError: See :func:`logodata.engines.batching.check_requests`, raised before anything is sent. Or a server
                refuses a request or gives a wrong answer, or the tries are used up; results that came before are
                yielded first.
        """
        check_requests(requests, self._window, self._vocabulary)
        limit = self._settings.tokens_per_minute
        for request in requests:
            if limit and request.max_total_tokens > limit:
                what = f"{request.max_total_tokens} tokens exceed tokens_per_minute {limit}"
                raise UserError(what, where=f"request {request.id!r}", mend="shorten the context or max_new_tokens")
        retries = self._settings.max_retries
        call = _Call(
            Schedule(requests, self._servers, max_retries=retries, first_wait_s=self._first_wait_s),
            num_workers=min(self._settings.concurrency, len(requests)),
        )
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._answer_all(call))

        def work() -> None:
            try:
                loop.run_until_complete(task)
                call.inbox.put(None)
            except BaseExceptionGroup as errors:  # of the workers; the first to fail cancelled the others
                call.inbox.put(errors.exceptions[0])
            except BaseException as error:
                call.inbox.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=work, name="server-engine", daemon=True)
        thread.start()
        try:
            while (item := call.inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # The caller stopped early, or was interrupted: drop what is in flight.
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _answer_all(self, call: _Call) -> None:
        async with contextlib.AsyncExitStack() as stack:
            # One client per server: the time that a client takes for a request grows with its connections.
            clients = [
                await stack.enter_async_context(self._new_client(server.url, call.num_workers))
                for server in self._servers
            ]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for _ in range(call.num_workers):
                for client, server in zip(clients, self._servers, strict=True):
                    group.create_task(self._work(client, call, server))

    def _new_client(self, url: str, num_connections: int, /) -> Any:
        """Return the client for one server, which :meth:`_post` and :meth:`_check` get."""
        limits = httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
        # The whole answer has a time limit (see _ask); httpx only limits the time between two packets.
        timeout = httpx.Timeout(None, connect=self._check_s)
        return httpx.AsyncClient(
            base_url=url, headers=self._headers, timeout=timeout, limits=limits, verify=_ssl_context()
        )

    async def _work(self, client: Any, call: _Call, server: Server) -> None:
        """Keep one of the server's requests in flight, over and over."""
        while (step := call.schedule.next(server, time.monotonic())) is not None:
            if isinstance(step, float):
                await call.wait(step)
                continue
            request = None if step == "check" else step
            generation = server.generation
            try:
                if request is None:
                    await self._check(client, server.url)
                else:
                    call.inbox.put(await self._ask(client, server.url, request))
            except Fault as fault:
                call.schedule.failed(server, request, fault, generation, time.monotonic())
                call.wake()
            else:
                if call.schedule.answered(server, request):
                    call.wake()

    async def _ask(self, client: Any, url: str, request: GenerationRequest) -> GenerationResult:
        """Send a request once. What is wrong with the answer is a Fault or a UserError."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await self._post(client, url, request)
        except TimeoutError as error:
            raise Fault(f"no answer within {self._settings.timeout_s:g} s") from error
        return self._finish(response, request, url)

    def _finish(self, response: Response, request: GenerationRequest, url: str) -> GenerationResult:
        answer = self._reader.json(response, where=f"{url}, request {request.id!r}", mend=self._mend(response))
        return self._result(answer, request, url)

    async def _post(self, client: Any, url: str, request: GenerationRequest, /) -> Response:
        """Send a request, and return the answer whatever its status.

        Raises:
            Fault: No whole answer came.
        """
        path, body = self._body(request)
        try:
            return await send(client, "POST", f"{url}/{path}", body)
        except httpx.RequestError as error:
            raise self._reader.transport_fault(error) from error

    def _mend(self, _: Response) -> str:
        """Return what to do where a server refuses a request."""
        return "the server refuses this request; its log says more"

    async def _check(self, client: Any, url: str) -> None:
        """Check that a server that was down serves the model. If not, it stays down, because others may be at work."""
        try:
            async with asyncio.timeout(self._check_s):
                card = self._read_card(await send(client, "GET", f"{url}/models"), url)
        except TimeoutError as error:
            raise Fault(f"no answer within {self._check_s:g} s", of_server=True) from error
        except httpx.RequestError as error:
            raise self._reader.transport_fault(error) from error
        except UserError as error:
            raise Fault(error.what, of_server=True) from error
        window = card.get("max_model_len")
        if window and self._window and window < self._window:
            raise Fault(f"its window of {window} tokens is smaller than the others' {self._window}", of_server=True)

    def _first_look(self, server: Server) -> dict[str, Any] | Fault:
        """Return what a server says of the model at the start, or the fault that it has."""
        try:
            return self._read_card(self._get(f"{server.url}/models"), server.url)
        except httpx.RequestError as error:
            fault = self._reader.transport_fault(error)
        except Fault as error:
            fault = error
        server.is_checked, server.rests, server.faults, server.fault = False, 1, 1, fault.text
        server.resume_at = time.monotonic() + max(self._first_wait_s, fault.asked_wait_s)
        return fault

    def _get(self, url: str) -> httpx.Response:
        with httpx.stream("GET", url, headers=self._headers, timeout=self._check_s, verify=_ssl_context()) as response:
            body, end = Body(response), time.monotonic() + self._check_s
            for part in response.iter_raw():
                body.add(part)
                if time.monotonic() > end:  # httpx only limits the time between two packets
                    raise httpx.ReadTimeout(f"no answer within {self._check_s:g} s")
        return body.whole()
