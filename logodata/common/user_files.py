"""Read files that a user gives: UTF-8 text from any system, and folders with the files that a system leaves in them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from logodata.common.errors import SettingError, UserError

MARK = "\ufeff"
"""The byte order mark, which editors write before a text in UTF-8. It is not part of the text."""

_OTHER_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_HEAD = 1024
_SAVE_AS_UTF8 = "save it as UTF-8, e.g. with iconv -f ENCODING -t UTF-8"
_SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")

NAME_ENCODING = {"setting": "encoding=NAME, such as cp1252", "mend": f"or {_SAVE_AS_UTF8}", "section": "source."}
"""How a :class:`SettingError` on the encoding of a text ends."""


def decode_utf8(data: bytes) -> str:
    """Decode a text in UTF-8, or a line of one, without its byte order mark.

    Raises:
        ValueError: It has another encoding. The message names the encoding, or the byte (from 0 on) and the line where
            it shows.
    """
    name = marked_encoding(data)
    # UTF-16 without a mark: in most texts every second byte is 0, which UTF-8 would accept as a character.
    if name is None and data and 3 * data[:_HEAD].count(0) >= len(data[:_HEAD]):
        name = "UTF-16, or no text"
    if name is not None:
        raise ValueError(f"it is {name}")
    try:
        return data.decode("utf-8").lstrip(MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"byte {error.start}" + (f", line {line}" if line > 1 else "")) from error


def decode_at(data: bytes, where: str) -> str:
    """Return :func:`decode_utf8` of a text that stands at ``where``.

    Raises:
        UserError: It has another encoding.
    """
    try:
        return decode_utf8(data)
    except ValueError as error:
        raise UserError(f"not UTF-8: {error}", where=where, mend=_SAVE_AS_UTF8) from error


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding whose byte order mark a text begins with, other than UTF-8; None if it begins with none."""
    return next((name for mark, name in _OTHER_ENCODINGS.items() if data.startswith(mark)), None)


def decode_text(data: bytes, where: str, encoding: str | None = None) -> tuple[str, str]:
    """Return a text that stands at ``where`` and its encoding, which is empty for UTF-8.

    The encoding is that of a byte order mark, else UTF-8, else ``encoding``, the one that the user names for texts that
    are not UTF-8.

    Raises:
        UserError: It is none of them.
    """
    named = marked_encoding(data) or encoding
    fault: ValueError
    try:
        return decode_utf8(data), ""
    except ValueError as caught:
        fault = caught
    if named is None:
        raise SettingError(f"not UTF-8: {fault}", where=where, **NAME_ENCODING) from fault
    try:
        return data.decode(named).lstrip(MARK), named
    except ValueError as caught:
        what = f"neither UTF-8 nor {named}: {caught}"
        raise SettingError(what, where=where, **NAME_ENCODING) from caught


def read_text(path: Path, *, most_bytes: int, mend: str) -> str:
    """Return the text of a file, with ``\\n`` at the ends of lines, whichever system wrote it.

    Raises:
        UserError: The file cannot be read or has more than ``most_bytes`` (``mend`` says what to do about it), or it is
            not UTF-8.
    """
    return plain_ends(decode_at(read_bytes(path, most_bytes=most_bytes, mend=mend), str(path)))


def read_bytes(path: Path, *, most_bytes: int, mend: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: The file cannot be read or has more than ``most_bytes`` (``mend`` says what to do about it).
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)  # a device or a pipe has no size, and may have no end
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path), mend=mend) from error
    if len(data) > most_bytes:
        raise UserError(f"more than {most_bytes // 2**20} MiB", where=str(path), mend=mend)
    return data


def plain_ends(text: str) -> str:
    """Return a text with ``\\n`` at the ends of lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def expand_home(path: Path | str) -> Path:
    """Return a path with ``~`` expanded. It stays as it is where there is no such user or home, as in containers."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_hidden(path: PurePath) -> bool:
    """Whether a path inside a folder or archive is a file that a system left there: its name begins with a dot
    (``._NAME`` and ``.DS_Store`` of macOS), or is ``__MACOSX``, ``Thumbs.db`` or ``desktop.ini``."""
    return any((part.startswith(".") and part != "..") or part.lower() in _SYSTEM_FILES for part in path.parts)


def visible_files(folder: Path, suffixes: Collection[str] = (), *, below: bool = True) -> Iterator[Path]:
    """Yield the files of a folder that are not hidden (:func:`is_hidden`), in no order.

    ``suffixes`` are the extensions to take, in lower case; empty takes every file. ``below`` includes the files of
    subfolders, and of linked ones that are not there by a name of their own.

    Raises:
        UserError: A folder may not be read.
    """
    for place, names in _folders(folder, below=below):
        for file in (Path(place, name) for name in names):
            wanted = not suffixes or file.suffix.lower() in suffixes
            if wanted and not is_hidden(Path(file.name)) and file.is_file():
                yield file


def _folders(folder: Path, *, below: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder once, with the names in it that are no folders: all that are there themselves, then the linked
    ones."""

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        mend = "allow it to be read, or give another folder"
        raise UserError(f"cannot read: {error.strerror}", where=str(error.filename), mend=mend) from error

    entered, waiting = set[tuple[int, int]](), [folder]
    for start in waiting:  # which grows
        for place, folders, names in os.walk(start, onerror=refuse):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if below and not is_hidden(Path(name)))
            waiting += [path for name in folders if (path := Path(place, name)).is_symlink()]  # os.walk passes them
            yield place, names
