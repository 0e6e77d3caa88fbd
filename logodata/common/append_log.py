"""Append-only JSON lines with a done-set: what survives a kill at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import append_lines
from logodata.common.json_files import parse_json, placed_lines, strict_dumps


class AppendLog(Mapping[str, dict[str, Any]]):
    """An append-only file of JSON records, and a mapping from ids to records. The field ``key`` of a record is its id.

    The file is created with the first record. A record is complete once its line ends in a newline. A process killed
    while it wrote leaves at most one unfinished line, which the next opening cuts off; the record is then done again.
    Memory holds ids and places, and records are read from the file.

    Raises:
        UserError: A line is no record.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path, self.key = path, key
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

    def _scan(self) -> Iterator[tuple[str, int]]:
        """Yield the id and the offset of each record, and cut off an unfinished line."""
        if not self.path.exists():
            return
        offset = 0
        with open(self.path, "rb") as file:
            for where, line in placed_lines(file, str(self.path)):
                if not line.endswith((b"\n", b"\r")):
                    os.truncate(self.path, offset)
                    return
                try:
                    record_id = parse_json(line, finite=True)[self.key]
                    if not isinstance(record_id, str):
                        raise TypeError(f"an id is {record_id!r}")
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    mend = "delete this line; its record is made again"
                    raise UserError("damaged record", where=where, mend=mend) from error
                yield record_id, offset
                offset += len(line)
