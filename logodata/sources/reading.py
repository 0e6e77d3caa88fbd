"""Read a source for the first time: check every row, gather questions by document, set unusable questions apart.

Structural faults (a line that is not JSON, a missing field, a wrong type, an id used twice) end the command before
anything is written. Faults of content (an empty text, a question without answer) send the question to
``rejected.jsonl`` with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.common.foreign_files import is_page
from logodata.contract import Document, Question, RejectedQuestion, file_of
from logodata.sources.conversations import UNDERSTOOD
from logodata.sources.converters import KINDS
from logodata.sources.document_files import SUFFIXES, DocumentRow, without_suffix
from logodata.sources.fields import Fields, SourceSettings, text_digest
from logodata.sources.formats import Rows, open_source

_FILES = {"text": "text files", "documents": "these files"}


@dataclass(slots=True)
class Source:
    """The usable documents of a source, and the questions that are not usable. A document without text and questions is
    among these under its own id. ``lost`` counts what converted documents have and their texts lack, by name."""

    documents: Documents
    rejected: list[RejectedQuestion] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)


def read_source(settings: SourceSettings, *, needs_questions: bool = True, needs_references: bool = True) -> Source:
    """Read a source and check all of it.

    A row is a document with ``questions`` (a list of ``{question, answers, id?, kind?, evidence?}``), or one question,
    with ``question`` and ``answers`` beside ``context``. Rows with equal ``doc_id``, or without one and with equal
    context, make one document with several questions. ``settings.questions`` adds the questions of a second file.
    Without one, a row without questions is an error if the caller ``needs_questions``. A question without a reference
    answer is not usable if the caller ``needs_references``.

    Raises:
        UserError: There is a structural fault, or the selection (``kinds``, ``max_documents``) leaves no question.
    """
    from logodata.common.console import note, progress

    opened = open_source(settings)
    are_files = opened.container in ("text", "documents")
    if are_files and needs_questions and not opened.holds_questions:
        mend = (
            "have them written: logodata questions SOURCE --model NAME -o asked.jsonl, or give a table of doc_id, "
            "question and answers: source.questions=FILE"
        )
        raise UserError(f"{_FILES[opened.container]} hold no questions", where=settings.path, mend=mend)
    fields = Fields(opened.columns)
    asked_for = needs_questions and settings.questions is None and not are_files
    reader = _Reader(fields, settings, asked_for, needs_references)
    with progress("convert", opened.num_converted) if opened.num_converted else nullcontext() as tracker:
        for where, row in opened.rows():
            reader.add(row, where)
            if tracker is not None and isinstance(row, DocumentRow):
                tracker.advance(row.is_converted)
    if not reader.entries:
        mend = "write a row below the header" if opened.container == "csv" else "write one JSON object a line"
        raise UserError("holds no document", where=settings.path, mend=mend)
    if opened.questions is not None:
        for where, row in opened.questions():
            reader.add_questions(row, where)
        unknown = [row.doc_id for row in reader.rejected if row.reason == "unknown_document"]
        if unknown:
            place = next(row.where for row in reader.rejected if row.reason == "unknown_document")
            held = ", ".join(map(repr, islice(reader.entries, 3)))
            note(
                f"warning: {file_of(place)}: {len(unknown)} questions are on documents that the source does not "
                f"hold, such as {unknown[0]!r}; it holds {held}, ..."
            )
    fields.check_all_seen(settings.questions or settings.path)
    usable: dict[str, Entry] = {}
    left_out: set[str] = set()
    for doc_id, entry in reader.entries.items():
        if settings.max_documents is not None and len(usable) == settings.max_documents:
            left_out.add(doc_id)
        elif not entry.blank:
            usable[doc_id] = entry
        elif not entry.num_asked:  # otherwise each of its questions is rejected already
            reader.reject({"id": doc_id, "question": ""}, doc_id, entry.where, entry.blank)
    reader.note_conversions(settings.path)
    if reader.num_pages:
        note(
            f"warning: {settings.path}: {reader.num_pages} of {len(reader.entries)} documents are HTML pages: the "
            f"model will read their tags; turn them into text first"
        )
    num_without = sum(row.reason == "empty_document" for row in reader.rejected)
    if opened.shape in ("conversations", "longalpaca") and num_without:
        note(
            f"warning: {settings.path}: no document is found for {num_without} questions of its {opened.shape}; "
            f"{UNDERSTOOD}"
        )
    if not usable and reader.faults:
        name, fault = next(iter(reader.faults.items()))
        what = f"no document can be read, such as {name}: {fault.what}"
        raise UserError(what, where=settings.path, mend=fault.mend)
    if are_files and needs_questions and (silent := sum(not entry.questions for entry in usable.values())):
        note(
            f"{settings.path}: {silent} of {len(usable)} documents hold no question: their chunks stand in contexts "
            f"only where source.join_tokens joins them to others"
        )
    documents = Documents(opened.rows, fields, usable)
    rejected = [row for row in reader.rejected if row.doc_id not in left_out]
    if needs_questions and not documents.num_questions and not rejected:
        found = ", ".join(f"{kind} {count}" for kind, count in reader.kinds.most_common()) or "none"
        mend = "see to source.kinds and source.max_documents"
        raise UserError(f"no question is left; kinds found: {found}", where=settings.path, mend=mend)
    return Source(documents, rejected, reader.lost)


class _Reader:
    """Collects documents and rejected questions while rows are read."""

    def __init__(self, fields: Fields, settings: SourceSettings, needs_questions: bool, needs_references: bool) -> None:
        self._fields, self._settings = fields, settings
        self._needs_questions, self._needs_references = needs_questions, needs_references
        self._question_places: dict[str, str] = {}
        self._num_unknown = self._num_usable = self.num_pages = 0
        self.kinds = Counter[str]()
        """Counts of all questions, selected or not."""
        self.entries: dict[str, Entry] = {}
        self.rejected: list[RejectedQuestion] = []
        self.lost, self._encodings, self._converted = Counter[str](), Counter[str](), Counter[str]()
        self.faults: dict[str, UserError] = {}
        """Why documents cannot be read, by id."""

    def add(self, row: dict[str, Any], where: str) -> None:
        """Add a row of the source: a document, or one question with its document. A file after the last one that is
        taken is not read."""
        most = self._settings.max_documents
        if isinstance(row, DocumentRow) and most is not None and self._num_usable >= most:
            self.entries[row["doc_id"]] = Entry(where, title="", digest="", length=0, blank="")
            return
        doc_id, text = identify(self._fields, row, where)
        digest, known = text_digest(text), self.entries.get(doc_id)
        if known is None:
            title, blank = "", "" if text.strip() else "empty_document"
            if isinstance(row, DocumentRow):
                blank = self._note_file(row, where) or blank
            else:
                title = self._fields.get(row, "title", where, str, default="")
            self.num_pages += is_page(text)
            self._num_usable += not blank
            self.entries[doc_id] = Entry(where, title, digest, len(text), blank)
        elif known.digest != digest:
            what = f"doc_id {doc_id!r} has another context than at {known.where}"
            raise UserError(what, where=where, mend="give each document its own doc_id")
        for entry in self._asked(row, where, self._needs_questions):
            self._ask(doc_id, entry, where)

    def add_questions(self, row: dict[str, Any], where: str) -> None:
        """Add a row of the questions' file."""
        doc_id = str(self._fields.get(row, "doc_id", where, (str, int)))
        if doc_id not in self.entries and (suffix := PurePath(doc_id).suffix.lower()) in SUFFIXES:
            name = without_suffix(PurePath(doc_id))
            # Only where it is that very file's name: report.txt is not report.pdf.
            if name in self.entries and PurePath(self.entries[name].where).suffix.lower() == suffix:
                doc_id = name
        for entry in self._asked(row, where, True):
            if doc_id in self.entries:
                self._ask(doc_id, entry, where)
                continue
            self._num_unknown += 1
            question = self._fields.question(entry, f"{doc_id}-{self._num_unknown:02d}", where)
            self._check_id(question["id"], where)
            if self._settings.kinds is None or question["kind"] in self._settings.kinds:
                self.reject(question, doc_id, where, "unknown_document")

    def reject(self, question: Mapping[str, Any], doc_id: str, where: str, reason: str) -> None:
        """Record a question that is not usable."""
        entry = self.entries.get(doc_id)
        self.rejected.append(
            RejectedQuestion(
                id=question["id"],
                doc_id=doc_id,
                where=where,
                source=file_of(entry.where if entry else where),
                question=question["question"],
                kind=question.get("kind", "other"),
                reason=reason,
                detail=self.faults[doc_id].what if doc_id in self.faults else None,
                stage="source",
            )
        )

    def _note_file(self, row: DocumentRow, where: str) -> str:
        """Count how a file was read, and return the reason why it was not."""
        suffix = PurePath(where).suffix.lower()
        self.lost += row.found.lost
        self._encodings[row.found.encoding] += 1
        if row.fault is None:
            self._converted[suffix] += suffix in KINDS
            return ""
        self.faults[row["doc_id"]] = row.fault
        return "unreadable_document"

    def note_conversions(self, path: str) -> None:
        """Print what was converted, what the texts lack, and which files could not be read."""
        from logodata.common.console import note

        del self._encodings[""]
        found = [f"{number} in {name}" for name, number in self._encodings.items()]
        if found:
            note(f"{path}: files that are not UTF-8: {', '.join(found)}")
        if +self._converted:
            files = ", ".join(f"{suffix} {number}" for suffix, number in (+self._converted).items())
            lost = ", ".join(f"{name} {number}" for name, number in self.lost.items()) or "nothing that is known"
            note(f"{path}: converted to text: {files}; not in the text: {lost}")
        if self.faults:
            shown = ", ".join(f"{name}: {fault.what}" for name, fault in islice(self.faults.items(), 3))
            more = ", ..." if len(self.faults) > 3 else ""
            note(f"warning: {path}: {len(self.faults)} documents cannot be read, and are left out: {shown}{more}")

    def _asked(self, row: dict[str, Any], where: str, needed: bool) -> list[dict[str, Any]]:
        if isinstance(row, DocumentRow):
            return []
        nested = self._fields.questions(row, where)
        if nested is not None:
            return nested
        return [row] if needed or self._fields.get(row, "question", where, str, default=None) is not None else []

    def _ask(self, doc_id: str, row: dict[str, Any], where: str) -> None:
        entry = self.entries[doc_id]
        entry.num_asked += 1
        question = self._fields.question(row, f"{doc_id}-{entry.num_asked:02d}", where)
        self._check_id(question["id"], where)
        settings, kind = self._settings, question["kind"]
        self.kinds[kind] += 1
        most = settings.max_questions_per_document
        taken = (settings.kinds is None or kind in settings.kinds) and (most is None or len(entry.questions) < most)
        unusable = {
            entry.blank: bool(entry.blank),
            "empty_question": not question["question"],
            "no_reference_answer": self._needs_references and not question["answers"],
        }
        if reason := next((reason for reason, holds in unusable.items() if holds), ""):
            if taken:  # else the settings leave it out anyway
                self.reject(question, doc_id, where, reason)
            return
        try:
            checked = Question(**question)
        except ValidationError as error:
            fault = error.errors()[0]
            what = f"question field {fault['loc'][0]!r}: {fault['msg'].lower()}"
            raise UserError(what, where=where, mend="see docs/build.md") from error
        if not taken:
            return
        if any(not 0 <= start < end <= entry.length for start, end in checked.evidence):
            self.reject(question, doc_id, where, "evidence_outside_document")
            return
        entry.questions.append(checked)

    def _check_id(self, question_id: str, where: str) -> None:
        if question_id in self._question_places:
            what = f"question id {question_id!r} stands at {self._question_places[question_id]} too"
            raise UserError(what, where=where, mend="give each question its own id")
        self._question_places[question_id] = where


@dataclass(slots=True)
class Entry:
    """A document without its text: the place of its first row, its title, the text's sha256 and length, the reason why
    it has no text (empty if it has), its questions."""

    where: str
    title: str
    digest: str
    length: int
    blank: str
    num_asked: int = 0
    questions: list[Question] = field(default_factory=list)


class Documents:
    """The usable documents of a source in the order of their first rows. Each iteration reads the source again."""

    def __init__(self, rows: Rows, fields: Fields, entries: dict[str, Entry]) -> None:
        self._rows, self._fields, self._entries = rows, fields, entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_questions(self) -> int:
        """The number of questions of all documents, counted without reading the source."""
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


def identify(fields: Fields, row: dict[str, object], where: str) -> tuple[str, str]:
    """Return ``doc_id`` and text of a row. A missing ``doc_id`` is made from the text, so that equal texts are one
    document."""
    if isinstance(row, DocumentRow):
        return row["doc_id"], row.found.text
    text = fields.context(row, where)
    given = str(fields.get(row, "doc_id", where, (str, int), default=""))
    return given or text_digest(text)[:12], text
