"""A build in shards, for batch schedulers. ``--shard i/n`` deals out documents, and ``logodata merge`` joins shards.

The hash of its ``doc_id`` decides to which shard a document belongs, so adding or reordering documents moves no other
one. Every shard reads and cuts the whole file. So it joins the same documents as the unsharded build, and knows the
place of each question there. Shards share out the scoring and the generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.contract import ShardRecord
from logodata.dataset.files import SHARD_FILE
from logodata.sources import Source
from logodata.sources.fields import text_digest


@dataclass(frozen=True, slots=True)
class BuildShard:
    """Shard ``number`` of ``total``; numbers begin at 1."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> BuildShard:
        """Read ``"2/8"`` as the second of eight shards. Text of another form is a :class:`UserError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text!r} is no shard", mend="write i/n with i from 1 to n, e.g. 1/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def owns(self, doc_id: str) -> bool:
        """Whether a document belongs to this shard, by the hash of its id modulo the number of shards."""
        return int(text_digest(doc_id)[:16], 16) % self.total == self.number - 1


def shard_record(shard: BuildShard, source: Source, question_ids: Sequence[str]) -> ShardRecord:
    """Return the record for ``shard.json`` of a shard that decided these questions."""
    # An unsharded build writes the faults of the source first, then document by document.
    ids = [row.id for row in source.rejected]
    ids += [question.id for document in source.documents for question in document.questions]
    places = {question_id: place for place, question_id in enumerate(ids)}
    own = {question_id: places[question_id] for question_id in question_ids}
    return ShardRecord(number=shard.number, total=shard.total, places=own)


def read_shard_record(folder: Path) -> ShardRecord:
    """Read ``shard.json`` of a folder. A folder without a finished shard is a :class:`UserError`."""
    if not (folder / "manifest.json").is_file():
        state = "holds no finished shard" if folder.is_dir() else "no such folder"
        raise UserError(state, where=str(folder), mend="run its logodata build ... --shard i/n to the end")
    path = folder / SHARD_FILE
    if not path.is_file():
        raise UserError("a whole data set, not a shard", where=str(folder), mend="merge what --shard i/n wrote")
    return ShardRecord.from_json(read_json(path), where=str(path), mend="build this shard again")
