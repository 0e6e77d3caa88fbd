"""Append-only JSON lines with a done-set: what survives a kill at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import append_lines
from logodata.common.json_files import numbered_lines, parse_json, strict_dumps


class AppendLog(Mapping[str, dict[str, Any]]):
    """An append-only file of JSON records, each with a unique ``id``; a mapping from ids to records.

    A record is complete once its line ends in a newline. A process killed while it wrote leaves at most one
    unfinished line, which the next opening cuts off; the record is then done again. Memory holds ids and places,
    records are read from the file.

    Args:
        path: the file; it is created with the first record.
        key: name of the field that identifies a record.

    Raises:
        UserError: a line is no record.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path, self.key = path, key
        self._mend()
        self._offsets = dict(self._scan())

    def __getitem__(self, record_id: str) -> dict[str, Any]:
        offset = self._offsets[record_id]
        with open(self.path, "rb") as file:
            file.seek(offset)
            record: dict[str, Any] = parse_json(file.readline())
        return record

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, *records: dict[str, Any]) -> None:
        """Write records (new ids only) and wait until they are on disk."""
        fresh = {record[self.key]: record for record in records if record[self.key] not in self._offsets}
        if not fresh:
            return
        lines = [strict_dumps(record) + "\n" for record in fresh.values()]
        end = self.path.stat().st_size if self.path.exists() else 0
        append_lines(self.path, "".join(lines))
        for record_id, line in zip(fresh, lines, strict=True):
            self._offsets[record_id] = end
            end += len(line.encode("utf-8"))

    def _mend(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:  # from the end, block by block, to the last newline
                start = max(end - 65536, 0)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
        if end < size:
            os.truncate(self.path, end)

    def _scan(self) -> Iterator[tuple[str, int]]:
        if not self.path.exists():
            return
        offset = 0
        with open(self.path, "rb") as file:
            for number, line in numbered_lines(file, str(self.path)):
                try:
                    record_id = parse_json(line, finite=True)[self.key]
                    if not isinstance(record_id, str):
                        raise TypeError(f"an id is {record_id!r}")
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise UserError(
                        "damaged record",
                        where=f"{self.path}:{number}",
                        mend="delete this line; its record is made again",
                    ) from error
                yield record_id, offset
                offset += len(line)
