"""Documents of a source: their questions in memory, their texts read again when they are needed.

The first reading checks every row and gathers questions, since rows of one document may lie far apart; it keeps no
text. Each iteration over the documents is another reading that holds one row at a time, so memory does not grow with
the length of the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import overload

from logodata.common.errors import UserError
from logodata.contract import Document, Question
from logodata.sources.fields import Fields, text_digest
from logodata.sources.json_rows import Row


@dataclass(slots=True)
class Entry:
    """A document without its text: where its first row stands, its title, the text's sha256 and length, questions."""

    where: str
    title: str
    digest: str
    length: int
    blank: bool
    num_asked: int = 0
    questions: list[Question] = field(default_factory=list)


class Documents(Sequence[Document]):
    """Documents in the order of their first rows. Indexing reads the source up to that document.

    Args:
        rows: reads the source from its start.
        fields: takes ``doc_id`` and ``context`` from a row.
        entries: the usable documents, by ``doc_id``.
    """

    def __init__(self, rows: Callable[[], Iterator[Row]], fields: Fields, entries: dict[str, Entry]) -> None:
        self._rows, self._fields, self._entries = rows, fields, entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_questions(self) -> int:
        """Questions of all documents, counted without reading."""
        return sum(len(entry.questions) for entry in self._entries.values())

    def __iter__(self) -> Iterator[Document]:
        waiting = dict(self._entries)
        for where, row in self._rows() if waiting else ():
            doc_id, text = identify(self._fields, row, where)
            entry = waiting.pop(doc_id, None)
            if entry is None:
                continue
            if text_digest(text) != entry.digest:
                raise UserError("was changed while it was read", where=where, mend="run the same command again")
            yield Document(doc_id=doc_id, text=text, questions=entry.questions, title=entry.title, where=entry.where)
            if not waiting:
                return
        if waiting:
            where = next(iter(waiting.values())).where
            raise UserError("was changed while it was read", where=where, mend="run the same command again")

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return list(self)[index] if step < 0 else list(islice(iter(self), start, max(stop, start), step))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(islice(iter(self), index % len(self), None))


def identify(fields: Fields, row: dict[str, object], where: str) -> tuple[str, str]:
    """``doc_id`` and text of a row; without a ``doc_id`` equal texts are one document."""
    text = fields.context(row, where)
    given = str(fields.get(row, "doc_id", where, (str, int), default=""))
    return given or text_digest(text)[:12], text
