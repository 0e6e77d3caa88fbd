"""Read LongBench v2's questions from files or from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.foreign_files import note_left_out
from logodata.common.json_files import parse_json
from logodata.common.parquet import parquet_rows
from logodata.common.user_files import expand_home, read_bytes, visible_files
from logodata.sources.discovery import may_be_on_hub
from logodata.sources.tables import load_hub
from logoeval.tasks.longbench.data import read_lines

NUM_QUESTIONS = 503
CHOICES = ("A", "B", "C", "D")

_MOST_BYTES = 2**31
_AS_THEY_ARE = "give LongBench v2's rows as they are"
_HOW = "give LongBench v2's data.json, a .jsonl or .parquet file of its rows, a folder of them, or zai-org/LongBench-v2"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four choices. ``where`` is its file and row."""

    id: str
    domain: str
    sub_domain: str
    difficulty: str
    length: str
    question: str
    choices: tuple[str, ...]
    answer: str
    context: str
    where: str

    @property
    def facts(self) -> dict[str, object]:
        """The groups by which the score is reported."""
        return groups(self.difficulty, self.length, self.domain, self.sub_domain)


def groups(difficulty: str, length: str, domain: str, sub_domain: str) -> dict[str, object]:
    """Return the groups by which the score of a question is reported. As officially, what is not easy is hard, and what
    is neither short nor medium is long."""
    return {
        "difficulty": "easy" if difficulty == "easy" else "hard",
        "text_length": length if length in ("short", "medium") else "long",
        "domain": domain,
        "sub_domain": sub_domain,
    }


@lru_cache(maxsize=1)  # the settings of a run and the run itself both need this text of 465 MB
def read_questions(data: str, most: int | None) -> tuple[Question, ...]:
    """Read the questions, or the first ``most``.

    Raises:
        UserError: There are none, a row lacks a field, names no choice as its answer, or repeats an id.
    """
    found: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in _rows(data):
        question = _question(row, where)
        add_id(seen, question.id, where)
        found.append(question)
        if len(found) == most:
            break
    if not found:
        raise UserError("holds no questions", where=data, mend=_HOW)
    return tuple(found)


def fingerprint(questions: tuple[Question, ...]) -> str:
    """Return a hash, 16 hexadecimal digits, of everything in the questions, wherever they lie."""
    digest = hashlib.sha256()
    names = [field.name for field in fields(Question) if field.name != "where"]
    for question in questions:
        content = [getattr(question, name) for name in names]
        digest.update(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def data_path(data: str) -> Path | None:
    """Return the path that ``data`` is, which must be there; None for the name of a hub data set."""
    path = expand_home(data)
    if path.exists():
        return path
    if may_be_on_hub(data):
        return None
    raise UserError("no such file or folder", where=data, mend=_HOW)


def _rows(data: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    path = data_path(data)
    if path is None:
        dataset, split = load_hub(data, None, "train")
        yield from ((f"{data}[{split}]:row {number}", row) for number, row in enumerate(dataset, 1))
        return
    if path.is_dir():
        for ending in (".json", ".jsonl", ".parquet"):  # one kind: a folder may hold the same rows in two
            files = sorted(visible_files(path, (ending,)))
            for file in files:
                yield from _file(file)
            if files:
                note_left_out(path, files, f"{ending} files")
                return
        raise UserError("holds no .json, .jsonl or .parquet file", where=data, mend=_HOW)
    yield from _file(path)


def _file(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from read_lines(path)
    elif suffix == ".parquet":
        yield from parquet_rows(path, str(path), mend="download it again")
    elif suffix == ".json":
        try:
            value = parse_json(read_bytes(path, most_bytes=_MOST_BYTES, mend=_HOW))
        except ValueError as error:
            raise UserError(f"not JSON: {error}", where=str(path), mend="download it again") from error
        if not isinstance(value, list):
            raise UserError("not a list of rows", where=str(path), mend=_HOW)
        yield from ((f"{path}:row {number}", row) for number, row in enumerate(value, 1))
    else:
        raise UserError("not a file of rows", where=str(path), mend=_HOW)


def text_of(row: object, name: str, where: str) -> str:
    """Return the text of a field. A row without it raises a ``UserError``."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise UserError(f"no text under {name!r}", where=where, mend=_AS_THEY_ARE)
    return value


def answer_of(row: object, where: str) -> str:
    """Return the letter of the right choice. A row without one raises a ``UserError``."""
    answer = text_of(row, "answer", where)
    if answer not in CHOICES:
        raise UserError(f"the answer {answer!r} is none of A, B, C and D", where=where, mend=_AS_THEY_ARE)
    return answer


def add_id(seen: dict[str, str], name: str, where: str) -> None:
    """Add an id with its place to those that were seen. One that is there raises a ``UserError``."""
    if name in seen:
        raise UserError(f"_id {name!r} is at {seen[name]} too", where=where, mend="drop one of the two rows")
    seen[name] = where


def notes_of_count(number: int) -> Iterator[str]:
    """Say whether some of the benchmark's questions are missing."""
    if number != NUM_QUESTIONS:
        yield f"{number:,} questions, where LongBench v2 has {NUM_QUESTIONS}: no official score"


def _question(row: object, where: str) -> Question:
    def text(name: str) -> str:
        return text_of(row, name, where)

    answer = answer_of(row, where)
    return Question(
        id=text("_id"),
        domain=text("domain"),
        sub_domain=text("sub_domain"),
        difficulty=text("difficulty"),
        length=text("length"),
        question=text("question"),
        choices=tuple(text(f"choice_{letter}") for letter in CHOICES),
        answer=answer,
        context=text("context"),
        where=where,
    )
