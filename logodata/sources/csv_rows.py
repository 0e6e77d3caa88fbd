"""Read rows of text tables: TSV, and CSV with ``,`` or ``;`` or ``|``. Quoted fields may hold any text, line ends
included.

Cells stay text, and an empty cell is an absent field. In columns of list fields, a cell that spells a list in JSON or
Python syntax becomes that list: pandas writes answers in this form.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from logodata.common import json_files
from logodata.common.errors import UserError
from logodata.common.json_files import placed_lines, too_long
from logodata.common.packed_files import open_utf8, text_suffix
from logodata.common.user_files import decode_text
from logodata.sources.conversations import COLUMNS, TURN_FIELDS
from logodata.sources.fields import PARTS, aliases, column_of, names_of, spelt
from logodata.sources.json_rows import Row

SUFFIXES = (".csv", ".tsv")

_DELIMITERS = (",", ";", "\t", "|")
_NAMED = {"\t": "tab"}
_SEPARATOR_LINE = re.compile(r"sep=(.)")
"""The line that spreadsheets may write before the header."""

_QUOTING = "put cells that hold the delimiter or an end of line into double quotes, and double the quotes in them"


def csv_form(file: Path, shown: str, columns: Mapping[str, str], encoding: str | None) -> str:
    """Return in words how a table is read: its separator, and its encoding if that is not UTF-8."""
    handle, found = open_utf8(file, shown, encoding)
    with handle:
        known = (*columns.values(), *COLUMNS)
        _, delimiter, _ = _header(_lines(handle, shown), f"{shown}:1", text_suffix(file) == ".tsv", known)
    return f"separator {_NAMED.get(delimiter, repr(delimiter))}" + (f", {found}" if found else "")


def csv_rows(
    file: Path, shown: str, columns: Mapping[str, str], encoding: str | None = None, *, as_text: bool = False
) -> Iterator[Row]:
    """Yield the rows of a table, with the names of the header row as keys. Messages call the file ``shown``, and
    ``columns`` are the table's own columns for our fields. ``encoding`` is that of a table that is not UTF-8. With
    ``as_text``, for records other than documents, columns may have any names, and every cell stays the text that it is,
    also one that spells a list.

    Raises:
        UserError: The file has another encoding, has no header, has a row with more or fewer cells than the header, a
            quote without end, a NUL character, or a cell that is too long.
    """
    csv.field_size_limit(json_files.MAX_JSON_BYTES)
    with open_utf8(file, shown, encoding)[0] as handle:
        lines = _lines(handle, shown)
        known = () if as_text else (*columns.values(), *COLUMNS)
        header, delimiter, num_lines = _header(lines, f"{shown}:1", text_suffix(file) == ".tsv", known)
        lists = set() if as_text else {name for name in header if name and _holds_lists(name, columns)}
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            where = f"{shown}:{num_lines + reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if "field limit" in str(error):
                    raise too_long(where, "a cell") from error
                raise _not_csv(error, where) from error
            if cells is None:
                return
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise UserError(f"{len(cells)} cells, the header has {len(header)}", where=where, mend=_QUOTING)
            values = (cell if cell.strip() else None for cell in cells)
            named = dict(zip(header, values, strict=True))
            yield where, {name: spelt(value) if name in lists else value for name, value in named.items()}


def _lines(handle: BinaryIO, shown: str) -> Iterator[str]:
    for where, line in placed_lines(handle, shown):
        text, _ = decode_text(line, where)
        if "\0" in text:
            raise UserError("holds a NUL character", where=where, mend="a table is text: write or copy it anew")
        yield text


def _header(lines: Iterator[str], where: str, tabs: bool, known: Collection[str]) -> tuple[list[str], str, int]:
    """Return the column names, the delimiter (the one that gives most columns) and the number of lines read.

    Raises:
        UserError: A name stands twice; or names are ``known``, and none of them is there.
    """
    first = next(lines, "")
    separator = _SEPARATOR_LINE.fullmatch(first.strip())
    if separator:
        first = next(lines, "")
    delimiters = ("\t",) if tabs else (separator[1],) if separator else _DELIMITERS
    try:
        found = {sign: next(csv.reader([first], delimiter=sign, strict=True), []) for sign in delimiters}
    except csv.Error as error:
        raise _not_csv(error, where) from error
    delimiter = max(found, key=lambda sign: len(found[sign]))
    header = [name.strip() for name in found[delimiter]]
    doubled = next((name for name in header if name and header.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"two columns are called {doubled!r}", where=where, mend="rename one")
    named = dict.fromkeys(header)
    if known and not any(column_of(named, name) for name in known):
        what = "the first row has no known column name: is the header row missing?"
        example = "write one, e.g. context,question,answers, or map your names: source.columns.context=NAME"
        raise UserError(what, where=where, mend=f"{example}; found: {names_of(named)}")
    return header, delimiter, 2 if separator else 1


def _not_csv(error: csv.Error, where: str) -> UserError:
    return UserError(f"not valid CSV in the row that begins here: {error}", where=where, mend=_QUOTING)


def _holds_lists(column: str, columns: Mapping[str, str]) -> bool:
    names = [*TURN_FIELDS, *PARTS, "options", "choices", "prompt", "completion", "chosen"]
    for field in ("questions", "answers", "evidence"):
        names += [*aliases(field), *((columns[field],) if field in columns else ())]
    return any(column_of({column: None}, name) for name in names)
