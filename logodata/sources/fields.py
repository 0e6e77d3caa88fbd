"""Read the fields of a row under their several names and in their several forms, and check them."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import Encoding, OrPath, Tokens
from logodata.common.user_files import expand_home
from logodata.contract import QuestionKind

_REQUIRED: Any = object()

_TEXTS = ("text", "paragraph_text", "content", "context")
"""Keys of the text in an object: NarrativeQA's document, question and answers, SQuAD's answers, MuSiQue's
paragraphs."""

_NAMES_SHOWN, _NAME_CHARACTERS = 20, 40


class Fields:
    """Reads fields from rows. ``columns`` are the source's own columns for our fields."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._unseen = {column: name for name, column in columns.items()}

    def get(
        self, row: Mapping[str, Any], name: str, where: str, kind: type | tuple[type, ...], default: Any = _REQUIRED
    ) -> Any:
        """Return the field ``name`` of a row, or ``default`` if it is absent or null.

        If a row has several of its names, the first one with a value counts. White space alone counts only if there is
        nothing else.

        Raises:
            UserError: The field is required and absent, or has another type.
        """
        mapped = self._columns.get(name)
        blank = None
        for known in (mapped,) if mapped else aliases(name):
            key = column_of(row, known)
            if mapped and key is not None:
                self._unseen.pop(mapped, None)
            value = None if key is None else row[key]
            if value is None:
                continue
            if kind is str:
                value = _as_text(value)
            # In Python True is an int, but it is not an id.
            if not isinstance(value, kind) or isinstance(value, bool):
                raise _wrong_type(str(key), value, kind, where)
            if isinstance(value, str):
                _check_characters(value, str(key), where)
                if not value.strip():
                    blank = value if blank is None else blank
                    continue
            return value
        if blank is not None:
            return blank
        if default is _REQUIRED:
            names = mapped or "/".join(ALIASES[name])
            questions = "; questions on documents of another file are source.questions=FILE" * (name == "context")
            found = names_of({f"{key} (empty)" if row[key] is None else key: None for key in row})
            mend = f"add it, or map a column: source.columns.{name}=YOUR_COLUMN{questions}; found: {found}"
            raise UserError(f"no field {names!r}", where=where, mend=mend)
        return default

    def context(self, row: Mapping[str, Any], where: str) -> str:
        """Return the document of a row. A document in several parts is joined."""
        value = self.get(row, "context", where, (str, list, dict), default=None)
        if value is None and "context" not in self._columns:
            value = next((row[key] for name in PARTS if (key := column_of(row, name)) and row[key]), None)
            if isinstance(value, list):
                value = [{"text": part} if isinstance(part, str) else part for part in value]
        if value is None:
            self.get(row, "context", where, str)  # raises the error that says what is missing
        value = context_of(value)
        if not isinstance(value, str):
            raise _wrong_type("context", value, str, where)
        _check_characters(value, "context", where)
        return value

    def check_all_seen(self, where: str) -> None:
        """Raise a :class:`UserError` if a mapped column was in no row, which means that it is misspelt."""
        for column, name in self._unseen.items():
            raise UserError(f"no row has a column {column!r}", where=where, mend=f"correct source.columns.{name}")

    def questions(self, row: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
        """Return the nested questions of a row; None if it has none. Plain texts get the answers from a list of the
        same length."""
        nested = spelt(self.get(row, "questions", where, (list, str), default=None))
        if nested is None:
            return None
        if isinstance(nested, list) and nested and all(isinstance(entry, str) for entry in nested):
            nested = self._with_answers(row, nested, where)
        for entry in nested if isinstance(nested, list) else [nested]:
            if not isinstance(entry, dict):
                what = f"a question is {type(entry).__name__}, not an object"
                raise UserError(what, where=where, mend="write {question: ..., answers: [...]}")
        found: list[dict[str, Any]] = nested
        return found

    def _with_answers(self, row: Mapping[str, Any], texts: list[str], where: str) -> list[Any]:
        answers = spelt(self.get(row, "answers", where, (list, dict, str), default=None))
        if isinstance(answers, dict):  # CoQA
            answers = answers.get("input_text")
        if not isinstance(answers, list):
            return texts
        if len(answers) != len(texts):
            raise _fault(f"{len(texts)} questions and {len(answers)} answers", where)
        return [{"question": text, "answers": answer} for text, answer in zip(texts, answers, strict=True)]

    def question(self, entry: Mapping[str, Any], default_id: str, where: str) -> dict[str, Any]:
        """Return the fields of a question. Whether the question is usable is checked later."""
        answers = self._answers(entry, where)
        for answer in answers:
            if not isinstance(answer, str):
                raise _fault("an answer is not a string", where)
            _check_characters(answer, "answers", where)
        kind = str(self.get(entry, "kind", where, str, default="other"))
        return {
            "id": str(self.get(entry, "id", where, (str, int), default=default_id)),
            "question": self.get(entry, "question", where, str).strip(),
            "answers": [answer.strip() for answer in answers if answer.strip()],
            "kind": kind if kind in get_args(QuestionKind) else "other",
            "evidence": self.get(entry, "evidence", where, list, default=[]),
            "model_grade": entry.get("model_grade"),
        }

    def _answers(self, entry: Mapping[str, Any], where: str) -> list[Any]:
        """Return the reference answers. They may be a text, a list of texts or of objects with ``text`` (NarrativeQA),
        an object with such a list (SQuAD), or the number or letter of one of ``options``."""
        options = _options(entry)
        value = self.get(entry, "answers", where, (list, str, dict, *((int,) if options else ())), default=None)
        if value is None and options and isinstance(gold := entry.get("gold_label"), int):  # QuALITY counts from 1
            value = gold - 1
        if isinstance(value, dict):
            inside = value.get("text", value.get("answer"))
            if not isinstance(inside, list | str):
                raise _wrong_type("answers", value, (list, str), where)
            value = inside
        if value is None:
            return []
        answers = [_as_text(answer) for answer in (value if isinstance(value, list) else [value])]
        return [_selected_option(answer, options, where) for answer in answers] if options else answers


def column_of(row: Mapping[str, Any], name: str) -> str | None:
    """Return the key of a row for a name; case and surrounding white space may differ. None if there is no such key."""
    if name in row:
        return name
    folded = name.strip().lower()
    return next((key for key in row if isinstance(key, str) and key.strip().lower() == folded), None)


def value_of(row: Mapping[str, Any], *names: str) -> Any:
    """Return the value under the first of some names that a row has one for; None if all are absent or null."""
    keys = (column_of(row, name) for name in names)
    return next((row[key] for key in keys if key is not None and row[key] is not None), None)


def names_of(row: Mapping[str, Any]) -> str:
    """Format the keys of a row for a message. They are shortened: a first line taken for a header may be a whole
    document."""
    names = [str(key) if len(str(key)) <= _NAME_CHARACTERS else f"{str(key)[:_NAME_CHARACTERS]}…" for key in row]
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") or "nothing"


def _wrong_type(key: str, value: object, kind: type | tuple[type, ...], where: str) -> UserError:
    wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    return _fault(f"field {key!r} is {type(value).__name__}, not {wanted}", where)


def _fault(what: str, where: str) -> UserError:
    return UserError(what, where=where, mend="correct this line")


def context_of(value: object) -> object:
    """Join a document that is given in parts, with titles or as objects, into one text with blank lines between them
    (HotpotQA, MuSiQue). Any other value is returned unchanged."""
    if isinstance(value, dict) and isinstance(value.get("title"), list) and isinstance(value.get("sentences"), list):
        value = [list(pair) for pair in zip(value["title"], value["sentences"], strict=False)]
    if not isinstance(value, list) or not value:
        return _as_text(value)
    parts = [_part(part) for part in value]
    return value if None in parts else "\n\n".join(part for part in parts if part)


def _part(part: object) -> str | None:
    match part:
        case [str(title), list(sentences)] if all(isinstance(sentence, str) for sentence in sentences):
            return f"{title}\n{''.join(sentences)}"
        case {"title": str(title)} if isinstance(text := _as_text(part), str):
            return f"{title}\n{text}"
        case dict() if isinstance(text := _as_text(part), str):
            return text
    return None


def spelt(value: Any) -> Any:
    """Return the list or object that a text spells in JSON or Python syntax; any other value unchanged."""
    if not isinstance(value, str) or value.strip()[:1] + value.strip()[-1:] not in ("[]", "{}"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        # [1815] is more likely a text than a list of answers.
        return found if isinstance(found, dict) or all(isinstance(item, str | dict | list) for item in found) else value
    return value


def text_digest(text: str) -> str:
    """Return the sha256 of a text. Its first characters name a document without a ``doc_id``."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _as_text(value: object) -> object:
    """Return the text inside an object that holds one; any other value unchanged."""
    if isinstance(value, dict):
        return next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), value)
    return value


def _options(entry: Mapping[str, Any]) -> Sequence[str]:
    options = entry.get("options") or entry.get("choices")
    if isinstance(options, dict):
        options = options.get("text")
    if options is None and isinstance(entry.get("choice_A"), str):  # LongBench v2
        options = [entry.get(f"choice_{letter}") for letter in "ABCD"]
    return options if isinstance(options, list) and all(isinstance(option, str) for option in options) else ()


def _selected_option(answer: Any, options: Sequence[str], where: str) -> Any:
    """Return the option that a number (from 0 on) or a letter names; any other answer unchanged."""
    number = answer
    if isinstance(answer, str) and answer not in options and len(answer.strip()) == 1 and answer.strip().isalpha():
        number = ord(answer.strip().upper()) - ord("A")
    if not isinstance(number, int):
        return answer
    if not 0 <= number < len(options):
        raise _fault(f"answer {answer!r} is not one of {len(options)} options", where)
    return options[number]


def _check_characters(text: str, name: str, where: str) -> None:
    r"""Refuse unpaired surrogates, which JSON can spell (``"\ud83d"``) but no tokenizer and no file accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise _fault(f"field {name!r} has an unpaired surrogate ({code}, at {error.start})", where) from error


SourceFormat = Literal["auto", "jsonl", "csv", "parquet", "text", "documents", "hub", "longalpaca", "conversations"]

EMBEDDED_PREFIX = "embedded:"

ALIASES: dict[str, tuple[str, ...]] = {
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
"""The fields of a row, each with its names here and in common data sets (LongBench: input, _id)."""

RARER_ALIASES: dict[str, tuple[str, ...]] = {
    "context": ("passage", "article", "story", "content", "body", "page_content"),
    "questions": ("qas", "qa_pairs", "instructions"),
    "question": ("query", "instruction", "q"),
    "answers": ("output", "outputs", "response", "target", "completion", "a"),
    "id": ("qid", "question_id"),
}
"""Further names (Dolly: instruction, response; CoQA: story; L-Eval: instructions, outputs; SCROLLS: output)."""

PARTS = ("contexts", "paragraphs", "passages", "documents", "ctxs")
"""Columns with a list of texts that make one document, in rows without ``context`` (MuSiQue, RAGAS, DPR)."""


def aliases(name: str) -> tuple[str, ...]:
    """Return all names of a field in the order of precedence."""
    return ALIASES[name] + RARER_ALIASES.get(name, ())


class SourceSettings(RecipeModel):
    """The source of documents and questions."""

    path: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """A file (JSON lines or a JSON list, CSV, parquet, text, PDF, HTML, Word, EPUB), a folder of such files or of a
    data set's, a hub data set such as ``org/name``, or ``embedded:train`` / ``embedded:eval`` for the documents that
    come with the project."""
    format: SourceFormat = "auto"
    """How to read the source. ``auto`` decides by extension and content, and logs what it found. ``longalpaca`` (rows
    of instruction, input, output, file) and ``conversations`` (turns, or prompt and completion) name the shape of rows
    in a JSON, CSV, parquet or hub container. ``text`` reads the text files of a folder, and ``documents`` its tables
    and PDF, HTML, Word and EPUB files too."""
    encoding: Encoding | None = None
    """The encoding of tables, texts and pages that are not UTF-8, such as ``cp1252``. Files that say their encoding (a
    byte order mark, or a page) need none. JSON is always UTF-8."""
    questions: Annotated[str, OrPath()] | None = None
    """A second file (JSON, CSV or parquet) with questions by ``doc_id``, for documents that hold none or not all."""
    split: str | None = None
    """The split of a hub data set, or of a data set's folder. It may be left out if there is only one."""
    subset: str | None = None
    """The configuration of a hub data set that has several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The source's own columns for our fields, e.g. ``{context: passage}``."""
    join_tokens: Tokens | None = None
    """Join consecutive documents until they hold at least this many tokens, to make long contexts from shorter
    documents."""
    max_documents: int | None = Field(default=None, gt=0)
    """Take only this many documents, the first ones."""
    max_questions_per_document: int | None = Field(default=None, gt=0)
    """Take only this many questions of each document, the first ones."""
    kinds: list[QuestionKind] | None = None
    """Take only questions of these kinds."""

    @model_validator(mode="after")
    def _columns_are_fields(self) -> SourceSettings:
        unknown = [name for name in self.columns if name not in ALIASES]
        if unknown:
            raise ValueError(f"columns: {unknown[0]!r} is not a field, the fields are {', '.join(ALIASES)}")
        return self

    @property
    def file(self) -> Path:
        """The path as a :class:`Path`. It has no meaning for embedded documents."""
        return expand_home(self.path)
