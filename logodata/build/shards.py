"""A build in shards, for batch schedulers. ``--shard i/n`` deals out documents, and ``logodata merge`` joins shards.

The hash of its ``doc_id`` decides to which shard a document belongs, so adding or reordering documents moves no other
one. Few documents are dealt unevenly so; ``--deal-in-turn`` deals them in their order instead. Every shard reads and
cuts the whole file. So it joins the same documents as the unsharded build, and knows the place of each question there.
Shards share out the scoring and the generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.contract import ShardRecord, shard_name
from logodata.dataset.files import SHARD_FILE
from logodata.sources import Source
from logodata.sources.fields import text_digest


@dataclass(frozen=True, slots=True)
class BuildShard:
    """Shard ``number`` of ``total``, or all from ``number`` to ``last``; numbers begin at 1.

    ``in_turn`` deals contexts out in their order instead of by the ids of their documents.
    """

    number: int
    total: int
    last: int | None = None
    in_turn: bool = False

    @classmethod
    def parse(cls, text: str, *, in_turn: bool = False) -> BuildShard:
        """Read ``"2/8"`` as the second of eight shards, and ``"2-4/8"`` as three of them. Text of another form is a
        :class:`UserError`."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= int(match[3]):
            mend = "write i/n with i from 1 to n, e.g. 1/8, or several as i-j/n"
            raise UserError(f"--shard {text!r} is no shard", mend=mend)
        return cls(int(match[1]), int(match[3]), int(match[2]) if match[2] else None, in_turn)

    def __str__(self) -> str:
        return shard_name(self.number, self.last, self.total, in_turn=self.in_turn)

    def owns(self, doc_id: str, place: int | None = None) -> bool:
        """Whether a document belongs to this shard, by the hash of its id modulo the number of shards.

        ``place``, the number of its context among all of the build from 0, takes the place of the hash where contexts
        are dealt in turn.
        """
        dealt = int(text_digest(doc_id)[:16], 16) if place is None or not self.in_turn else place
        return self.number - 1 <= dealt % self.total < (self.last or self.number)


def shard_record(shard: BuildShard, source: Source, question_ids: Sequence[str]) -> ShardRecord:
    """Return the record for ``shard.json`` of a shard that decided these questions."""
    # An unsharded build writes the faults of the source first, then document by document.
    ids = [row.id for row in source.rejected]
    ids += [question.id for document in source.documents for question in document.questions]
    places = {question_id: place for place, question_id in enumerate(ids)}
    own = {question_id: places[question_id] for question_id in question_ids}
    return ShardRecord(
        number=shard.number, last=shard.last, total=shard.total, in_turn=shard.in_turn or None, places=own
    )


def read_shard_record(folder: Path) -> ShardRecord:
    """Read ``shard.json`` of a folder. A folder without a finished shard is a :class:`UserError`."""
    if not (folder / "manifest.json").is_file():
        state = "holds no finished shard" if folder.is_dir() else "no such folder"
        raise UserError(state, where=str(folder), mend="run its logodata build ... --shard i/n to the end")
    path = folder / SHARD_FILE
    if not path.is_file():
        raise UserError("a whole data set, not a shard", where=str(folder), mend="merge what --shard i/n wrote")
    return ShardRecord.from_json(read_json(path), where=str(path), mend="build this shard again")
