"""Decide which server answers which request, and when. This module sends nothing, and gets the time as an argument.

Each server begins with one stretch of the prompts sorted by their tokens, so that prompts with a common beginning meet
in one server's prefix cache. A server that has nothing left takes from the far end of the longest stretch left.

After a fault its request waits, twice as long each time. After a fault of the server itself, or the third fault in a
row from one server, the server rests, twice as long each time. Then it is asked whether it still serves the model, and
for one response; if that comes, it gets as many requests as before. The work ends when a request has used up its tries,
or when a fault occurs after every server has rested as often as a request may be tried again. One server that works is
enough to continue.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Literal

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.engines import GenerationRequest
from logodata.engines.batching import cache_order
from logodata.engines.server_answers import Fault

_FAULTS_IN_A_ROW = 3
_LONGEST_WAIT_S = 60.0
_ASK_AGAIN = "check the server, then run the same command again to continue"


@dataclass(eq=False, slots=True)
class Server:
    """The state of one server, kept from one call of the engine to the next."""

    url: str
    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    is_checked: bool = True
    """It said that it serves the model, and has not rested since for a fault of its own."""
    faults: int = 0
    """The number of faults in a row, since its last answer."""
    rests: int = 0
    """The number of rests in a row, since its last answer. While there are any, requests are sent one at a time."""
    generation: int = 0
    """The number of all rests. A fault of a request that was sent before the last rest says nothing new."""
    resume_at: float = -math.inf
    fault: str = ""
    """The text of its last fault."""
    is_noted: bool = False
    is_limit_noted: bool = False
    is_trying: bool = False
    """The check, or the one request of a rested server, is in flight. So may be requests that were sent before the
    rest."""
    stretch: deque[GenerationRequest] = field(default_factory=deque)

    def rate_wait_s(self, request: GenerationRequest, now: float) -> float:
        """Return the seconds until the rate limits let this request go."""
        return max((limit.wait_s(cost, now) for limit, cost in self._limits(request)), default=0.0)

    def count(self, request: GenerationRequest, now: float) -> None:
        """Count a request that is sent towards the rate limits."""
        for limit, cost in self._limits(request):
            limit.take(cost, now)

    def _limits(self, request: GenerationRequest) -> list[tuple[RateLimit, int]]:
        both = ((self.requests, 1), (self.tokens, request.max_total_tokens))
        return [(limit, cost) for limit, cost in both if limit]


class Schedule:
    """Deals the requests of one call out to servers, whose stretches it fills and whose faults they keep.

    Args:
        requests: The requests to answer.
        servers: The servers that may answer.
        max_retries: Tries after the first one.
        first_wait_s: Seconds of the first wait. Each wait is twice the one before, less a random part.
    """

    def __init__(
        self, requests: Sequence[GenerationRequest], servers: Sequence[Server], *, max_retries: int, first_wait_s: float
    ) -> None:
        self._servers, self._max_retries, self._first_wait_s = servers, max_retries, first_wait_s
        self._unanswered = len(requests)
        self._tries: Counter[str] = Counter()
        self._later: list[tuple[float, int, GenerationRequest]] = []
        self._number = count()
        ordered = cache_order(requests)
        bounds = [len(ordered) * place // len(servers) for place in range(len(servers) + 1)]
        for server, (start, end) in zip(servers, pairwise(bounds), strict=True):
            server.stretch = deque(ordered[start:end])
            server.is_trying = False
            # A new call asks each server at least once more before it gives up.
            server.rests = min(server.rests, max_retries)

    def next(self, server: Server, now: float) -> GenerationRequest | Literal["check"] | float | None:
        """Return what the server should get now: a request, a check whether it serves the model, a wait in seconds
        (unless something happens before), or None if nothing is left. What is returned counts as sent."""
        if not self._unanswered:
            return None
        if server.is_trying:
            return math.inf
        if now < server.resume_at:
            return server.resume_at - now
        if not server.is_checked:
            server.is_trying = True
            return "check"
        longest = max(self._servers, key=lambda other: len(other.stretch)).stretch
        take: Callable[[], object]
        if self._later and self._later[0][0] <= now:
            request, take = self._later[0][2], lambda: heapq.heappop(self._later)
        elif server.stretch:
            request, take = server.stretch[0], server.stretch.popleft
        elif longest:
            request, take = longest[-1], longest.pop
        else:
            return self._later[0][0] - now if self._later else math.inf
        if wait_s := server.rate_wait_s(request, now):
            return wait_s
        take()
        server.count(request, now)
        server.is_trying = server.rests > 0
        return request

    def answered(self, server: Server, request: GenerationRequest | None) -> bool:
        """Record that a request was answered (None: the check). Return True if waiting workers should look again."""
        server.is_trying = False
        if request is None:
            server.is_checked = True
            return True
        self._unanswered -= 1
        was_resting = server.rests > 0
        server.is_checked, server.faults, server.rests = True, 0, 0
        if server.is_noted:
            server.is_noted = False
            note(f"{server.url} answers again")
        return was_resting or not self._unanswered

    def failed(
        self, server: Server, request: GenerationRequest | None, fault: Fault, generation: int, now: float
    ) -> None:
        """Record that a request (None: the check) met a fault. It was sent when the server had ``generation`` rests
        behind it.

        Raises:
            UserError: The request used up its tries, or no server is left to ask.
        """
        server.faults += 1
        server.fault = fault.text
        server.resume_at = max(server.resume_at, now + fault.asked_wait_s)
        if request is not None:
            self._put_back(server, request, fault, now)
        if generation == server.generation:
            server.is_trying = False
            if fault.of_server or server.rests or server.faults >= _FAULTS_IN_A_ROW:
                self._rest(server, fault, now)

    def _put_back(self, server: Server, request: GenerationRequest, fault: Fault, now: float) -> None:
        wait_s = 0.0
        if not fault.of_server and not server.rests:
            self._tries[request.id] += 1
            tries = self._tries[request.id]
            if tries > self._max_retries:
                what = f"failed {tries} times, at last: {fault.text}"
                raise UserError(what, where=f"{server.url}, request {request.id!r}", mend=_ASK_AGAIN)
            wait_s = self._backoff_s(tries)
        heapq.heappush(self._later, (now + wait_s, next(self._number), request))

    def _rest(self, server: Server, fault: Fault, now: float) -> None:
        server.rests += 1
        server.generation += 1
        server.resume_at = max(server.resume_at, now + self._backoff_s(server.rests))
        if not fault.is_rate_limit:
            server.is_checked = False
        if all(other.rests > self._max_retries for other in self._servers):
            said = (f"{other.url}: failed {other.faults} times, at last: {other.fault}" for other in self._servers)
            raise UserError("; ".join(said), mend=_ASK_AGAIN)
        if fault.is_rate_limit and not server.is_limit_noted:
            server.is_limit_noted = True
            limits = "engine.requests_per_minute and engine.tokens_per_minute"
            note(f"{server.url}: {fault.text}; it gets fewer requests for a while ({limits} keep to its limits)")
        # One rest may be a short failure. With a single server nobody else can continue, and the error will say it.
        if server.rests > 1 and not fault.is_rate_limit and len(self._servers) > 1:
            note_down(server)

    def _backoff_s(self, nth: int) -> float:
        return min(self._first_wait_s * 2.0 ** min(nth - 1, 30) * random.uniform(0.5, 1.0), _LONGEST_WAIT_S)


def note_down(server: Server) -> None:
    """Print a note, once, that a server is down."""
    if not server.is_noted:
        server.is_noted = True
        note(f"{server.url}: {server.fault}; the other servers go on without it, and it is asked again")


_CLOSE_S = 1e-6  # rounding must not cause another wait


class RateLimit:
    """A token bucket. It holds one second's worth of units, or one unit if that is more, and begins full.

    A cost larger than the bucket may be taken when the bucket is full, and is paid back before the next. So no minute
    sees more than the limit plus the larger of a bucket and one request.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_minute / 60
        self._capacity = max(self._per_s, 1.0)
        self._level, self._as_of = self._capacity, 0.0

    def wait_s(self, cost: float, now: float) -> float:
        """Return the seconds from ``now`` until ``cost`` units may be taken; 0 means at once."""
        wait_s = (min(cost, self._capacity) - self._level_at(now)) / self._per_s
        return wait_s if wait_s > _CLOSE_S else 0.0

    def take(self, cost: float, now: float) -> None:
        """Take ``cost`` units."""
        self._level, self._as_of = self._level_at(now) - cost, now

    def _level_at(self, now: float) -> float:
        return min(self._capacity, self._level + (now - self._as_of) * self._per_s)
