"""Fields of a row under their several names, checked as they are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, get_args

from logodata.common.errors import UserError
from logodata.contract import QuestionKind
from logodata.sources.settings import ALIASES

_REQUIRED: Any = object()


class Fields:
    """Takes fields out of rows.

    Args:
        columns: names of the source's own columns for our fields.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._unseen = {column: name for name, column in columns.items()}

    def get(
        self,
        row: Mapping[str, Any],
        name: str,
        where: str,
        kind: type | tuple[type, ...],
        default: Any = _REQUIRED,
    ) -> Any:
        """The field ``name`` of a row; ``default`` where it is absent or null.

        Raises:
            UserError: it is required and absent, or of another type.
        """
        mapped = self._columns.get(name)
        for key in (mapped,) if mapped else ALIASES[name]:
            if mapped and key in row:
                self._unseen.pop(mapped, None)
            value = row.get(key)
            if value is None:
                continue
            # True is an int to Python, and no id to anybody.
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
                raise UserError(
                    f"field {key!r} is {type(value).__name__}, not {wanted}", where=where, mend="correct this line"
                )
            if isinstance(value, str):
                _check_characters(value, str(key), where)
            return value
        if default is _REQUIRED:
            names = mapped or "/".join(ALIASES[name])
            found = ", ".join(map(str, row)) or "nothing"
            raise UserError(
                f"no field {names!r}",
                where=where,
                mend=f"add it, or map a column: source.columns.{name}=YOUR_COLUMN; found: {found}",
            )
        return default

    def check_all_seen(self, where: str) -> None:
        """Raise a :class:`UserError` if a mapped column was in no row: it is misspelt."""
        for column, name in self._unseen.items():
            raise UserError(f"no row has a column {column!r}", where=where, mend=f"correct source.columns.{name}")

    def question(self, entry: Mapping[str, Any], default_id: str, where: str) -> dict[str, Any]:
        """The fields of a question; whether they make one is asked later."""
        answers = self.get(entry, "answers", where, (list, str), default=[])
        answers = [answers] if isinstance(answers, str) else answers
        if not all(isinstance(answer, str) for answer in answers):
            raise UserError("an answer is not a string", where=where, mend="correct this line")
        for answer in answers:
            _check_characters(answer, "answers", where)
        kind = str(self.get(entry, "kind", where, str, default="other"))
        return {
            "id": str(self.get(entry, "id", where, (str, int), default=default_id)),
            "question": self.get(entry, "question", where, str).strip(),
            "answers": [answer.strip() for answer in answers if answer.strip()],
            "kind": kind if kind in get_args(QuestionKind) else "other",
            "evidence": self.get(entry, "evidence", where, list, default=[]),
        }


def text_digest(text: str) -> str:
    """sha256 of a text; its start names documents without a ``doc_id``."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _check_characters(text: str, name: str, where: str) -> None:
    r"""JSON can spell half a character (``"\ud83d"``), which no tokenizer and no file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise UserError(
            f"field {name!r} holds half a character ({code}, at {error.start})", where=where, mend="correct this line"
        ) from error
