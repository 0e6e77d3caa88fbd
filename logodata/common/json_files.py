"""Read and write JSON. Files may come from strangers: their size is bounded, and every fault is one exception."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from logodata.common.errors import UserError
from logodata.common.printable import encodable
from logodata.common.user_files import decode_utf8

MAX_JSON_BYTES = 256 * 2**20
"""The longest line, or longest file of one JSON value, that is read. Nothing of ours and no text document is that long.
Parsed, it may take ten times as much memory."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(text: bytes, *, finite: bool = False) -> Any:
    """Return the value of a JSON text in UTF-8, with or without a byte order mark.

    ``finite`` refuses ``NaN`` and ``Infinity``, which are not JSON. Our own files never hold them; those of others may,
    because pandas writes them.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has an unpaired surrogate (which no tokenizer and no file
            accepts).
    """
    try:
        decoded = decode_utf8(text)
    except ValueError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    try:
        value = json.loads(decoded, parse_constant=_refuse if finite else None)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"it has an unpaired surrogate, \\u{ord(error.object[error.start]):04x}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def placed_lines(handle: IO[bytes], shown: str) -> Iterator[tuple[str, bytes]]:
    """Yield the place (``shown:1``) and the content of each line of a file. A carriage return also ends a line: in JSON
    it has no other meaning.

    Raises:
        UserError: A line is longer than :data:`MAX_JSON_BYTES`.
    """
    number = 0
    while line := handle.readline(MAX_JSON_BYTES + 1):
        if len(line) > MAX_JSON_BYTES:
            raise too_long(f"{shown}:{number + 1}")
        for part in line.splitlines(keepends=True):
            number += 1
            yield f"{shown}:{number}", part


def json_objects(path: Path, *, mend: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(file:line, object)`` from a file of JSON lines that one of our commands wrote.

    Raises:
        UserError: The file cannot be read, or a line is not a JSON object; ``mend`` says what to do about it.
    """
    try:
        with open(path, "rb") as file:
            for where, line in placed_lines(file, str(path)):
                try:
                    value = parse_json(line)
                except ValueError as error:
                    raise UserError(f"damaged: {error}", where=where, mend=mend) from error
                if not isinstance(value, dict):
                    raise UserError("damaged: not a JSON object", where=where, mend=mend)
                yield where, value
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path), mend=mend) from error


def too_long(where: str, what: str = "a line") -> UserError:
    """Return the error for a text that exceeds :data:`MAX_JSON_BYTES`."""
    return UserError(
        f"{what} of more than {MAX_JSON_BYTES // 2**20} MiB",
        where=where,
        mend="write one value a line, with one document at most; is this file JSON?",
    )


def strict_dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return ``value`` as JSON text.

    ``ascii_only`` escapes other characters, for a terminal that may not know them. Names of files that are not UTF-8
    are written by :func:`~logodata.common.printable.encodable`.

    Raises:
        ValueError: A number is not finite. Such numbers are checked where they are computed
            (:mod:`logodata.common.finite`), because their place can be named there.
    """
    text = encodable(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False), backslash="\\\\")
    return json.dumps(json.loads(text), indent=indent) if ascii_only else text
