"""Open what lies at ``source.path``, and read its rows in our own fields."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.foreign_files import count_endings, note_left_out
from logodata.common.packed_files import packing, text_suffix
from logodata.common.parquet import parquet_rows
from logodata.common.user_files import visible_files
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
from logodata.sources.converters import check_installed
from logodata.sources.csv_rows import SUFFIXES as CSV_SUFFIXES
from logodata.sources.csv_rows import csv_form, csv_rows
from logodata.sources.discovery import (
    FOLDER_SUFFIXES,
    Container,
    Found,
    discover,
    is_parquet,
    of_split,
    questions_file,
    tables_in,
)
from logodata.sources.document_files import document_rows, is_converted
from logodata.sources.fields import EMBEDDED_PREFIX, PARTS, SourceSettings, aliases, column_of, names_of
from logodata.sources.json_rows import Row, json_rows
from logodata.sources.tables import NAME_SPLIT, hub_files, hub_rows, load_hub

Rows = Callable[[], Iterator[Row]]
"""Reads rows, as often as it is called."""

_WRITE_AGAIN = "write the file again"
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

    found = discover(settings)
    container = found.container
    for name in ("split", "subset"):
        if getattr(settings, name) is not None and not _may_have(name, settings, container):
            mend = f"drop source.{name}, or set source.format=hub"
            raise UserError(f"a source of format {container} has no {name}", where=settings.path, mend=mend)
    if container in ("text", "documents"):
        return _open_documents(settings, found)
    rows = _raw_rows(settings, found)
    _note_left_out(settings, found)
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
        how = f", rows as {shape}" if shape != "plain" else _column_note(first[1], columns) if first else ""
        note(f"{settings.path}: read as {container}{_form(settings, container)}{how}")
    questions = open_questions(settings) if settings.questions is not None else None
    return Opened(_shaped(rows, shape, kind_of(settings.path)), container, shape, columns, questions)


def _may_have(name: str, settings: SourceSettings, container: Container) -> bool:
    """Whether a source may have a ``split`` or a ``subset``. A folder of CSV tables has splits by their names."""
    return container == "hub" or (name == "split" and container == "csv" and settings.file.is_dir())


def _open_documents(settings: SourceSettings, found: Found) -> Opened:
    """Open files of one document each, and the tables beside them. A table with documents gives more of them, and one
    that names documents has questions on them."""
    from logodata.common.console import note

    folder, encoding = settings.file, settings.encoding
    container, files, tables = found.container, found.documents, found.tables
    check_installed(found.converted_suffixes)
    if settings.columns and not tables and settings.questions is None:
        raise UserError(f"source.columns has no meaning for {container}", where=settings.path, mend="drop it")
    if folder.is_dir():
        read = "tables and " * (container == "documents") + f"{' and '.join(FOLDER_SUFFIXES[container])} files"
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
    num_converted = sum(map(is_converted, files))
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


def _note_left_out(settings: SourceSettings, found: Found) -> None:
    """Print a note on the files of a folder that are not read."""
    folder = settings.file
    if not folder.is_dir():
        return
    if found.container == "csv":
        read = f"{' and '.join(FOLDER_SUFFIXES['csv'])} files" + (f" of split {settings.split}" * bool(settings.split))
        note_left_out(folder, of_split(found.tables, settings, NAME_SPLIT), read)
    elif settings.subset is None and (files := hub_files(folder)):
        note_left_out(folder, files, f"{' and '.join(sorted({file.suffix for file in files}))} files")


def open_questions(settings: SourceSettings) -> Callable[[], Iterator[Row]]:
    """Return a reader of the rows in the second file of questions.

    Raises:
        UserError: There is no such file, or it is not a text or parquet file.
    """
    assert settings.questions is not None
    shown, file = settings.questions, questions_file(settings.questions)
    if is_parquet(file):
        return lambda: parquet_rows(file, shown, mend=_WRITE_AGAIN)
    if text_suffix(file) in CSV_SUFFIXES:
        return lambda: csv_rows(file, shown, settings.columns, settings.encoding)
    return lambda: json_rows(file, shown)


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
    if folder.is_dir() and not tables_in(folder):
        files = count_endings(visible_files(folder)) or "none"
        raise UserError(f"holds no table (files: {files})", where=settings.path, mend=_A_TABLE)
    found = discover(settings, otherwise=_A_TABLE)
    if found.container == "documents" and not found.documents:  # compressed tables
        parts = [
            settings.model_copy(update={"path": str(file), "split": None})
            for file in of_split(found.tables, settings, name_split)
        ]
        opened = [open_rows(part, columns, name_split) for part in parts]
        if len(containers := {container for _, container in opened}) == 1:
            return lambda: (row for rows, _ in opened for row in rows()), containers.pop()
    if found.container in ("text", "documents"):
        raise UserError("documents, not a table", where=settings.path, mend=_A_TABLE)
    if settings.subset is not None and found.container != "hub":
        what = f"a table of format {found.container} has no subset"
        raise UserError(what, where=settings.path, mend="leave subset out")
    return _raw_rows(settings, found, columns, (), name_split), found.container


def _raw_rows(
    settings: SourceSettings,
    found: Found,
    columns: Mapping[str, str] | None = None,
    wanted: Collection[str] = COLUMNS,
    name_split: str = NAME_SPLIT,
) -> Callable[[], Iterator[Row]]:
    path = settings.path
    columns = settings.columns if columns is None else columns
    names = {name.strip().lower() for name in (*wanted, *columns.values())} if wanted else None

    def is_wanted(column: str) -> bool:  # as column_of finds it
        return names is None or column.strip().lower() in names

    if found.container == "hub":
        dataset, split = load_hub(path, settings.subset, settings.split, name_split)
        return lambda: hub_rows(dataset, f"{path}[{split}]", is_wanted)
    files = of_split(found.tables, settings, name_split)
    if found.container == "csv":
        shown = {file: path if len(files) == 1 else str(file) for file in files}
        encoding, as_text = settings.encoding, names is None  # other records than documents have their own lists
        return lambda: (
            row for file in files for row in csv_rows(file, shown[file], columns, encoding, as_text=as_text)
        )
    (file,) = files
    if found.container == "parquet":
        return lambda: parquet_rows(file, path, mend=_WRITE_AGAIN, wanted=is_wanted)
    return lambda: json_rows(file, path)
