"""Find what lies at ``source.path``: the format of what is there, and the files that are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Literal

from logodata.common.errors import UserError
from logodata.common.files import file_sha256
from logodata.common.foreign_files import check_head, check_is_text, count_endings, how_to_convert, is_beside_data
from logodata.common.packed_files import PACKED_SUFFIXES, open_unpacked, text_suffix
from logodata.common.user_files import expand_home, visible_files
from logodata.sources.converters import SUFFIXES as CONVERTED_SUFFIXES
from logodata.sources.converters import versions
from logodata.sources.csv_rows import SUFFIXES as CSV_SUFFIXES
from logodata.sources.document_files import SUFFIXES, TEXT_SUFFIXES, files_of, is_converted
from logodata.sources.fields import EMBEDDED_PREFIX, SourceSettings
from logodata.sources.tables import NAME_SPLIT, choose_split, load_hub

Container = Literal["jsonl", "csv", "parquet", "text", "documents", "hub"]

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_PLAIN_TABLES = (*_JSON_SUFFIXES, *CSV_SUFFIXES)
TABLE_SUFFIXES = (".parquet", *_PLAIN_TABLES, ".arrow")
FOLDER_SUFFIXES: Mapping[str, tuple[str, ...]] = {"text": TEXT_SUFFIXES, "documents": SUFFIXES, "csv": CSV_SUFFIXES}
"""The extensions of the files that a format reads from a folder."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLITS = frozenset(("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"))
"""Names of splits, by which ``datasets`` finds them in a folder."""

_NAME_FORMAT = "set source.format=jsonl, csv, parquet, text or documents"


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at a path.

    Attributes:
        container: what the rows or documents lie in.
        documents: the files of one document each.
        tables: the tables: the file itself, or those of a folder, of all splits. A data set of the hub, or of files
            that ``datasets`` reads, has none here.
    """

    container: Container
    documents: Sequence[Path] = ()
    tables: Sequence[Path] = ()

    @property
    def converted_suffixes(self) -> set[str]:
        """The extensions of the documents that are converted."""
        return {file.suffix.lower() for file in self.documents if is_converted(file)}


def discover(settings: SourceSettings, *, otherwise: str = _NAME_FORMAT) -> Found:
    """Find what lies at ``settings.path``. ``otherwise`` says what to do where that cannot be recognised.

    Raises:
        UserError: There is nothing, or nothing that can be read.
    """
    path, place = settings.path, settings.file
    if path.startswith(EMBEDDED_PREFIX) or settings.format == "jsonl":
        check_text(source_file(path), path, markup=True)
        return Found("jsonl", tables=[source_file(path)])
    if settings.format == "hub":
        return Found("hub")
    if settings.format == "parquet":
        return Found("parquet", tables=[source_file(path)])
    if settings.format in ("text", "csv", "documents"):
        return _of_format(settings.format, place, path)
    if place.is_dir():
        return _in_folder(place, path)
    if not place.exists() and may_be_on_hub(path):
        return Found("hub")
    return _in_file(source_file(path), path, otherwise)


def _of_format(container: Literal["text", "csv", "documents"], place: Path, path: str) -> Found:
    """Return the files of the format that the user names, of a folder or one file."""
    if not place.exists():
        source_file(path)
    suffixes = FOLDER_SUFFIXES[container]
    files = files_of(place, suffixes)
    if not files:
        mend = f"files end in {' or '.join(suffixes)}"
        raise UserError(f"holds no {container} file", where=path, mend=mend)
    if place.is_file() and container != "documents":
        check_text(place, path)
    if container == "csv":
        return Found(container, tables=[file for file in files if not is_beside_data(file)] or files)
    tables = tables_in(place) if container == "documents" and place.is_dir() else []
    return Found(container, _documents_beside(tables, files), tables)


def _in_folder(folder: Path, path: str) -> Found:
    tables = tables_in(folder)
    files = _documents_beside(tables, files_of(folder, SUFFIXES))
    if not files and not tables:
        others = [file for file in visible_files(folder) if not is_beside_data(file)]
        how = how_to_convert(sorted({file.suffix.lower() for file in others}))
        mend = f"turn them into text first: {how}" if how else f"give a folder of {', '.join(SUFFIXES)} or data files"
        raise UserError(f"holds no documents (files: {count_endings(others) or 'none'})", where=path, mend=mend)
    if files:
        is_text = not tables and all(file.suffix.lower() in TEXT_SUFFIXES for file in files)
        return Found("text" if is_text else "documents", files, tables)
    if all(file.suffix.lower() in CSV_SUFFIXES for file in tables):
        return Found("csv", tables=tables)
    # The hub's library reads no compressed tables from a folder.
    is_packed = any(file.suffix.lower() in PACKED_SUFFIXES for file in tables)
    return Found("documents", tables=tables) if is_packed else Found("hub")


def _in_file(file: Path, path: str, otherwise: str) -> Found:
    if is_parquet(file):
        return Found("parquet", tables=[file])
    if is_converted(file):
        return Found("documents", [file])
    suffix = text_suffix(file)
    check_text(file, path, markup=suffix in _JSON_SUFFIXES)
    if suffix in CSV_SUFFIXES:
        return Found("csv", tables=[file])
    if suffix in TEXT_SUFFIXES:
        return Found("text", [file])
    with open(file, "rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _JSON_SUFFIXES or head[:1] in (b"{", b"["):
        return Found("jsonl", tables=[file])
    how = how_to_convert([file.suffix.lower()])
    mend = f"turn it into text first: {how}" if how else otherwise
    raise UserError("its format cannot be recognised", where=path, mend=mend)


def _documents_beside(tables: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """Return the files that are documents. Beside tables a README is none; in a folder of texts it may be one."""
    return [file for file in files if not (tables and is_beside_data(file))]


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder and its subfolders, compressed ones too, sorted by path. No file is opened."""
    found = set(visible_files(folder, TABLE_SUFFIXES))
    found |= {file for file in visible_files(folder, PACKED_SUFFIXES) if text_suffix(file) in _PLAIN_TABLES}
    return sorted(file for file in found if not is_beside_data(file))


def of_split(tables: Sequence[Path], settings: SourceSettings, name_split: str) -> Sequence[Path]:
    """Return the tables of a folder that are of its split; the one file, where there is no folder. Tables with names of
    splits are splits, as on the hub.

    Raises:
        UserError: There are several splits and none was named, or not the one that was.
    """
    if not settings.file.is_dir():
        return tables
    names = {file: _split_name(file) for file in tables}
    splits = sorted(set(names.values()))
    if settings.split is None and _SPLITS.isdisjoint(map(str.lower, splits)):
        return tables
    chosen = choose_split(settings.path, splits, settings.split, name_split)
    return [file for file, name in names.items() if name == chosen]


def _split_name(table: Path) -> str:
    return PurePath(table.stem).stem if table.suffix.lower() in PACKED_SUFFIXES else table.stem


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


def questions_file(shown: str) -> Path:
    """Return the second file of questions, ``source.questions``.

    Raises:
        UserError: There is no such file, or it is neither a text nor a parquet file.
    """
    file = expand_home(shown)
    if not file.is_file():
        raise UserError("no such file", where=shown, mend="source.questions is a JSON, CSV or parquet file")
    if not is_parquet(file):
        check_text(file, shown, markup=True)
    return file


def is_parquet(file: Path) -> bool:
    """Whether a file is a parquet file, by its extension or by how it begins."""
    with open(file, "rb") as handle:
        return file.suffix.lower() == ".parquet" or handle.read(4) == b"PAR1"


def check_text(file: Path, shown: str, *, markup: bool = False) -> None:
    """Refuse a file that is not plain text. A table may be compressed."""
    if text_suffix(file) not in _PLAIN_TABLES:
        check_is_text(file, shown, markup=markup, read=CONVERTED_SUFFIXES)
        return
    with open_unpacked(file, shown) as handle:
        check_head(handle.read(8192), text_suffix(file), shown, markup=markup, read=CONVERTED_SUFFIXES)


def check_outside(settings: SourceSettings, output: Path) -> None:
    """Refuse an output inside the folder that is read, because the next reading would take it for documents.

    Raises:
        UserError: ``output`` is the source's folder, or lies inside it.
    """
    if settings.file.is_dir() and output.resolve().is_relative_to(settings.file.resolve()):
        what = "-o is inside the source's folder, and would be read as documents"
        raise UserError(what, where=str(output), mend=f"give an -o outside of {settings.path}")


def source_fingerprint(settings: SourceSettings) -> str:
    """Return the first 16 hex digits of the sha256 of what is read. A build is bound to it.

    For a single file it is the file's own sha256. Several files (a folder, a hub data set, the questions' file) are
    hashed as a list of their hashes and names, and with the versions of the libraries that convert some of them.
    """
    found, folder = discover(settings), settings.file
    converted = found.converted_suffixes
    if found.container in ("csv", "jsonl", "parquet"):
        tables = of_split(found.tables, settings, NAME_SPLIT)
        files = [(file, file.relative_to(folder) if len(tables) > 1 else Path()) for file in tables]
    elif found.container != "hub":
        files = [(file, file.relative_to(folder)) for file in (*found.documents, *found.tables)]
    elif folder.is_dir():
        files = [(file, file.relative_to(folder)) for file in sorted(visible_files(folder))]
    else:
        dataset, split = load_hub(settings.path, settings.subset, settings.split)
        files = [(Path(part["filename"]), Path(split)) for part in dataset.cache_files]
    if settings.questions is not None:
        files.append((questions_file(settings.questions), Path("questions")))
    digests = [file_sha256(file) for file, _ in files]
    if len(digests) == 1 and not converted:
        return digests[0][:16]
    listed = versions(converted) + "".join(
        f"{digest} {name.as_posix()}\n" for digest, (_, name) in zip(digests, files, strict=True)
    )
    return hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]
