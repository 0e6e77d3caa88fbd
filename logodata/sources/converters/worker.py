"""The process that converts documents. It reads a request a line and writes an answer a line, both JSON, and ends with
its input. :mod:`logodata.sources.converters.process` starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError, first_line
from logodata.sources.converters import KINDS, Converted, Unreadable
from logodata.sources.converters.book import book_text
from logodata.sources.converters.page import page_text
from logodata.sources.converters.pdf import pdf_text
from logodata.sources.converters.word import word_text

_CONVERTERS = {".pdf": pdf_text, ".docx": word_text, ".epub": book_text}
_DEEPEST = 10_000
"""Calls within calls: a page whose elements lie deeper in each other is refused."""


def convert_here(file: Path, encoding: str | None) -> Converted:
    """Convert a document in this process, which it may end.

    Raises:
        Unreadable: It cannot be converted.
        MemoryError: It needs more memory than there is.
    """
    if not file.stat().st_size:
        raise Unreadable("is empty", where=str(file), mend="leave it out, or copy it anew")
    suffix = file.suffix.lower()
    try:
        return _CONVERTERS.get(suffix, page_text)(file, encoding)
    except RecursionError as error:
        raise Unreadable("is nested too deeply", where=str(file), mend="this is no document") from error
    except MemoryError:
        raise
    except UserError as error:
        raise Unreadable(error.what, where=str(file), mend=error.mend) from error
    except Exception as error:  # any, where a library meets what it does not expect
        what = f"cannot be read as {KINDS[suffix]}: {first_line(error)}"
        raise Unreadable(what, where=str(file), mend="open it, and save or download it anew") from error


def main(most_bytes: int) -> None:
    """Answer requests with ``most_bytes`` of memory at most, where the system can limit it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started us ends us
    sys.setrecursionlimit(_DEEPEST)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    except (ImportError, ValueError, OSError):  # Windows has no such limit, and macOS does not keep it
        pass
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            request = json.loads(line)
            try:
                print(json.dumps(_answer(Path(request["file"]), request["encoding"])), file=answers, flush=True)
            except MemoryError:
                return


def _answer(file: Path, encoding: str | None) -> dict[str, Any]:
    try:
        found = convert_here(file, encoding)
        return {"text": found.text, "lost": found.lost, "encoding": found.encoding}
    except Unreadable as error:
        return {"what": error.what, "mend": error.mend}


if __name__ == "__main__":
    main(int(sys.argv[1]))
