"""Detect the format of ``source.path``, and read its rows in our own fields."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Literal

from logodata.common.errors import UserError
from logodata.common.files import file_sha256
from logodata.common.foreign_files import (
    check_head,
    check_is_text,
    count_endings,
    how_to_convert,
    is_beside_data,
    note_left_out,
)
from logodata.common.packed_files import PACKED_SUFFIXES, open_unpacked, packing, text_suffix
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
from logodata.sources.converters import SUFFIXES as CONVERTED_SUFFIXES
from logodata.sources.converters import check_installed, versions
from logodata.sources.csv_rows import SUFFIXES as CSV_SUFFIXES
from logodata.sources.csv_rows import csv_form, csv_rows
from logodata.sources.document_files import SUFFIXES, TEXT_SUFFIXES, document_rows, files_of
from logodata.sources.fields import EMBEDDED_PREFIX, PARTS, SourceSettings, aliases, column_of, names_of
from logodata.sources.json_rows import Row, json_rows
from logodata.sources.tables import NAME_SPLIT, choose_split, hub_files, hub_rows, load_hub

Container = Literal["jsonl", "csv", "parquet", "text", "documents", "hub"]
Rows = Callable[[], Iterator[Row]]
"""Reads rows, as often as it is called."""

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_PLAIN_TABLES = (*_JSON_SUFFIXES, *CSV_SUFFIXES)
TABLE_SUFFIXES = (".parquet", *_PLAIN_TABLES, ".arrow")
_SUFFIXES: Mapping[str, tuple[str, ...]] = {"text": TEXT_SUFFIXES, "documents": SUFFIXES, "csv": CSV_SUFFIXES}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLITS = frozenset(("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"))
"""Names of splits, by which ``datasets`` finds them in a folder."""

_WRITE_AGAIN = "write the file again"
_NAME_FORMAT = "set source.format=jsonl, csv, parquet, text or documents"
_A_TABLE = "give a JSON, CSV or parquet file, named by its ending, or a data set"


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that can be read as often as needed. Each call of ``rows`` starts at the first row."""

    rows: Rows
    container: Container
    shape: Shape
    columns: Mapping[str, str]
    """The rows' columns for our fields, where they differ from :data:`ALIASES`."""
    questions: Rows | None = None
    """Reads questions on the documents, by ``doc_id``, where they stand apart from them."""
    holds_questions: bool = True
    """False for files of documents alone."""
    num_converted: int = 0
    """The number of files that are converted, which takes time."""


def open_source(settings: SourceSettings) -> Opened:
    """Detect the format of ``settings.path``. With ``format: auto`` a note says what was found.

    Raises:
        UserError: There is no such source, or its format is not supported.
    """
    from logodata.common.console import note

    container = _container(settings)
    for name in ("split", "subset"):
        if getattr(settings, name) is not None and not _may_have(name, settings, container):
            mend = f"drop source.{name}, or set source.format=hub"
            raise UserError(f"a source of format {container} has no {name}", where=settings.path, mend=mend)
    if container in ("text", "documents"):
        return _open_documents(settings, container)
    rows = _raw_rows(settings, container)
    _note_left_out(settings, container)
    first = next(rows(), None)
    shape: Shape = "plain"
    if settings.format in ("longalpaca", "conversations"):
        shape = settings.format
    elif first is not None and not settings.columns:
        shape = shape_of(first[1])
    columns = settings.columns
    if columns and shape != "plain":
        raise UserError(f"source.columns has no meaning for {shape}", where=settings.path, mend="drop it")
    if first is not None and shape == "plain":
        columns = {**columns_of(first[1]), **columns}
    if settings.format == "auto" and not settings.path.startswith(EMBEDDED_PREFIX):
        found = f", rows as {shape}" if shape != "plain" else _column_note(first[1], columns) if first else ""
        note(f"{settings.path}: read as {container}{_form(settings, container)}{found}")
    questions = open_questions(settings) if settings.questions is not None else None
    return Opened(_shaped(rows, shape, kind_of(settings.path)), container, shape, columns, questions)


def _may_have(name: str, settings: SourceSettings, container: Container) -> bool:
    """Whether a source may have a ``split`` or a ``subset``. A folder of CSV tables has splits by their names."""
    return container == "hub" or (name == "split" and container == "csv" and settings.file.is_dir())


def _open_documents(settings: SourceSettings, container: Container) -> Opened:
    """Open files of one document each, and the tables beside them. A table with documents gives more of them, and one
    that names documents has questions on them."""
    from logodata.common.console import note

    folder, encoding = settings.file, settings.encoding
    files, tables = _documents_and_tables(settings, container)
    check_installed({file.suffix.lower() for file in files} & set(CONVERTED_SUFFIXES))
    if settings.columns and not tables and settings.questions is None:
        raise UserError(f"source.columns has no meaning for {container}", where=settings.path, mend="drop it")
    if folder.is_dir():
        read = "tables and " * (container == "documents") + f"{' and '.join(_SUFFIXES[container])} files"
        note_left_out(folder, [*files, *tables], read)
    if settings.format == "auto":
        form = f": {count_endings([*files, *tables])}" if container == "documents" else ""
        note(f"{settings.path}: read as {container}{form}")
    documents: list[Rows] = [lambda: document_rows(folder, files, encoding)]
    questions = [open_questions(settings)] if settings.questions is not None else []
    for table in tables:
        rows, holds_documents = _open_table(settings, table)
        (documents if holds_documents else questions).append(rows)
    asked = (lambda: (row for rows in questions for row in rows())) if questions else None
    every = lambda: (row for rows in documents for row in rows())  # noqa: E731
    num_converted = sum(file.suffix.lower() in CONVERTED_SUFFIXES for file in files)
    holds_questions = bool(tables) or asked is not None
    return Opened(every, container, "plain", settings.columns, asked, holds_questions, num_converted)


def _open_table(settings: SourceSettings, table: Path) -> tuple[Rows, bool]:
    """Return the rows of a table in a folder of documents, and whether they are documents too, or questions on some.

    Raises:
        UserError: They are neither, or there are none.
    """
    path = str(table)
    opened = open_source(settings.model_copy(update={"path": path, "format": "auto", "questions": None}))
    first = next(opened.rows(), None)
    if first is None:
        raise UserError("a table without rows", where=path, mend="leave it out, or write some")
    columns, row = opened.columns, first[1]

    def has(field: str, *others: str) -> bool:
        names = (columns[field],) if field in columns else (*aliases(field), *others)
        return any(column_of(row, name) is not None for name in names)

    holds_documents = has("context", *PARTS)
    if not holds_documents and not has("doc_id"):
        mend = "source.columns.context=COLUMN names the column of documents, source.columns.doc_id=COLUMN that of files"
        what = "a table without documents (context), and without names of files (doc_id)"
        raise UserError(what, where=path, mend=f"{mend}; found: {names_of(row)}")
    own = {column: field for field, column in columns.items() if field not in settings.columns}
    if not own:
        return opened.rows, holds_documents
    # Only this table has them, so they get the names that all rows have.
    return lambda: ((w, {own.get(k.lower(), k): v for k, v in row.items()}) for w, row in opened.rows()), True


def _form(settings: SourceSettings, container: Container) -> str:
    """Return in words how the one file of a source is read: what it is compressed with, a table's separator."""
    found = []
    if container in ("jsonl", "csv") and settings.file.is_file() and not settings.path.startswith(EMBEDDED_PREFIX):
        found += [packing(settings.file)]
        if container == "csv":
            found += [csv_form(settings.file, settings.path, settings.columns, settings.encoding)]
    form = ", ".join(filter(None, found))
    return f" ({form})" if form else ""


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
    if container == "csv":
        of_split = f" of split {settings.split}" if settings.split else ""
        note_left_out(folder, _csv_files(settings), f"{' and '.join(_SUFFIXES[container])} files{of_split}")
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
    _check_text(file, shown, markup=True)
    if text_suffix(file) in CSV_SUFFIXES:
        return lambda: csv_rows(file, shown, settings.columns, settings.encoding)
    return lambda: json_rows(file, shown)


def source_fingerprint(settings: SourceSettings) -> str:
    """Return the first 16 hex digits of the sha256 of what is read. A build is bound to it.

    For a single file it is the file's own sha256. Several files (a folder, a hub data set, the questions' file) are
    hashed as a list of their hashes and names, and with the versions of the libraries that convert some of them.
    """
    container, folder = _container(settings), settings.file
    converted: set[str] = set()
    if container in ("text", "documents"):
        documents, tables = _documents_and_tables(settings, container)
        files = [(file, file.relative_to(folder)) for file in (*documents, *tables)]
        converted = {file.suffix.lower() for file in documents} & set(CONVERTED_SUFFIXES)
    elif container == "csv":
        found = _csv_files(settings)
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
    if len(digests) == 1 and not converted:
        return digests[0][:16]
    listed = versions(converted) + "".join(
        f"{digest} {name.as_posix()}\n" for digest, (_, name) in zip(digests, files, strict=True)
    )
    return hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]


def check_outside(settings: SourceSettings, output: Path) -> None:
    """Refuse an output inside the folder that is read, because the next reading would take it for documents.

    Raises:
        UserError: ``output`` is the source's folder, or lies inside it.
    """
    if settings.file.is_dir() and output.resolve().is_relative_to(settings.file.resolve()):
        what = "-o is inside the source's folder, and would be read as documents"
        raise UserError(what, where=str(output), mend=f"give an -o outside of {settings.path}")


def may_be_on_hub(path: str) -> bool:
    """Return whether a path can be the name of a hub data set, ``org/name``, and not that of a file."""
    return _HUB_NAME.fullmatch(path) is not None and Path(path).suffix not in (*TABLE_SUFFIXES, *SUFFIXES)


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


def _container(settings: SourceSettings, otherwise: str = _NAME_FORMAT) -> Container:
    """Return what the rows or documents lie in. ``otherwise`` says what to do where that cannot be recognised."""
    path, file = settings.path, settings.file
    if path.startswith(EMBEDDED_PREFIX) or settings.format == "jsonl":
        _check_text(source_file(path), path, markup=True)
        return "jsonl"
    if settings.format == "hub":
        return "hub"
    if settings.format == "parquet":
        source_file(path)
        return "parquet"
    if settings.format in ("text", "csv", "documents"):
        if not file.exists():
            source_file(path)
        suffixes = _SUFFIXES[settings.format]
        if not files_of(file, suffixes):
            mend = f"files end in {' or '.join(suffixes)}"
            raise UserError(f"holds no {settings.format} file", where=path, mend=mend)
        if file.is_file() and settings.format != "documents":
            _check_text(file, path)
        return settings.format
    if file.is_dir():
        return _folder(file, path)
    if not file.exists() and may_be_on_hub(path):
        return "hub"
    source_file(path)
    if _is_parquet(file):
        return "parquet"
    suffix = text_suffix(file)
    if file.suffix.lower() in CONVERTED_SUFFIXES:
        return "documents"
    _check_text(file, path, markup=suffix in _JSON_SUFFIXES)
    if suffix in CSV_SUFFIXES:
        return "csv"
    if suffix in TEXT_SUFFIXES:
        return "text"
    with open(file, "rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _JSON_SUFFIXES or head[:1] in (b"{", b"["):
        return "jsonl"
    how = how_to_convert([file.suffix.lower()])
    mend = f"turn it into text first: {how}" if how else otherwise
    raise UserError("its format cannot be recognised", where=path, mend=mend)


def _folder(folder: Path, path: str) -> Container:
    tables = tables_in(folder)
    files = _documents_in(folder, SUFFIXES, tables)
    if not files and not tables:
        others = [file for file in visible_files(folder) if not is_beside_data(file)]
        how = how_to_convert(sorted({file.suffix.lower() for file in others}))
        mend = f"turn them into text first: {how}" if how else f"give a folder of {', '.join(SUFFIXES)} or data files"
        raise UserError(f"holds no documents (files: {count_endings(others) or 'none'})", where=path, mend=mend)
    if files:
        is_text = not tables and all(file.suffix.lower() in TEXT_SUFFIXES for file in files)
        return "text" if is_text else "documents"
    if all(file.suffix.lower() in CSV_SUFFIXES for file in tables):
        return "csv"
    return "documents" if any(file.suffix.lower() in PACKED_SUFFIXES for file in tables) else "hub"


def _documents_and_tables(settings: SourceSettings, container: Container) -> tuple[list[Path], list[Path]]:
    """Return the files of one document each, and the tables that are read with them."""
    tables = tables_in(settings.file) if container == "documents" and settings.file.is_dir() else []
    return _documents_in(settings.file, _SUFFIXES[container], tables), tables


def _documents_in(path: Path, suffixes: tuple[str, ...], tables: list[Path]) -> list[Path]:
    # Beside tables a README is not a document; in a folder of texts it may be one.
    return [file for file in files_of(path, suffixes) if not (tables and is_beside_data(file))]


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder and its subfolders, compressed ones too, sorted by path. No file is opened."""
    found = set(visible_files(folder, TABLE_SUFFIXES))
    found |= {file for file in visible_files(folder, PACKED_SUFFIXES) if text_suffix(file) in _PLAIN_TABLES}
    return sorted(file for file in found if not is_beside_data(file))


def _check_text(file: Path, shown: str, *, markup: bool = False) -> None:
    """Refuse a file that is not plain text. A table may be compressed."""
    if text_suffix(file) not in _PLAIN_TABLES:
        check_is_text(file, shown, markup=markup, read=CONVERTED_SUFFIXES)
        return
    with open_unpacked(file, shown) as handle:
        check_head(handle.read(8192), text_suffix(file), shown, markup=markup, read=CONVERTED_SUFFIXES)


def open_rows(
    settings: SourceSettings, columns: Mapping[str, str], name_split: str
) -> tuple[Callable[[], Iterator[Row]], Container]:
    """Return a reader of the rows of a table as they are, for records other than documents, and what they lie in.

    ``columns`` are the table's own columns for the caller's fields. ``name_split`` says how the caller's user names a
    split.

    Raises:
        UserError: There is no such table, or it is of no known format.
    """
    folder = settings.file
    tables = tables_in(folder)
    if folder.is_dir() and not tables:
        files = count_endings(visible_files(folder)) or "none"
        raise UserError(f"holds no table (files: {files})", where=settings.path, mend=_A_TABLE)
    container = _container(settings, otherwise=_A_TABLE)
    if container == "documents" and not _documents_in(folder, SUFFIXES, tables):
        # Compressed tables, which the hub's library does not read from a folder.
        parts = [
            settings.model_copy(update={"path": str(file), "split": None})
            for file in _of_split(tables, settings, name_split)
        ]
        opened = [open_rows(part, columns, name_split) for part in parts]
        if len(found := {inner for _, inner in opened}) == 1:
            return lambda: (row for rows, _ in opened for row in rows()), found.pop()
    if container in ("text", "documents"):
        raise UserError("documents, not a table", where=settings.path, mend=_A_TABLE)
    if settings.subset is not None and container != "hub":
        raise UserError(f"a table of format {container} has no subset", where=settings.path, mend="leave subset out")
    return _raw_rows(settings, container, columns, (), name_split), container


def _raw_rows(
    settings: SourceSettings,
    container: Container,
    columns: Mapping[str, str] | None = None,
    wanted: Collection[str] = COLUMNS,
    name_split: str = NAME_SPLIT,
) -> Callable[[], Iterator[Row]]:
    path = settings.path
    columns = settings.columns if columns is None else columns
    names = {name.strip().lower() for name in (*wanted, *columns.values())} if wanted else None
    if container == "jsonl":
        file = source_file(path)
        return lambda: json_rows(file, path)
    if container == "csv":
        files = _csv_files(settings, name_split)
        shown = {file: path if len(files) == 1 else str(file) for file in files}
        encoding, as_text = settings.encoding, names is None  # other records than documents have their own lists
        return lambda: (
            row for file in files for row in csv_rows(file, shown[file], columns, encoding, as_text=as_text)
        )

    def is_wanted(column: str) -> bool:  # as column_of finds it
        return names is None or column.strip().lower() in names

    if container == "parquet":
        return lambda: parquet_rows(settings.file, path, mend=_WRITE_AGAIN, wanted=is_wanted)
    dataset, split = load_hub(path, settings.subset, settings.split, name_split)
    return lambda: hub_rows(dataset, f"{path}[{split}]", is_wanted)


def _csv_files(settings: SourceSettings, name_split: str = NAME_SPLIT) -> list[Path]:
    """Return the CSV tables that are read: a file, or those of a folder's split."""
    files = files_of(settings.file, CSV_SUFFIXES)
    return _of_split(files, settings, name_split) if settings.file.is_dir() else files


def _of_split(files: list[Path], settings: SourceSettings, name_split: str) -> list[Path]:
    """Return the tables of a folder that are of the split. Tables with names of splits are splits, as on the hub.

    Raises:
        UserError: There are several splits and none was named, or not the one that was.
    """
    names = {file: PurePath(file.stem).stem if file.suffix.lower() in PACKED_SUFFIXES else file.stem for file in files}
    splits = sorted(set(names.values()))
    if settings.split is None and _SPLITS.isdisjoint(map(str.lower, splits)):
        return files
    chosen = choose_split(settings.path, splits, settings.split, name_split)
    return [file for file, name in names.items() if name == chosen]


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as handle:
        return file.suffix.lower() == ".parquet" or handle.read(4) == b"PAR1"
