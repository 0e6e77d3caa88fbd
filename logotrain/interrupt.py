"""Turn Ctrl-C and SIGTERM into a flag, so that a run stops only where its state can be saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from logodata.common.console import note


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and its state is saved. All processes raise this together."""


class StopFlag:
    """A flag that is true once the run was asked to stop."""

    def __init__(self) -> None:
        self._set = False

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """Ask the run to stop."""
        self._set = True


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Make SIGINT and SIGTERM set a flag within the block; a second SIGINT raises KeyboardInterrupt at once.

    A second SIGTERM is ignored: schedulers send it to every process, and torchrun forwards its own too.
    """
    flag = StopFlag()
    interrupts = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        if not flag:
            flag.set()
            note("stopping soon, to keep what is done (a second Ctrl-C stops at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
