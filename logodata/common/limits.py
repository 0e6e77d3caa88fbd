"""Bounds for code of strangers that runs in a sandbox: a sandbox hides the machine, not its time and memory."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ONE_AT_A_TIME = threading.RLock()
"""The limit is the process's: two threads that set and restore it by turns would leave one behind."""


@contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """A block that may not go on for ever, nor take all memory.

    Holds on the main thread, which alone gets signals, and for memory where Linux tells what the process has.

    Args:
        seconds: after these ``TimeoutError`` is raised inside the block.
        num_bytes: address space that the process may take beyond what it has; asking for more is a ``MemoryError``.
    """
    with limited_memory(num_bytes), _limited_time(seconds):
        yield


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
    """The part of :func:`bounded` that holds for memory."""
    sizes = Path("/proc/self/statm")
    if not sizes.is_file():
        yield
        return
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(sizes.read_text().split()[0]) * resource.getpagesize() + num_bytes
        within = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(within), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
