"""Errors a user can mend, and the exit codes of every command."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from logodata.common import verbosity
from logodata.common.printable import printable, without_passwords
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


def pass_on(error: BaseException) -> None:
    """Raise again what says nothing about the input that was being read: an interrupt, an exit, want of memory.

    Called first wherever any exception becomes a line about a file. Libraries hide such exceptions in others: torch's
    distributed checkpoints as a fault of each process, task groups as one of many, and whatever fails while an
    interrupt is on its way up has it as its context.
    """
    for part in _chain(error):
        if isinstance(part, KeyboardInterrupt | SystemExit | MemoryError) or _OUT_OF_MEMORY.search(_text(part)):
            raise part


_OUT_OF_MEMORY = re.compile(r"^(?:OutOfMemoryError|RuntimeError)\b.*(?:out of memory|can't allocate memory)", re.DOTALL)
"""torch's own, on a GPU and on a CPU; bitsandbytes and CUDA's libraries say it the same way."""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__} {error}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came of, at any depth."""
    left, seen = [error], set[int]()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        failures = getattr(part, "failures", None)  # torch: of each process, the exception and where it was
        hidden = (
            [failure[0] for failure in failures.values() if isinstance(failure, tuple)]
            if isinstance(failures, dict)
            else []
        )
        hidden += part.exceptions if isinstance(part, BaseExceptionGroup) else []
        # What was met while another exception was handled came of it only if it was on its way up: an interrupt is.
        met = part.__context__ if isinstance(part.__context__, KeyboardInterrupt | SystemExit) else None
        left += [inner for inner in (*hidden, part.__cause__, met) if isinstance(inner, BaseException)]


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
    try:
        open_streams()
        with sigterm_interrupts():
            try:
                code = command() or 0
            except Exception as error:
                # An interrupt stands behind what a library, or Python itself in an import, made of it.
                hidden = next((p for p in _chain(error) if isinstance(p, KeyboardInterrupt | SystemExit)), None)
                if hidden is None:
                    raise
                raise hidden from None
            sys.stdout.flush()  # here a full disk can still be said
            return code
    except UserError as error:
        if verbosity.level == "verbose":
            _say(without_passwords("".join(traceback.format_exception(error))))
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
