"""From ``source.path`` to rows: which format it is, and the rows of it in our own fields."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Literal

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.user_files import visible_files
from logodata.sources.json_rows import Row, json_rows
from logodata.sources.settings import ALIASES, EMBEDDED_PREFIX, SourceSettings
from logodata.sources.shapes import (
    ALPACA_FIELDS,
    TURN_FIELDS,
    Shape,
    from_conversation,
    from_longalpaca,
    kind_of,
    shape_of,
)
from logodata.sources.tables import hub_rows, load_hub, parquet_rows
from logodata.sources.text_files import SUFFIXES, text_files, text_rows

Container = Literal["jsonl", "parquet", "text", "hub"]

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_TABLE_SUFFIXES = (".parquet", *_JSON_SUFFIXES, ".csv", ".arrow")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that can be read as often as needed: each call of ``rows`` starts at its first row."""

    rows: Callable[[], Iterator[Row]]
    container: Container
    shape: Shape


def open_source(settings: SourceSettings) -> Opened:
    """Find out what ``settings.path`` is; with ``format: auto`` a note says what was found.

    Raises:
        UserError: there is no such source, or it is none of our formats.
    """
    container = _container(settings)
    if container != "hub":
        for name in ("split", "subset"):
            if getattr(settings, name) is not None:
                raise UserError(
                    f"a source of format {container} has no {name}",
                    where=settings.path,
                    mend=f"drop source.{name}, or set source.format=hub",
                )
    rows = _raw_rows(settings, container)
    if settings.format in ("longalpaca", "conversations"):
        shape: Shape = "longalpaca" if settings.format == "longalpaca" else "conversations"
    else:
        first = next(islice(rows(), 1), None)
        shape = "plain" if first is None or settings.columns or container == "text" else shape_of(first[1])
    if settings.columns and (shape != "plain" or container == "text"):
        raise UserError(
            f"source.columns has no meaning for {shape if shape != 'plain' else container}",
            where=settings.path,
            mend="drop it",
        )
    if settings.format == "auto" and not settings.path.startswith(EMBEDDED_PREFIX):
        note(f"{settings.path}: read as {container}" + ("" if shape == "plain" else f", rows as {shape}"))
    if shape == "longalpaca":
        return Opened(lambda: ((where, from_longalpaca(row, where)) for where, row in rows()), container, shape)
    if shape == "conversations":
        kind = kind_of(settings.path)
        return Opened(lambda: ((where, from_conversation(row, where, kind)) for where, row in rows()), container, shape)
    return Opened(rows, container, shape)


def open_questions(settings: SourceSettings) -> Callable[[], Iterator[Row]]:
    """Rows of the side file of questions."""
    assert settings.questions is not None
    shown, file = settings.questions, Path(settings.questions).expanduser()
    if not file.is_file():
        raise UserError("no such file", where=shown, mend="source.questions is a JSON or parquet file")
    if _is_parquet(file):
        return lambda: parquet_rows(file, shown, ())
    return lambda: json_rows(file, shown)


def source_fingerprint(settings: SourceSettings) -> str:
    """Start of the sha256 of what is read, to which a build is bound: of a single file, it is the file's own.

    Several files (a folder's, a hub data set's, the questions' file) are hashed in turn, each after its name.
    """
    container, folder = _container(settings), settings.file
    if container == "text":
        files = [(file, file.relative_to(folder)) for file in text_files(folder)]
    elif container != "hub":
        files = [(source_file(settings.path), Path())]
    elif folder.is_dir():
        files = [(file, file.relative_to(folder)) for file in sorted(visible_files(folder))]
    else:
        dataset, split = load_hub(settings.path, settings.subset, settings.split)
        files = [(Path(part["filename"]), Path(split)) for part in dataset.cache_files]
    if settings.questions is not None:
        open_questions(settings)
        files.append((Path(settings.questions).expanduser(), Path("questions")))
    digests = []
    for file, name in files:
        with open(file, "rb") as handle:
            digests.append((name.as_posix(), hashlib.file_digest(handle, "sha256").hexdigest()))
    if len(digests) == 1:
        return digests[0][1][:16]
    listed = "".join(f"{digest} {name}\n" for name, digest in digests)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]


def check_outside(settings: SourceSettings, output: Path) -> None:
    """Refuse an output in the folder that is read: the next reading would take what was written for documents.

    Raises:
        UserError: ``output`` is the source's folder, or inside it.
    """
    if settings.file.is_dir() and output.resolve().is_relative_to(settings.file.resolve()):
        raise UserError(
            "-o is inside the source's folder, and would be read as documents",
            where=str(output),
            mend=f"give an -o outside of {settings.path}",
        )


def source_file(path: str) -> Path:
    """The file behind ``path``; a :class:`UserError` if there is none."""
    if path.startswith(EMBEDDED_PREFIX):
        name = path.removeprefix(EMBEDDED_PREFIX)
        if name not in ("train", "eval"):
            raise UserError(
                f"no embedded documents {name!r}", where=path, mend="there are embedded:train and embedded:eval"
            )
        return Path(str(resources.files("logodata"))) / "embedded" / f"{name}.jsonl"
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            "is a folder" if file.is_dir() else "no such file",
            where=path,
            mend="give a file, a folder of text files, a hub data set (source.format=hub), or embedded:train",
        )
    return file


def _container(settings: SourceSettings) -> Container:
    path, file = settings.path, settings.file
    if path.startswith(EMBEDDED_PREFIX) or settings.format == "jsonl":
        _refuse_compressed(source_file(path), path)
        return "jsonl"
    if settings.format == "hub":
        return "hub"
    if settings.format == "parquet":
        source_file(path)
        return "parquet"
    if settings.format == "text":
        if not file.exists():
            source_file(path)
        if not text_files(file):
            raise UserError("holds no text file", where=path, mend=f"files end in {' or '.join(SUFFIXES)}")
        return "text"
    if file.is_dir():
        return _folder(file, path)
    if not file.exists() and _HUB_NAME.fullmatch(path) and file.suffix not in (*_TABLE_SUFFIXES, *SUFFIXES):
        return "hub"
    source_file(path)
    _refuse_compressed(file, path)
    if _is_parquet(file):
        return "parquet"
    if file.suffix.lower() in SUFFIXES:
        return "text"
    with open(file, "rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.suffix.lower() in _JSON_SUFFIXES or head[:1] in (b"{", b"["):
        return "jsonl"
    raise UserError("its format cannot be told", where=path, mend="set source.format, e.g. jsonl or text")


def _folder(folder: Path, path: str) -> Container:
    has_text = bool(text_files(folder))
    has_tables = next(visible_files(folder, _TABLE_SUFFIXES), None) is not None
    if has_text and has_tables:
        raise UserError(
            "holds text files and tables", where=path, mend="set source.format=text or hub, or give one of the files"
        )
    if not has_text and not has_tables:
        raise UserError("holds no documents", where=path, mend=f"give a folder of {', '.join(SUFFIXES)} or data files")
    return "text" if has_text else "hub"


def _raw_rows(settings: SourceSettings, container: Container) -> Callable[[], Iterator[Row]]:
    path = settings.path
    wanted = {name for names in ALIASES.values() for name in names} | set(settings.columns.values())
    wanted |= {*ALPACA_FIELDS, *TURN_FIELDS}
    if container == "jsonl":
        file = source_file(path)
        return lambda: json_rows(file, path)
    if container == "parquet":
        return lambda: parquet_rows(settings.file, path, wanted)
    if container == "text":
        return lambda: text_rows(settings.file)
    dataset, split = load_hub(path, settings.subset, settings.split)
    return lambda: hub_rows(dataset, f"{path}[{split}]", wanted)


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as handle:
        return file.suffix.lower() == ".parquet" or handle.read(4) == b"PAR1"


def _refuse_compressed(file: Path, path: str) -> None:
    with open(file, "rb") as handle:
        head = handle.read(4)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(f"is compressed ({name})", where=path, mend="unpack it first")
