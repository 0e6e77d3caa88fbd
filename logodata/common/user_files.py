"""Files that a user gives: text in UTF-8, with or without a mark, from any system; folders with what it left there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from logodata.common.errors import UserError

MARK = "\ufeff"
"""The byte order mark, which editors write before a text in UTF-8. It is no part of the text."""

_OTHERS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_HEAD = 1024
_LEFT = ("__macosx", "thumbs.db", "desktop.ini")
AS_UTF8 = "save it as UTF-8, e.g. with iconv -f ENCODING -t UTF-8"
"""How to mend a text that is not."""


def decode_utf8(data: bytes) -> str:
    """A text in UTF-8, or a line of one, without its byte order mark.

    Raises:
        ValueError: it is in another encoding: in which, or at which byte (from 0 on) and line it is seen.
    """
    name = next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None)
    # Without a mark, too: every second byte of most texts in it is 0, which UTF-8 would take for a sign.
    if name is None and data and 3 * data[:_HEAD].count(0) >= len(data[:_HEAD]):
        name = "UTF-16, or no text"
    if name is not None:
        raise ValueError(f"it is {name}")
    try:
        return data.decode("utf-8").lstrip(MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"byte {error.start}" + (f", line {line}" if line > 1 else "")) from error


def read_text(path: Path, *, most_bytes: int, mend: str) -> str:
    """The text of a file, with ``\\n`` at the ends of lines, whichever system wrote it.

    Args:
        path: to read.
        most_bytes: a larger file is refused.
        mend: what to do about one that is missing, unreadable or too large.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise UserError(f"more than {most_bytes // 2**20} MiB", where=str(path), mend=mend)
        text = decode_utf8(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path), mend=mend) from error
    except ValueError as error:
        raise UserError(f"not UTF-8: {error}", where=str(path), mend=AS_UTF8) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_hidden(path: PurePath) -> bool:
    """Whether a path inside a folder or archive is what a system left there: a name with a dot before it (``._NAME``
    and ``.DS_Store`` of macOS), or what macOS and Windows call ``__MACOSX``, ``Thumbs.db``, ``desktop.ini``."""
    return any((part.startswith(".") and part != "..") or part.lower() in _LEFT for part in path.parts)


def visible_files(folder: Path, suffixes: Collection[str] = (), *, below: bool = True) -> Iterator[Path]:
    """The files of a folder that are not hidden (:func:`is_hidden`), in no order.

    Args:
        folder: to look into.
        suffixes: endings to take, in small letters; none takes every file.
        below: also those of its subfolders.
    """
    for file in folder.rglob("*") if below else folder.glob("*"):
        wanted = not suffixes or file.suffix.lower() in suffixes
        if wanted and not is_hidden(file.relative_to(folder)) and file.is_file():
            yield file
