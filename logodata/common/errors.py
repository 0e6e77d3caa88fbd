"""Errors a user can mend, and the exit codes of every command."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from logodata.common.printable import printable
from logodata.common.streams import open_streams

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class UserError(Exception):
    """The user's input is at fault. Prints as one line: what is wrong, where, and how to mend it. Processes may send it
    to each other: a copy says the same.

    Args:
        what: the fault, e.g. ``"unknown key 'objectve'"``.
        where: ``file:line``, a field or a sample id; empty where there is no place.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f" ({self.mend})" if self.mend else ""
        return printable(" ".join(f"{place}{self.what}{cure}".split()))


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM, by which schedulers end a process, is Ctrl-C. Handlers belong to the main thread: on
    another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def run_command(
    program: str, command: Callable[[], int | None], *, resume_hint: str = "run the same command again to continue"
) -> int:
    """Run ``command`` and map its outcome to the exit codes all three programs share.

    0 done, 2 the user's input or the disk is at fault (one line on stderr), 130 interrupted by Ctrl-C or SIGTERM (the
    line says how to resume). Any other exception is our bug and keeps its traceback. That nobody reads the output any
    more (``| head``) changes nothing: see :mod:`logodata.common.streams`.
    """
    open_streams()
    try:
        with sigterm_interrupts():
            code = command() or 0
            sys.stdout.flush()  # here a full disk can still be said
            return code
    except UserError as error:
        _say(f"{program}: error: {error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _say(f"{program}: interrupted; {resume_hint}")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        fault = UserError(f"{error.strerror}", where=error.filename or "", mend=f"see to the disk; {resume_hint}")
        _say(f"{program}: error: {fault}")
        return EXIT_USER_ERROR


def _say(line: str) -> None:
    """Under torchrun every process meets the same error: one a machine prints it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(printable(line), file=sys.stderr)
