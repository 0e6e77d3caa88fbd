"""Rate limits of hosted servers, kept on our side. Pure: the time is an argument.

Requests are paced instead of sent in bursts, since servers count over a minute, a second or both, and do not tell.
"""

from __future__ import annotations

_CLOSE_S = 1e-6  # rounding must not make anybody wait again


class RateLimit:
    """A token bucket. It holds one second's worth, or one unit if that is more, and begins full.

    Something bigger than the bucket may go when the bucket is full, and is paid back before the next. So no minute sees
    more than the limit plus the larger of a bucket and one request.

    Args:
        per_minute: units a minute.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_minute / 60
        self._capacity = max(self._per_s, 1.0)
        self._level, self._as_of = self._capacity, 0.0

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds from ``now`` until ``cost`` units may be taken; 0: at once."""
        wait_s = (min(cost, self._capacity) - self._level_at(now)) / self._per_s
        return wait_s if wait_s > _CLOSE_S else 0.0

    def take(self, cost: float, now: float) -> None:
        """Use ``cost`` units up."""
        self._level, self._as_of = self._level_at(now) - cost, now

    def _level_at(self, now: float) -> float:
        return min(self._capacity, self._level + (now - self._as_of) * self._per_s)
