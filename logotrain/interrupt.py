"""Ctrl-C and SIGTERM as a flag, so that a run stops where its state is whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from logodata.common.console import note


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
    """Within the block the first SIGINT or SIGTERM sets the flag; a second one interrupts at once."""
    flag = StopFlag()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.set()
        note("stopping after this sample, to keep the steps done (once more to stop at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
