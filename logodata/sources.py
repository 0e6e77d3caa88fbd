"""Documents with questions from JSON lines; faults name their line.

Structural faults (a line that is not JSON, a missing field, a wrong type, an id used twice) end the command before
anything is written. Faults of content (an empty text, a question without answer) send the question to
``rejected.jsonl`` with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError

from logodata.common.errors import UserError
from logodata.common.recipe_io import RecipeModel
from logodata.contract import Document, Question, QuestionKind

EMBEDDED_PREFIX = "embedded:"

# A row's fields and the names under which other data sets carry them (LongBench: input, _id).
_ALIASES: dict[str, tuple[str, ...]] = {
    "doc_id": ("doc_id",),
    "context": ("context", "text", "document"),
    "title": ("title",),
    "questions": ("questions",),
    "question": ("question", "input"),
    "answers": ("answers", "answer"),
    "id": ("id", "_id"),
    "kind": ("kind",),
    "evidence": ("evidence",),
}


class SourceSettings(RecipeModel):
    """Where documents come from."""

    path: str = Field(min_length=1)
    """A JSON lines file, or ``embedded:train`` / ``embedded:eval`` for the documents that come with the project."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of the file's own columns for our fields, e.g. ``{context: passage}``."""
    join_tokens: int | None = Field(default=None, gt=0)
    """Join consecutive documents until they hold at least this many tokens, to make long contexts of shorter
    documents."""
    max_documents: int | None = Field(default=None, gt=0)
    """Take only the first documents of the file."""
    max_questions_per_document: int | None = Field(default=None, gt=0)
    """Take only the first questions of each document."""
    kinds: list[QuestionKind] | None = None
    """Take only questions of these kinds."""


@dataclass(slots=True)
class Source:
    """What a file holds: usable documents, and the questions that are not, each as (id, doc_id, where, reason,
    detail)."""

    documents: list[Document] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)


def source_file(path: str) -> Path:
    """The file behind ``source.path``; a :class:`UserError` if there is none."""
    if path.startswith(EMBEDDED_PREFIX):
        name = path.removeprefix(EMBEDDED_PREFIX)
        file = Path(str(resources.files("logodata"))) / "embedded" / f"{name}.jsonl"
        if name not in ("train", "eval"):
            raise UserError(
                f"no embedded documents {name!r}", where=path, mend="there are embedded:train and embedded:eval"
            )
        return file
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("no such file", where=path, mend="give a .jsonl file, or embedded:train")
    return file


def source_fingerprint(path: str) -> str:
    """sha256 of the file's bytes: a build is bound to it."""
    with open(source_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_source(settings: SourceSettings) -> Source:
    """Read a JSON lines file.

    A row is a document with ``questions`` (a list of ``{question, answers, id?, kind?, evidence?}``), or one question
    with its own ``question`` and ``answers`` beside ``context``. Rows of one ``doc_id``, or without one of equal
    context, make one document with many questions.
    """
    source = Source()
    texts: dict[str, str] = {}
    questions: dict[str, list[Question]] = {}
    places: dict[str, str] = {}
    titles: dict[str, str] = {}
    seen: dict[str, str] = {}
    for where, row in _rows(source_file(settings.path), settings.path):
        context = _get(row, "context", settings, where, str)
        doc_id = str(_get(row, "doc_id", settings, where, (str, int), default="") or _text_id(context))
        if doc_id in texts and texts[doc_id] != context:
            raise UserError(
                f"doc_id {doc_id!r} has another context than at {places[doc_id]}",
                where=where,
                mend="give each document its own doc_id",
            )
        texts.setdefault(doc_id, context)
        places.setdefault(doc_id, where)
        titles.setdefault(doc_id, str(_get(row, "title", settings, where, str, default="")))
        questions.setdefault(doc_id, [])
        nested = _get(row, "questions", settings, where, list, default=None)
        for entry in [row] if nested is None else nested:
            if not isinstance(entry, dict):
                raise UserError(
                    f"a question is {type(entry).__name__}, not an object",
                    where=where,
                    mend="write {question: ..., answers: [...]}",
                )
            question = _question(entry, doc_id, len(questions[doc_id]), settings, where)
            if question["id"] in seen:
                raise UserError(
                    f"question id {question['id']!r} stands at {seen[question['id']]} too",
                    where=where,
                    mend="give each question its own id",
                )
            seen[question["id"]] = where
            reason = _content_fault(context, question)
            if reason:
                source.faults.append(
                    {
                        "id": question["id"],
                        "doc_id": doc_id,
                        "where": where,
                        "question": question["question"],
                        "reason": reason,
                    }
                )
                continue
            try:
                questions[doc_id].append(Question(**question))
            except ValidationError as error:
                fault = error.errors()[0]
                raise UserError(
                    f"question field {fault['loc'][0]!r}: {fault['msg'].lower()}",
                    where=where,
                    mend="see 'Build data' in the guide",
                ) from error
    for doc_id, text in texts.items():
        kept = [q for q in questions[doc_id] if settings.kinds is None or q.kind in settings.kinds]
        kept = kept[: settings.max_questions_per_document]
        if not text.strip():
            continue  # each of its questions is in the faults already
        source.documents.append(
            Document(doc_id=doc_id, text=text, questions=kept, title=titles[doc_id], where=places[doc_id])
        )
    source.documents = source.documents[: settings.max_documents]
    if not source.documents and not source.faults:
        raise UserError("holds no document", where=settings.path, mend="write one JSON object a line")
    return source


def _rows(file: Path, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(file, "rb") as handle:
        for number, raw in enumerate(handle, 1):
            where = f"{shown}:{number}"
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"not UTF-8 (byte {error.start} of the line)", where=where, mend="save the file as UTF-8"
                ) from error
            except json.JSONDecodeError as error:
                raise UserError(
                    f"not valid JSON: {error.msg} at column {error.colno}",
                    where=where,
                    mend="write one JSON object a line",
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"a JSON {type(row).__name__}, not an object", where=where, mend="write one JSON object a line"
                )
            yield where, row


_REQUIRED: Any = object()


def _get(
    row: dict[str, Any],
    name: str,
    settings: SourceSettings,
    where: str,
    kind: type | tuple[type, ...],
    default: Any = _REQUIRED,
) -> Any:
    mapped = settings.columns.get(name)
    for key in (mapped,) if mapped else _ALIASES[name]:
        if row.get(key) is not None:
            if not isinstance(row[key], kind):
                wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
                raise UserError(
                    f"field {key!r} is {type(row[key]).__name__}, not {wanted}", where=where, mend="correct this line"
                )
            return row[key]
    if default is _REQUIRED:
        names = mapped or "/".join(_ALIASES[name])
        raise UserError(
            f"no field {names!r}",
            where=where,
            mend=f"add it, or map a column: source.columns.{name}=YOUR_COLUMN; found: {', '.join(row) or 'nothing'}",
        )
    return default


def _question(entry: dict[str, Any], doc_id: str, number: int, settings: SourceSettings, where: str) -> dict[str, Any]:
    answers = _get(entry, "answers", settings, where, (list, str), default=[])
    answers = [answers] if isinstance(answers, str) else answers
    if not all(isinstance(answer, str) for answer in answers):
        raise UserError("an answer is not a string", where=where, mend="correct this line")
    kind = str(_get(entry, "kind", settings, where, str, default="other"))
    return {
        "id": str(_get(entry, "id", settings, where, (str, int), default=f"{doc_id}-{number + 1:02d}")),
        "question": _get(entry, "question", settings, where, str).strip(),
        "answers": [answer.strip() for answer in answers if answer.strip()],
        "kind": kind if kind in get_args(QuestionKind) else "other",
        "evidence": _get(entry, "evidence", settings, where, list, default=[]),
    }


def _content_fault(context: str, question: dict[str, Any]) -> str:
    if not context.strip():
        return "empty_document"
    if not question["question"]:
        return "empty_question"
    if not question["answers"]:
        return "no_reference_answer"
    return ""


def _text_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
