"""Read rows of JSON lines, one JSON list or indented objects one at a time: memory holds a row, not the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from logodata.common import json_files
from logodata.common.errors import UserError
from logodata.common.json_files import placed_lines, too_long
from logodata.common.packed_files import open_unpacked
from logodata.common.user_files import decode_at, decode_utf8

Row = tuple[str, dict[str, Any]]
"""The place of a row, as ``file:line``, and the row."""

_A_LINE = "write one JSON object a line"
_BLOCK = 2**20
_SPACE = " \t\r\n\ufeff"


def json_rows(file: Path, shown: str) -> Iterator[Row]:
    """Yield every object of a file of JSON lines, of one list of objects, or of objects over several lines. Messages
    call the file ``shown``.

    Raises:
        UserError: A line is not UTF-8, not JSON, not an object or too long, or an object has a key twice.
    """
    with open_unpacked(file, shown) as handle:
        first = handle.read(1)
        while first and first in b"\xef\xbb\xbf \t\r\n":  # a byte order mark, and white space
            first = handle.read(1)
        handle.seek(0)
        listed = first == b"["
        many_lines = not listed and _continues(handle, shown)
        handle.seek(0)
        yield from _value_rows(handle, shown, listed) if listed or many_lines else _line_rows(handle, shown)


def _continues(handle: BinaryIO, shown: str) -> bool:
    """Whether the first object of a file continues after its first line, as indented ones do."""
    lines = (line for _, line in placed_lines(handle, shown) if line.strip())
    try:
        json.loads(text := decode_utf8(next(lines, b"{}")).rstrip())
    except json.JSONDecodeError as error:
        return error.pos >= len(text) and next(lines, None) is not None
    except (ValueError, RecursionError):  # reported with its place when it is read
        return False
    return False


def _line_rows(handle: BinaryIO, shown: str) -> Iterator[Row]:
    for where, raw in placed_lines(handle, shown):
        if not raw.strip():
            continue
        text = decode_at(raw, where)
        try:
            value = json.loads(text, object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            what = f"not valid JSON: {error.msg} at column {error.colno}"
            raise UserError(what, where=where, mend=_A_LINE) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"not valid JSON: {error}", where=where, mend="correct this line") from error
        yield where, _object(value, where)


def _value_rows(handle: BinaryIO, shown: str, listed: bool) -> Iterator[Row]:
    """Yield the elements of a JSON list (``listed``), or consecutive objects, each as soon as it is read."""
    reader = io.TextIOWrapper(handle, encoding="utf-8", newline="")
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    text, at, line = "", 0, 1

    def more() -> bool:
        """Read at least as much text as is waiting; False at the end of the file."""
        nonlocal text, at
        if len(text) - at > json_files.MAX_JSON_BYTES:
            raise too_long(f"{shown}:{line}", "an element")
        try:
            block = reader.read(max(_BLOCK, len(text) - at))
        except UnicodeDecodeError as error:
            raise fault("not UTF-8, in this line or after it", "save the file as UTF-8") from error
        text, at = text[at:] + block, 0
        return bool(block)

    def next_sign() -> str:
        """Return the next character that is not white space, without consuming it; empty at the end."""
        nonlocal at, line
        while True:
            while at < len(text) and text[at] in _SPACE:
                line += text[at] == "\n"
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    def fault(what: str, mend: str = "correct this line") -> UserError:
        return UserError(what, where=f"{shown}:{line}", mend=mend)

    def cut_off() -> UserError:
        return fault(
            "the JSON list has no end" if listed else "the JSON object has no end", "the file was cut off, copy it anew"
        )

    next_sign()
    at += listed  # the opening bracket
    expected = "]" if listed else ""  # what may stand in place of an element, since a list may be empty
    while (sign := next_sign()) != expected:
        if not sign:
            raise cut_off()
        where = f"{shown}:{line}"
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                break
            except json.JSONDecodeError as error:
                # A partly read element fails inside a string, or at the end of the text.
                in_string, reached = error.msg.startswith("Unterminated string"), error.pos - at
                if (in_string or error.pos > len(text) - 16) and more():
                    continue
                if in_string or reached >= len(text[at:].rstrip()):
                    raise cut_off() from error
                raise fault(
                    f"not valid JSON: {error.msg} in the element that begins here", "correct this element"
                ) from error
            except (ValueError, RecursionError) as error:
                raise fault(f"not valid JSON: {error}", "correct this element") from error
        line += text.count("\n", at, end)
        at = end
        yield where, _object(value, where)
        sign = next_sign()
        if not listed:
            continue
        if sign == "]":
            break
        if sign != ",":
            raise fault("not valid JSON: no comma here") if sign else cut_off()
        at += 1
        expected = ","  # an element must follow a comma; a second comma is refused here
        if next_sign() == ",":
            raise fault("not valid JSON: two commas")
    at += listed
    if next_sign():
        raise fault("not valid JSON: something follows the list", "one list, or JSON lines")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"a JSON {type(value).__name__}, not an object", where=where, mend=_A_LINE)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row
