"""Errors that a user can mend, and the exit codes of every command."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from logodata.common import verbosity
from logodata.common.printable import printable, without_passwords
from logodata.common.streams import open_streams

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_PATH_FAULTS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""Path.exists and the like raise these: for a folder that may not be entered, and for a name of over 255 bytes."""


class UserError(Exception):
    """An error in the user's input. It prints as one line: what is wrong, where, and how to mend it.

    Processes may send it to each other: a copy says the same.

    Args:
        what: The fault, e.g. ``"unknown key 'objectve'"``.
        where: ``file:line``, a field or a sample id; empty if there is no place.
        mend: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f" ({self.mend})" if self.mend else ""
        return printable(" ".join(f"{place}{self.what}{cure}".split()))


class SettingError(UserError):
    """An error that a setting mends. Its line ends with ``(set SETTING; MEND)``.

    The same setting has another place in another command: ``logodata import`` has ``prompt``, and a run has
    ``data.pairs.prompt``. So the section is apart from the setting, and a caller may name another one.

    Args:
        what: The fault.
        where: Its place.
        setting: The setting as it is written, e.g. ``"encoding=cp1252"``.
        mend: What else mends the fault, or helps to find the value.
        section: What stands before the setting, such as ``"source."``; empty where the setting is at the top.
    """

    def __init__(self, what: str, *, where: str = "", setting: str = "", mend: str = "", section: str = "") -> None:
        self._setting, self._mend = setting, mend
        super().__init__(what, where=where, mend=f"set {section}{setting}" + (f"; {mend}" if mend else ""))

    def within(self, section: str) -> SettingError:
        """Return the same error with its setting in another section."""
        return SettingError(self.what, where=self.where, setting=self._setting, mend=self._mend, section=section)


@contextmanager
def settings_within(section: str) -> Iterator[None]:
    """Let the errors of a block name their settings in ``section`` (see :class:`SettingError`)."""
    try:
        yield
    except SettingError as error:
        raise error.within(section) from error


@contextmanager
def settings_moved(names: Sequence[str], section: str) -> Iterator[None]:
    """Put ``section``, such as ``"judge.model."``, before the settings that errors of a block name anywhere in their
    lines, and that begin with one of ``names``: those of a second model, whose code names the first one's."""
    try:
        yield
    except UserError as error:
        if names:
            found = re.compile(rf"(?<![\w./-])(?=(?:{'|'.join(map(re.escape, names))})[.=])")
            texts = (error.what, error.where, error.mend)
            error.what, error.where, error.mend = (found.sub(section, text) for text in texts)
            error.args = (str(error),)
        raise


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says that is not blank, or else its type."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Return a question after the name of ``known`` that is spelt most like ``name``, or ``otherwise``."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


def pass_on(error: BaseException) -> None:
    """Raise again what says nothing about the input that was being read: an interrupt, an exit, or lack of memory.

    It is called first wherever any exception becomes a line about a file. Libraries hide such exceptions in others:
    torch's distributed checkpoints report them as a failure of each process, and task groups as one of many. Whatever
    fails while an interrupt propagates has it as its context.
    """
    for part in _chain(error):
        text = f"{type(part).__name__} {part}"
        if isinstance(part, KeyboardInterrupt | SystemExit | MemoryError) or _OUT_OF_MEMORY.search(text):
            raise part


_OUT_OF_MEMORY = re.compile(r"^(?:OutOfMemoryError|RuntimeError)\b.*(?:out of memory|can't allocate memory)", re.DOTALL)
"""torch's errors on a GPU and on a CPU. bitsandbytes and CUDA's libraries use the same words."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it came from, at any depth."""
    left, seen = [error], set[int]()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        failures = getattr(part, "failures", None)  # torch: for each process, the exception and its place
        hidden = (
            [failure[0] for failure in failures.values() if isinstance(failure, tuple)]
            if isinstance(failures, dict)
            else []
        )
        hidden += part.exceptions if isinstance(part, BaseExceptionGroup) else []
        # The context is a cause only if it was propagating, as an interrupt is; else it was being handled.
        met = part.__context__ if isinstance(part.__context__, KeyboardInterrupt | SystemExit) else None
        left += [inner for inner in (*hidden, part.__cause__, met) if isinstance(inner, BaseException)]


@contextmanager
def raised_by(number: signal.Signals, error: Callable[[], BaseException]) -> Iterator[bool]:
    """Raise a new ``error`` within the block when a signal arrives. Only the main thread can set handlers: on another
    one the block gets False, and nothing changes. A signal that is ignored stays so: ``nohup`` ignores SIGHUP, so that
    a command outlives its terminal."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(number) is signal.SIG_IGN:
        yield False
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise error()

    before = signal.signal(number, handler)
    try:
        yield True
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


def run_command(
    program: str, command: Callable[[], int | None], *, resume_hint: str = "run the same command again to continue"
) -> int:
    """Run ``command`` and map its outcome to the exit codes that all three programs share.

    0 means done. 2 means that the user's input or the disk is at fault (one line on stderr). 130 means interrupted by
    Ctrl-C or SIGTERM (the line says how to resume). Any other exception is our bug and keeps its traceback. A reader
    that stops reading the output (``| head``) changes nothing: see :mod:`logodata.common.streams`.
    """
    try:
        open_streams()
        with raised_by(signal.SIGTERM, KeyboardInterrupt):  # with it schedulers end a process
            try:
                code = command() or 0
            except Exception as error:
                # A library, or Python itself during an import, may have wrapped an interrupt in another exception.
                hidden = next((p for p in _chain(error) if isinstance(p, KeyboardInterrupt | SystemExit)), None)
                if hidden is None:
                    raise
                raise hidden from None
            sys.stdout.flush()  # a full disk can still be reported here
            return code
    except UserError as error:
        if verbosity.level == "verbose":
            _print_error(without_passwords("".join(traceback.format_exception(error))))
        _print_error(f"{program}: error: {error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _print_error(f"{program}: interrupted; {resume_hint}")
        return EXIT_INTERRUPTED
    except OSError as error:
        is_path = error.errno in _PATH_FAULTS and error.filename is not None
        if error.errno not in _DISK_FAULTS and not is_path:
            raise
        mend = "check the path and its rights" if is_path else f"see to the disk; {resume_hint}"
        fault = UserError(f"{error.strerror}", where=str(error.filename or ""), mend=mend)
        _print_error(f"{program}: error: {fault}")
        return EXIT_USER_ERROR


def _print_error(line: str) -> None:
    """Print the error once on each machine: under torchrun every process meets it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(printable(line), file=sys.stderr)
