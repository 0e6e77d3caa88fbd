"""JSON from files, which strangers may have written: bounded in size, and every fault one exception."""

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
"""A longer line, or a longer file that is one JSON value, is not read: nothing of ours, and no document of text, is
that long. Parsed, it may take ten times as much memory."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(text: bytes, *, finite: bool = False) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Args:
        text: to read.
        finite: refuse ``NaN`` and ``Infinity``, which are no JSON: our own files hold none
            (:mod:`logodata.common.json_files`); those of others may, pandas writes them.

    Raises:
        ValueError: it is none, is nested too deeply, or spells half a character (which no tokenizer and no file takes).
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
        raise ValueError(f"it spells half a character, \\u{ord(error.object[error.start]):04x}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def numbered_lines(handle: IO[bytes], shown: str) -> Iterator[tuple[int, bytes]]:
    """Every line of a file with its number, from 1 on. A carriage return ends one, too: in JSON it is never a part of
    anything else.

    Args:
        handle: to read.
        shown: its name in messages.

    Raises:
        UserError: a line is longer than :data:`MAX_JSON_BYTES`.
    """
    number = 0
    while line := handle.readline(MAX_JSON_BYTES + 1):
        if len(line) > MAX_JSON_BYTES:
            raise too_long(f"{shown}:{number + 1}")
        for part in line.splitlines(keepends=True):
            number += 1
            yield number, part


def json_objects(path: Path, *, mend: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file:line, object)`` of a file of JSON lines that one of our commands wrote.

    Raises:
        UserError: it cannot be read, or a line is no JSON object; ``mend`` says what to do about it.
    """
    try:
        with open(path, "rb") as file:
            for number, line in numbered_lines(file, str(path)):
                where = f"{path}:{number}"
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
    """The refusal of what exceeds :data:`MAX_JSON_BYTES`."""
    return UserError(
        f"{what} of more than {MAX_JSON_BYTES // 2**20} MiB",
        where=where,
        mend="write one value a line, with one document at most; is this file JSON?",
    )


def strict_dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """``value`` as text; ``ascii_only`` escapes other characters, for a terminal that may not know them. Names of files
    that are not UTF-8 are written as :func:`~logodata.common.printable.encodable` has them.

    Raises:
        ValueError: a number in it is not finite. A number that may be is checked where it is computed
            (:mod:`logodata.common.finite`), where its place can be named.
    """
    text = encodable(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False), backslash="\\\\")
    return json.dumps(json.loads(text), indent=indent) if ascii_only else text
