"""Append-only JSON lines with a done-set: what survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.run_dir import append_lines


class Shard:
    """An append-only file of JSON records, each with a unique ``id``.

    A record is complete once its line ends in a newline. A process killed while it wrote leaves at most one
    unfinished line, which the next opening cuts off; the record is then done again.

    Args:
        path: the file; it is created with the first record.
        key: name of the field that identifies a record.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path, self.key = path, key
        self._mend()
        self.records: dict[str, dict[str, Any]] = {record[key]: record for record in self._read()}

    def __contains__(self, record_id: str) -> bool:
        return record_id in self.records

    def __len__(self) -> int:
        return len(self.records)

    def append(self, *records: dict[str, Any]) -> None:
        """Write records (new ids only) and wait until they are on disk."""
        fresh = [record for record in records if record[self.key] not in self.records]
        if not fresh:
            return
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in fresh)
        append_lines(self.path, lines)
        self.records.update({record[self.key]: record for record in fresh})

    def _mend(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                    record[self.key]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise UserError(
                        "damaged record",
                        where=f"{self.path}:{number}",
                        mend="delete this line; its record is made again",
                    ) from error
                yield record
