"""A build in shards, for batch schedulers: ``--shard i/n`` deals the documents, ``logodata merge`` joins them.

A document belongs to a shard by the hash of its ``doc_id``, so adding or reordering documents moves no other one. Every
shard reads and cuts the whole file: it joins the same documents as the unsharded build, and knows at which place of it
each question stands. Scoring and generation are what is shared out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.contract import ShardRecord
from logodata.dataset.files import SHARD_FILE
from logodata.sources import Source


@dataclass(frozen=True, slots=True)
class BuildShard:
    """Shard ``number`` of ``total``; numbers begin at 1."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> BuildShard:
        """``"2/8"`` is the second of eight shards.

        Raises:
            UserError: it is something else.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text!r} is no shard", mend="write i/n with i from 1 to n, e.g. 1/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def owns(self, doc_id: str) -> bool:
        """Whether a document belongs to this shard: sha256 of its id, modulo the number of shards."""
        digest = hashlib.sha256(doc_id.encode("utf-8")).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number - 1


def question_places(source: Source) -> dict[str, int]:
    """The order in which an unsharded build comes to the questions: faults of the source, then document by document."""
    ids = [row.id for row in source.rejected]
    ids += [question.id for document in source.documents for question in document.questions]
    return {question_id: place for place, question_id in enumerate(ids)}


def shard_record(shard: BuildShard, source: Source, question_ids: Sequence[str]) -> ShardRecord:
    """What to write to ``shard.json`` of a shard in which these questions came to an end."""
    places = question_places(source)
    return ShardRecord(
        number=shard.number,
        total=shard.total,
        places={question_id: places[question_id] for question_id in question_ids},
    )


def read_shard_record(folder: Path) -> ShardRecord:
    """``shard.json`` of a folder.

    Raises:
        UserError: the folder holds no finished shard.
    """
    if (folder / "manifest.json").is_file() and not (folder / SHARD_FILE).is_file():
        raise UserError("a whole data set, not a shard", where=str(folder), mend="merge what --shard i/n wrote")
    if not (folder / "manifest.json").is_file():
        state = "holds no finished shard" if folder.is_dir() else "no such folder"
        raise UserError(state, where=str(folder), mend="run its logodata build ... --shard i/n to the end")
    path = folder / SHARD_FILE
    return ShardRecord.from_json(read_json(path), where=str(path), mend="build this shard again")
