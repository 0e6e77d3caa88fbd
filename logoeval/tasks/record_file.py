"""The files of ``predictions/``: typed records, a line each, that a killed run does not make again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.records import Record


class Prediction(Record):
    """What a task keeps of one prompt or text."""

    id: str
    prompt_hash: str

    @property
    def input_hash(self) -> str:
        """A hash of everything that was read for the record."""
        return self.prompt_hash


RecordT = TypeVar("RecordT", bound=Record)
PredictionT = TypeVar("PredictionT", bound=Prediction)


class RecordFile(Generic[RecordT]):
    """A file of records of one type, each with a unique ``id`` (:class:`logodata.common.append_log.AppendLog`).

    Raises:
        UserError: a line is no record. The fields of a record are checked when it is read.
    """

    def __init__(self, path: Path, kind: type[RecordT]) -> None:
        self.path, self._kind, self._log = path, kind, AppendLog(path)

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._log

    def __getitem__(self, record_id: str) -> RecordT:
        mend = "delete this line; its record is made again"
        return self._kind.from_json(self._log[record_id], where=f"{self.path}: {record_id}", mend=mend)

    def append(self, *records: RecordT) -> None:
        """Write records, and wait until they are on disk."""
        self._log.append(*(record.to_json() for record in records))


def check_kept(file: RecordFile[PredictionT], hashes: Mapping[str, str]) -> None:
    """Raise a ``UserError`` if a file holds records of other prompts or texts than those that have their ids now.
    ``hashes`` are :attr:`Prediction.input_hash` by id."""
    for record_id, expected in hashes.items():
        if record_id in file and file[record_id].input_hash != expected:
            raise UserError(
                f"record {record_id!r} is of another prompt or text",
                where=str(file.path),
                mend="evaluate into another folder",
            )
