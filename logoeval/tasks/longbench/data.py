"""Read LongBench's rows from ``data.zip``, a folder of ``.jsonl`` files, one file of several tasks, or parquet files.

``datasets`` 4 and later refuse the hub's loading script, so this module reads the files directly. An archive is never
unpacked to disk, so no entry can write outside of a folder.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from logodata.common.errors import UserError
from logodata.common.foreign_files import note_left_out
from logodata.common.json_files import parse_json, placed_lines
from logodata.common.parquet import parquet_rows
from logodata.common.user_files import is_hidden, visible_files
from logoeval.tasks.longbench.task_table import E_SUFFIX, TASKS, Task, split_name

MAX_ARCHIVE_BYTES = 4 * 2**30
"""An archive that unpacks to more is refused, because its rows are held in memory."""

_MOST_WORDS = 2**53
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""The exceptions of zipfile for a damaged archive: RuntimeError for encryption and packing, ValueError for names."""

_A_LINE = "write one JSON object a line"
_AS_THEY_ARE = "give LongBench's rows as they are"
_HOW = "give the hub's data.zip, a folder of its .jsonl or .parquet files, or one such file"


JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """A question with its context and gold answers. ``length`` is the one that LongBench gives the row, in words, None
    if unknown; ``where`` is its file and line."""

    id: str
    input: str
    context: str
    answers: tuple[str, ...]
    length: int | None
    all_classes: tuple[str, ...] | None
    where: str


_Records = Iterator[tuple[str, JsonObject]]
"""The records of a file, each with its place; the file is read when the first one is taken."""


@lru_cache(maxsize=1)  # the settings of a run and the run itself both need these 200 MB of text
def read_rows(data: Path, tasks: tuple[str, ...] | None, e: bool) -> dict[str, tuple[Row, ...]]:
    """Read the rows of each task (named without ``_e``), in the order of the published tables, from an archive, a
    folder or a file. Without ``tasks`` all that are found are read; with ``e`` LongBench-E's files are read instead of
    LongBench's.

    Raises:
        UserError: there are no rows, a task is missing, or a row cannot be used.
    """
    found: dict[str, list[Row]] = {}
    for path, records in _files(data):
        hinted, hinted_e = hint = _hint(path)
        if hinted is not None and (hinted_e != e or (tasks is not None and hinted.name not in tasks)):
            continue
        for where, record in records:
            task, is_e = task_of(record.get("dataset"), hint, where)
            if is_e == e and (tasks is None or task.name in tasks):
                rows = found.setdefault(task.name, [])
                rows.append(_row(record, task, len(rows), where))
    missing = [name for name in tasks or () if name not in found]
    suffix = E_SUFFIX if e else ""
    if missing or not found:
        wanted = ", ".join(name + suffix for name in missing) or ("LongBench-E rows" if e else "LongBench rows")
        raise UserError(f"holds no {wanted}", where=str(data), mend=_HOW)
    return {name: _checked(TASKS[name], found[name]) for name in TASKS if name in found}


def fingerprint(rows: dict[str, tuple[Row, ...]]) -> str:
    """Return a hash, 16 hexadecimal digits, of everything in the rows that prompts and scores depend on."""
    digest = hashlib.sha256()
    for name, members in rows.items():
        for row in members:
            content = [name, row.id, row.input, row.context, row.answers, row.length, row.all_classes]
            digest.update(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _files(data: Path) -> Iterator[tuple[PurePosixPath, _Records]]:
    """Yield the path of each file inside data.zip or the folder, and what reads it."""
    if not data.exists():
        raise UserError("no such file or folder", where=str(data), mend=_HOW)
    if data.is_dir():
        # Only the first kind found is read: a folder often holds the archive and the files unpacked from it.
        for ending in (".jsonl", ".parquet", ".zip"):
            paths = sorted(visible_files(data, (ending,)))
            for path in paths:
                yield from _one_file(path, PurePosixPath(path.relative_to(data).as_posix()))
            if paths:
                note_left_out(data, paths, f"{ending} files")
                return
        raise UserError("holds no .jsonl, .parquet or .zip file", where=str(data), mend=_HOW)
    yield from _one_file(data, PurePosixPath(data.name))


def _one_file(path: Path, inner: PurePosixPath) -> Iterator[tuple[PurePosixPath, _Records]]:
    if path.suffix.lower() == ".zip":
        yield from _archive(path)
    elif path.suffix.lower() == ".jsonl":
        yield inner, read_lines(path)
    elif path.suffix.lower() == ".parquet":
        yield inner, parquet_rows(path, str(path), mend="download it again")
    else:
        raise UserError("not an archive or file of rows", where=str(path), mend=_HOW)


def _archive(path: Path) -> Iterator[tuple[PurePosixPath, _Records]]:
    try:
        with zipfile.ZipFile(path) as archive:
            named = ((info, PurePosixPath(info.filename)) for info in archive.infolist())
            infos = [info for info, place in named if place.suffix.lower() == ".jsonl" and not is_hidden(place)]
            names = sorted(info.filename for info in infos)
    except _DAMAGED as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="download it again") from error
    if not names:
        raise UserError("holds no .jsonl file", where=str(path), mend="give LongBench's data.zip")
    # zipfile reads at most the size that an entry declares; if there is more, the checksum fails.
    size = sum(info.file_size for info in infos)
    if size > MAX_ARCHIVE_BYTES:
        raise UserError(
            f"would unpack to {size / 2**30:.0f} GiB, LongBench has less than one",
            where=str(path),
            mend="download LongBench's data.zip again",
        )

    def records(name: str) -> _Records:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                yield from _parsed(file, f"{path}:{name}")
        except _DAMAGED as error:
            raise UserError(f"cannot read: {error}", where=f"{path}:{name}", mend="download it again") from error

    for name in names:
        yield PurePosixPath(name), records(name)


def read_lines(path: Path) -> _Records:
    """Yield ``(file:line, record)`` for each line of a JSON-lines file that is not empty. A line that is no JSON object
    raises a ``UserError``."""
    try:
        with open(path, "rb") as file:
            yield from _parsed(file, str(path))
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path), mend="check its name and rights") from error


def _parsed(file: IO[bytes], name: str) -> _Records:
    for where, line in placed_lines(file, name):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"not JSON: {error}", where=where, mend=_A_LINE) from error
        if not isinstance(record, dict):
            raise UserError(f"a JSON {type(record).__name__}, not an object", where=where, mend=_A_LINE)
        yield where, record


def _hint(path: PurePosixPath) -> tuple[Task | None, bool]:
    """Return the task that the name of a file, or of a folder around it, names, and whether it is LongBench-E's."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        task, is_e = split_name(part)
        if task is not None:
            return task, is_e
    return None, False


def task_of(name: object, hinted: tuple[Task | None, bool], where: str) -> tuple[Task, bool]:
    """Return the task of a line, and whether it is LongBench-E's, from the ``name`` in the line (None if there is none)
    and from what the name of its file says (``hinted``, see :func:`split_name`).

    Raises:
        UserError: neither names a task, or they name two.
    """
    task, is_e = split_name(name) if isinstance(name, str) else (None, False)
    file_task, file_e = hinted
    if file_task is not None and (name is None or task is file_task):
        return file_task, file_e or is_e
    mend = "name the file after its task, such as qasper.jsonl or qasper_e.jsonl"
    if file_task is not None:
        raise UserError(f"a line of {name!r} in a file of {file_task.name!r}", where=where, mend=mend)
    if task is None:
        raise UserError(f"not a LongBench task: {name!r}", where=where, mend=mend)
    return task, is_e


def _row(record: JsonObject, task: Task, number: int, where: str) -> Row:
    context, question = record.get("context"), record.get("input", record.get("question"))
    if not isinstance(context, str) or not isinstance(question, str):
        missing = "context" if not isinstance(context, str) else "input"
        raise UserError(f"no text under {missing!r}", where=where, mend=_AS_THEY_ARE)
    return Row(
        id=str(record.get("_id") or f"{task.name}-{number}"),
        input=question,
        context=context,
        answers=texts(record, "answers", where) or (),
        length=length_of(record),
        all_classes=texts(record, "all_classes", where),
        where=where,
    )


def length_of(record: JsonObject) -> int | None:
    """Return the length that LongBench gives a row, in words, or None if there is no valid number."""
    value = record.get("length")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if 0 <= value < _MOST_WORDS else None


def texts(record: JsonObject, key: str, where: str) -> tuple[str, ...] | None:
    """Return the strings under ``key``, which may be a list or one string; None if there are none. Anything else raises
    a ``UserError``."""
    value = record.get(key)
    if value is None:
        return None
    given = value if isinstance(value, list | tuple) else [value]
    found = tuple(text for text in given if isinstance(text, str))
    if len(found) < len(given):
        raise UserError(f"{key!r} is not a list of texts", where=where, mend=_AS_THEY_ARE)
    return found or None


def _checked(task: Task, rows: Sequence[Row]) -> tuple[Row, ...]:
    seen: dict[str, Row] = {}
    classes = next((row.all_classes for row in rows if row.all_classes), None)
    for row in rows:
        if row.id in seen:
            raise UserError(
                f"{task.name}: _id {row.id!r} is at {seen[row.id].where} too",
                where=row.where,
                mend="drop one of the two rows",
            )
        check_answers(task, row.answers, row.all_classes or classes, row.where)
        seen[row.id] = row
    # All rows of a task have the same classes, but mirrors lack them in some rows.
    return tuple(replace(row, all_classes=row.all_classes or classes) for row in rows)


def check_answers(task: Task, answers: Sequence[str], all_classes: Sequence[str] | None, where: str) -> None:
    """Raise a ``UserError`` if the metric of the task cannot use the gold answers: there is none, or a paragraph number
    or the list of classes is missing."""
    if not answers:
        raise UserError("no gold answers", where=where, mend=_AS_THEY_ARE)
    mark = {"retrieval": "Paragraph ", "retrieval_zh": "段落"}.get(task.metric)
    for answer in answers:
        place = answer.find(mark) if mark else 0
        if mark and (place < 0 or not answer[place + len(mark) : place + len(mark) + 1].isdecimal()):
            raise UserError(
                f"{task.name}: the answer {answer!r} names no paragraph",
                where=where,
                mend="is this a row of another task?",
            )
    if task.metric == "classification" and not all_classes:
        raise UserError(f"{task.name} needs all_classes", where=where, mend=_AS_THEY_ARE)
