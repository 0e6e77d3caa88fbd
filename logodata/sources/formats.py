"""Detect the format of ``source.path``, and read its rows in our own fields."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from logodata.common.errors import UserError
from logodata.common.files import file_sha256
from logodata.common.foreign_files import check_is_text, count_endings, how_to_convert, is_beside_data, note_left_out
from logodata.common.parquet import parquet_rows
from logodata.common.user_files import expand_home, visible_files
from logodata.sources.conversations import (
    COLUMNS,
    Shape,
    columns_of,
    from_conversation,
    from_longalpaca,
    from_squad,
    kind_of,
    shape_of,
)
from logodata.sources.csv_rows import SUFFIXES as CSV_SUFFIXES
from logodata.sources.csv_rows import csv_rows
from logodata.sources.fields import EMBEDDED_PREFIX, SourceSettings, aliases, column_of
from logodata.sources.json_rows import Row, json_rows
from logodata.sources.tables import hub_files, hub_rows, load_hub
from logodata.sources.text_files import SUFFIXES, files_of, text_rows

Container = Literal["jsonl", "csv", "parquet", "text", "hub"]

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_TABLE_SUFFIXES = (".parquet", *_JSON_SUFFIXES, *CSV_SUFFIXES, ".arrow")
_SUFFIXES: Mapping[str, tuple[str, ...]] = {"text": SUFFIXES, "csv": CSV_SUFFIXES}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WRITE_AGAIN = "write the file again"


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that can be read as often as needed. Each call of ``rows`` starts at the first row."""

    rows: Callable[[], Iterator[Row]]
    container: Container
    shape: Shape
    columns: Mapping[str, str]
    """The rows' columns for our fields, where they differ from :data:`ALIASES`."""


def open_source(settings: SourceSettings) -> Opened:
    """Detect the format of ``settings.path``. With ``format: auto`` a note says what was found.

    Raises:
        UserError: There is no such source, or its format is not supported.
    """
    from logodata.common.console import note

    container = _container(settings)
    if container != "hub":
        for name in ("split", "subset"):
            if getattr(settings, name) is not None:
                mend = f"drop source.{name}, or set source.format=hub"
                raise UserError(f"a source of format {container} has no {name}", where=settings.path, mend=mend)
    rows = _raw_rows(settings, container)
    _note_left_out(settings, container)
    first = next(rows(), None)
    shape: Shape = "plain"
    if settings.format in ("longalpaca", "conversations"):
        shape = settings.format
    elif first is not None and not settings.columns and container != "text":
        shape = shape_of(first[1])
    columns = settings.columns
    if container == "text" and settings.questions is not None:
        columns = {}  # they belong to the questions' file
    if columns and (shape != "plain" or container == "text"):
        read = shape if shape != "plain" else container
        raise UserError(f"source.columns has no meaning for {read}", where=settings.path, mend="drop it")
    if first is not None and shape == "plain" and container != "text":
        columns = {**columns_of(first[1]), **columns}
    if settings.format == "auto" and not settings.path.startswith(EMBEDDED_PREFIX):
        found = f", rows as {shape}" if shape != "plain" else _column_note(first[1], columns) if first else ""
        note(f"{settings.path}: read as {container}{found}")
    return Opened(_shaped(rows, shape, kind_of(settings.path)), container, shape, columns)


def _shaped(rows: Callable[[], Iterator[Row]], shape: Shape, kind: str) -> Callable[[], Iterator[Row]]:
    """Return a reader of the rows in our own fields."""
    if shape == "longalpaca":
        return lambda: ((where, from_longalpaca(row, where)) for where, row in rows())
    if shape == "conversations":
        return lambda: ((where, from_conversation(row, where, kind)) for where, row in rows())
    if shape == "squad":
        return lambda: ((where, document) for where, row in rows() for document in from_squad(row, where))
    return rows


def _column_note(row: Mapping[str, object], columns: Mapping[str, str]) -> str:
    """Return from which column each field is read, where the name differs, and which other columns it could be."""
    taken = []
    used = set(columns.values())
    for field in ("context", "question", "questions", "answers"):
        names = (columns[field],) if field in columns else aliases(field)
        found = [key for name in names if (key := column_of(row, name)) is not None and row[key] not in (None, "")]
        others = [repr(key) for key in found[1:] if key not in used]
        if found and (others or found[0] != field):
            taken.append(f"{field} from {found[0]!r}" + (f", not {', '.join(others)}" if others else ""))
    return f", {'; '.join(taken)}" if taken else ""


def _note_left_out(settings: SourceSettings, container: Container) -> None:
    """Print a note on the files of a folder that are not read."""
    folder = settings.file
    if not folder.is_dir():
        return
    if suffixes := _SUFFIXES.get(container):
        note_left_out(folder, files_of(folder, suffixes), f"{' and '.join(suffixes)} files")
    elif settings.subset is None and (files := hub_files(folder)):
        note_left_out(folder, files, f"{' and '.join(sorted({file.suffix for file in files}))} files")


def open_questions(settings: SourceSettings) -> Callable[[], Iterator[Row]]:
    """Return a reader of the rows in the second file of questions.

    Raises:
        UserError: There is no such file, or it is not a text or parquet file.
    """
    assert settings.questions is not None
    shown, file = settings.questions, expand_home(settings.questions)
    if not file.is_file():
        raise UserError("no such file", where=shown, mend="source.questions is a JSON, CSV or parquet file")
    if _is_parquet(file):
        return lambda: parquet_rows(file, shown, mend=_WRITE_AGAIN)
    check_is_text(file, shown, markup=True)
    if file.suffix.lower() in CSV_SUFFIXES:
        return lambda: csv_rows(file, shown, settings.columns)
    return lambda: json_rows(file, shown)


def source_fingerprint(settings: SourceSettings) -> str:
    """Return the first 16 hex digits of the sha256 of what is read. A build is bound to it.

    For a single file it is the file's own sha256. Several files (a folder, a hub data set, the questions' file) are
    hashed as a list of their hashes and names.
    """
    container, folder = _container(settings), settings.file
    if container == "text":
        files = [(file, file.relative_to(folder)) for file in files_of(folder)]
    elif container == "csv":
        found = files_of(folder, CSV_SUFFIXES)
        files = [(file, file.relative_to(folder) if len(found) > 1 else Path()) for file in found]
    elif container != "hub":
        files = [(source_file(settings.path), Path())]
    elif folder.is_dir():
        files = [(file, file.relative_to(folder)) for file in sorted(visible_files(folder))]
    else:
        dataset, split = load_hub(settings.path, settings.subset, settings.split)
        files = [(Path(part["filename"]), Path(split)) for part in dataset.cache_files]
    if settings.questions is not None:
        open_questions(settings)
        files.append((expand_home(settings.questions), Path("questions")))
    digests = [file_sha256(file) for file, _ in files]
    if len(digests) == 1:
        return digests[0][:16]
    listed = "".join(f"{digest} {name.as_posix()}\n" for digest, (_, name) in zip(digests, files, strict=True))
    return hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]


def check_outside(settings: SourceSettings, output: Path) -> None:
    """Refuse an output inside the folder that is read, because the next reading would take it for documents.

    Raises:
        UserError: ``output`` is the source's folder, or lies inside it.
    """
    if settings.file.is_dir() and output.resolve().is_relative_to(settings.file.resolve()):
        what = "-o is inside the source's folder, and would be read as documents"
        raise UserError(what, where=str(output), mend=f"give an -o outside of {settings.path}")


def source_file(path: str) -> Path:
    """Return the file that ``path`` names.

    Raises:
        UserError: There is no such file.
    """
    if path.startswith(EMBEDDED_PREFIX):
        name = path.removeprefix(EMBEDDED_PREFIX)
        if name not in ("train", "eval"):
            mend = "there are embedded:train and embedded:eval"
            raise UserError(f"no embedded documents {name!r}", where=path, mend=mend)
        return Path(str(resources.files("logodata.sources"))) / "embedded" / f"{name}.jsonl"
    file = expand_home(path)
    if not file.is_file():
        mend = "give a file, a folder of text files, a hub data set (source.format=hub), or embedded:train"
        raise UserError("is a folder" if file.is_dir() else "no such file", where=path, mend=mend)
    return file


def _container(settings: SourceSettings) -> Container:
    path, file = settings.path, settings.file
    if path.startswith(EMBEDDED_PREFIX) or settings.format == "jsonl":
        check_is_text(source_file(path), path, markup=True)
        return "jsonl"
    if settings.format == "hub":
        return "hub"
    if settings.format == "parquet":
        source_file(path)
        return "parquet"
    if settings.format in ("text", "csv"):
        if not file.exists():
            source_file(path)
        suffixes = _SUFFIXES[settings.format]
        if not files_of(file, suffixes):
            mend = f"files end in {' or '.join(suffixes)}"
            raise UserError(f"holds no {settings.format} file", where=path, mend=mend)
        if file.is_file():
            check_is_text(file, path)
        return settings.format
    if file.is_dir():
        return _folder(file, path)
    if not file.exists() and _HUB_NAME.fullmatch(path) and file.suffix not in (*_TABLE_SUFFIXES, *SUFFIXES):
        return "hub"
    source_file(path)
    if _is_parquet(file):
        return "parquet"
    check_is_text(file, path, markup=file.suffix.lower() in _JSON_SUFFIXES)
    if file.suffix.lower() in CSV_SUFFIXES:
        return "csv"
    if file.suffix.lower() in SUFFIXES:
        return "text"
    with open(file, "rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.suffix.lower() in _JSON_SUFFIXES or head[:1] in (b"{", b"["):
        return "jsonl"
    how = how_to_convert([file.suffix.lower()])
    mend = f"turn it into text first: {how}" if how else "set source.format: jsonl, csv, parquet or text"
    raise UserError("its format cannot be recognised", where=path, mend=mend)


def _folder(folder: Path, path: str) -> Container:
    tables = list(visible_files(folder, _TABLE_SUFFIXES))
    # Beside tables a README is not a document; in a folder of texts it may be one.
    has_text = any(not (tables and is_beside_data(file)) for file in files_of(folder))
    form: Container = "csv" if all(file.suffix.lower() in CSV_SUFFIXES for file in tables) else "hub"
    if has_text and tables:
        mend = f"set source.format=text or {form}, or give one of the files"
        raise UserError("holds text files and tables", where=path, mend=mend)
    if not has_text and not tables:
        others = [file for file in visible_files(folder) if not is_beside_data(file)]
        how = how_to_convert(sorted({file.suffix.lower() for file in others}))
        mend = f"turn them into text first: {how}" if how else f"give a folder of {', '.join(SUFFIXES)} or data files"
        raise UserError(f"holds no documents (files: {count_endings(others) or 'none'})", where=path, mend=mend)
    return "text" if has_text else form


def _raw_rows(settings: SourceSettings, container: Container) -> Callable[[], Iterator[Row]]:
    path = settings.path
    wanted = {*COLUMNS, *settings.columns.values()}
    wanted |= {form for name in wanted for form in (name.capitalize(), name.upper())}
    if container == "jsonl":
        file = source_file(path)
        return lambda: json_rows(file, path)
    if container == "csv":
        files = files_of(settings.file, CSV_SUFFIXES)
        shown = {file: path if len(files) == 1 else str(file) for file in files}
        return lambda: (row for file in files for row in csv_rows(file, shown[file], settings.columns))
    if container == "parquet":
        return lambda: parquet_rows(settings.file, path, mend=_WRITE_AGAIN, wanted=wanted)
    if container == "text":
        return lambda: text_rows(settings.file)
    dataset, split = load_hub(path, settings.subset, settings.split)
    return lambda: hub_rows(dataset, f"{path}[{split}]", wanted)


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as handle:
        return file.suffix.lower() == ".parquet" or handle.read(4) == b"PAR1"
