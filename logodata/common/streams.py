"""Prepare the standard streams of a command: no locale, closed pipe or missing terminal may cost its work."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _StandardStream(io.FileIO):
    """A stream that drops what is written to a reader that went away (``head``, ``less``, a closed terminal). The work
    continues, and its outcome decides how the command ends. A full disk is an error, once."""

    gone = False

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            on_disk = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            if error.errno != errno.EPIPE and (error.errno != errno.EIO or on_disk):
                raise OSError(error.errno, error.strerror, self.name) from error
            self.gone = True
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make standard output and standard error ready for a command.

    Characters that their encoding lacks are escaped, and a reader may go away. A closed stream swallows what it gets;
    otherwise the next file that is opened would get it. A stream that was replaced, as in tests, is left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = _opened(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _opened(sys.stderr, sys.__stderr__, 2)


def reader_left() -> bool:
    """Whether the reader of standard output went away."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _StandardStream) and raw.gone


def _opened(stream: TextIO | None, first: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(number, "w", encoding="utf-8", closefd=False)
    if stream is not first or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _StandardStream(number, "w", closefd=False)
    raw.name = f"<{('stdout', 'stderr')[number - 1]}>"
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
