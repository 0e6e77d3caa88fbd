"""A proxy on the loopback, between a client and an OpenAI-compatible server, that spoils answers on a schedule.

It counts what it passed on, what came back and what reached the client whole, and keeps the time that its faults cost
any client, so that a client can be held to both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

_T = TypeVar("_T")
Interval = tuple[float, float]

PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
ERROR = b'{"error": {"message": "try later"}}'
STATUSES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "429": (429, {}, ERROR),
    "429 with Retry-After": (429, {"Retry-After": ""}, ERROR),
    "500": (500, {}, ERROR),
    "503": (503, {}, ERROR),
    "HTML with 502": (502, {"Content-Type": "text/html"}, PAGE),
    "HTML with 200": (200, {"Content-Type": "text/html"}, PAGE),
}
"""The proxy's own answers: status, headers, body."""
UNASKED = (*STATUSES, "reset", "hang up", "silence")
"""The request is not passed on. ``silence``: no answer until the client gives up."""
IN_VAIN = ("reset after the work", "reset halfway", "half the body", "half the JSON")
"""The server answers, and its answer does not arrive whole."""
SLOW = ("late", "drop by drop")
"""The answer comes whole, up to two seconds late or over half a second."""
KINDS = (*UNASKED, *IN_VAIN, *SLOW)


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens when, by the number of requests (POST, from 1) that the proxy has seen."""

    faults: Mapping[int, str] = field(default_factory=dict)
    """Of that request alone, one of :data:`KINDS`."""
    storms: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    """From that request on, every one meets this fault for so many seconds, questions for the model, too."""
    events: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    """Called in a thread of its own."""


def draw_faults(seed: int, count: int, share: float) -> dict[int, str]:
    """Faults for ``share`` of the first ``count`` requests: all kinds alike, but ``silence`` a tenth as often."""
    rng = random.Random(seed)
    weights = [0.1 if kind == "silence" else 1.0 for kind in KINDS]
    return {n: rng.choices(KINDS, weights)[0] for n in range(1, count + 1) if rng.random() < share}


@dataclass(slots=True)
class Counts:
    """What the proxy saw. A request is told by its whole body: tried again, it is the same."""

    faults: Counter[str] = field(default_factory=Counter)
    """Requests that met each kind."""
    passed_on: int = 0
    came_back: int = 0
    """Answers of status 200 that the server gave."""
    cut_off: int = 0
    """Requests that the server was working at when it, or the proxy, went down."""
    given_up: int = 0
    """Requests that the client waited for no longer."""
    delivered: Counter[str] = field(default_factory=Counter)
    """Whole answers that went to the client, by the request's hash."""
    outages: list[Interval] = field(default_factory=list)
    """When nobody could have had an answer, or everybody was asked to wait (``time.monotonic``)."""
    delays: list[Interval] = field(default_factory=list)
    """When one request waited for an answer that was held back."""


class FaultProxy:
    """See the module. It runs in a thread of its own until :meth:`close`.

    Args:
        upstream: the server's address, without ``/v1``.
        delay_s: the longest delay of an answer that is late.
        asked_s: seconds in ``Retry-After``.
    """

    def __init__(self, upstream: str, *, delay_s: float = 2.0, asked_s: float = 1.0) -> None:
        self.upstream, self._delay_s, self._asked_s = upstream, delay_s, asked_s
        self.plan, self.counts = Plan(), Counts()
        self.events_failed: list[BaseException] = []
        self._seen, self._in_flight, self._storm = 0, 0, ("", 0.0)
        self._rng = random.Random(0)
        self._connections: set[asyncio.StreamWriter] = set()
        self._events: list[threading.Thread] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self._run(self._open())

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def in_flight(self) -> int:
        """Requests that the server works at."""
        return self._in_flight

    def start(self, plan: Plan) -> None:
        """Begin a plan, and count anew."""
        self.plan, self.counts, self._seen = plan, Counts(), 0
        self._rng.seed(0)

    def hold(self) -> None:
        """Let no request through any more, and wait until the server works at none."""
        self._run(self._hold())

    def release(self) -> None:
        """Let requests through again."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def go_down(self) -> None:
        """Refuse connections, and reset those there are."""
        self._run(self._go_down())

    def come_up(self) -> None:
        """Accept connections again, at the same port."""
        self._run(self._listen())

    def join_events(self) -> None:
        """Wait until the plan's events are over. Raises what one of them raised."""
        for thread in self._events:
            thread.join()
        self._events.clear()
        if self.events_failed:
            raise self.events_failed.pop()

    def close(self) -> None:
        """End it."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._gate = asyncio.Event()
        self._gate.set()
        self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
        await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=128)
        self.port = self._listener.sockets[0].getsockname()[1]
        self._is_down = False

    async def _hold(self) -> None:
        self._gate.clear()
        while self._in_flight:
            await asyncio.sleep(0.01)

    async def _go_down(self) -> None:
        self._is_down = True
        self._listener.close()
        for writer in list(self._connections):
            _reset(writer)

    async def _close(self) -> None:
        await self._go_down()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._exchange(reader, writer, method, path, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away, or was sent away
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
    ) -> None:
        fault = self._fault_of(method)
        began = time.monotonic()
        if fault == "late":
            await asyncio.sleep(self._rng.uniform(0, self._delay_s))
            self.counts.delays.append((began, time.monotonic()))
        if fault in UNASKED:
            await self._spoil(reader, writer, fault)
            return
        await self._gate.wait()
        answer = await self._ask(reader, method, path, body)
        if answer is None:
            _reset(writer)
        elif fault in IN_VAIN:
            await _send_half(writer, answer, fault)
        else:
            began = time.monotonic()
            await _send(writer, answer.status_code, answer.headers, answer.content, drops=fault == "drop by drop")
            if fault == "drop by drop":
                self.counts.delays.append((began, time.monotonic()))
            if method == "POST" and answer.status_code == 200:
                self.counts.delivered[hashlib.sha256(body).hexdigest()] += 1

    def _fault_of(self, method: str) -> str:
        now = time.monotonic()
        if method == "POST":
            self._seen += 1
            if self._seen in self.plan.storms:
                kind, seconds = self.plan.storms[self._seen]
                self._storm = (kind, now + seconds)
                self.counts.outages.append((now, now + seconds))
            if self._seen in self.plan.events:
                self._begin_event(self.plan.events[self._seen])
        kind, until = self._storm
        if now >= until:
            kind = self.plan.faults.get(self._seen, "") if method == "POST" else ""
        if kind:
            self.counts.faults[kind] += 1
        return kind

    def _begin_event(self, event: Callable[[], None]) -> None:
        def work() -> None:
            try:
                event()
            except BaseException as error:
                self.events_failed.append(error)

        self._events.append(threading.Thread(target=work, name="fault-event", daemon=True))
        self._events[-1].start()

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
        began = time.monotonic()
        if fault in STATUSES:
            status, headers, body = STATUSES[fault]
            if "Retry-After" in headers:
                headers = {"Retry-After": f"{self._asked_s:g}"}
                self.counts.outages.append((began, began + self._asked_s))
            await _send(writer, status, headers, body)
        elif fault == "reset":
            _reset(writer)
        elif fault == "silence":
            await reader.read(1)
            self.counts.delays.append((began, time.monotonic()))
            writer.close()
        else:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, method: str, path: str, body: bytes) -> httpx.Response | None:
        """The server's answer; None if there is none, or the client left meanwhile."""
        self._in_flight += 1
        self.counts.passed_on += method == "POST"
        headers = {"Content-Type": "application/json"} if body else {}
        asking = asyncio.ensure_future(
            self._client.request(method, f"{self.upstream}{path}", content=body, headers=headers)
        )
        leaving = asyncio.ensure_future(reader.read(1))  # it sends nothing before it has its answer
        try:
            await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                self._count_unanswered(method, by_client=not self._is_down)
                return None
            answer = asking.result()
            self.counts.came_back += method == "POST" and answer.status_code == 200
            return answer
        except httpx.TransportError:
            self._count_unanswered(method, by_client=False)
            return None
        finally:
            self._in_flight -= 1
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    def _count_unanswered(self, method: str, *, by_client: bool) -> None:
        if method == "POST" and by_client:
            self.counts.given_up += 1
        elif method == "POST":
            self.counts.cut_off += 1


async def _send(
    writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes, *, drops: bool = False
) -> None:
    _send_head(writer, status, headers, len(body))
    size = len(body) // 10 + 1 if drops else len(body) + 1
    for start in range(0, len(body), size):
        writer.write(body[start : start + size])
        await asyncio.sleep(0.05 if drops else 0)
    await writer.drain()


def _send_head(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], length: int) -> None:
    kept = (name for name in headers if name.lower() in ("content-type", "retry-after"))
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {headers[name]}" for name in kept)]
    writer.write("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode("latin-1"))


async def _send_half(writer: asyncio.StreamWriter, answer: httpx.Response, fault: str) -> None:
    if fault == "reset after the work":
        _reset(writer)
        return
    half = answer.content[: len(answer.content) // 2]
    whole_length = len(half) if fault == "half the JSON" else len(answer.content)
    _send_head(writer, answer.status_code, answer.headers, whole_length)
    writer.write(half)
    await writer.drain()
    if fault == "reset halfway":
        await asyncio.sleep(0.02)  # a reset takes back what was not read yet
        _reset(writer)
    elif fault == "half the body":
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with RST, not FIN."""
    opened: socket.socket | None = writer.get_extra_info("socket")
    if opened is not None and not writer.is_closing():
        with contextlib.suppress(OSError):  # it is closed already
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, in intervals that do not overlap, ascending."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def seconds(intervals: Iterable[Interval]) -> float:
    """Their lengths, added."""
    return sum(end - start for start, end in intervals)


def outside(interval: Interval, merged: Iterable[Interval]) -> float:
    """Seconds of ``interval`` in none of the intervals of :func:`union`."""
    start, end = interval
    return end - start - sum(max(0.0, min(end, b) - max(start, a)) for a, b in merged)
