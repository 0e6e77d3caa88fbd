"""Ctrl-C and SIGTERM as a flag, so that a run stops where its state is whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from logodata.common.console import note


class Stopped(KeyboardInterrupt):
    """The run ended where its state is whole, because it was asked to; raised on all processes together."""


class StopFlag:
    """True once the run was asked to stop."""

    def __init__(self) -> None:
        self._set = False

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """Ask the run to stop."""
        self._set = True


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within the block SIGINT and SIGTERM set the flag; a second SIGINT interrupts at once.

    A second SIGTERM says nothing new: schedulers send it to every process, and torchrun forwards its own besides.
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
