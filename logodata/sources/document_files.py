"""Read files of one document each: text as it is, other formats converted, from a folder or one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from logodata.common import json_files
from logodata.common.errors import UserError
from logodata.common.foreign_files import check_is_text
from logodata.common.printable import encodable
from logodata.common.user_files import decode_text, plain_ends, read_bytes, visible_files
from logodata.sources.converters import SUFFIXES as CONVERTED_SUFFIXES
from logodata.sources.converters import Converted, Unreadable
from logodata.sources.json_rows import Row

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, *CONVERTED_SUFFIXES)
"""The extensions of files that hold one document each."""


class DocumentRow(dict[str, Any]):
    """The row of a file, with how it was read. ``fault`` is why it could not be."""

    def __init__(self, doc_id: str, found: Converted, fault: Unreadable | None, is_converted: bool) -> None:
        super().__init__(doc_id=doc_id, context=found.text)
        self.lost, self.encoding, self.fault, self.is_converted = found.lost, found.encoding, fault, is_converted


def files_of(path: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files in a folder and its subfolders with one of the extensions, sorted by path, without hidden ones;
    for a file, the file itself."""
    return [path] if path.is_file() else sorted(visible_files(path, suffixes))


def without_suffix(name: PurePath) -> str:
    """Return the ``doc_id`` of a file: its path in the folder, without the extension."""
    return name.with_suffix("").as_posix()


def is_converted(file: Path) -> bool:
    """Whether a file is converted, and not read as it is."""
    return file.suffix.lower() in CONVERTED_SUFFIXES


def document_rows(path: Path, files: Sequence[Path], encoding: str | None) -> Iterator[Row]:
    """Yield each file as a row of ``doc_id`` and ``context``. ``path`` is their folder, or the file itself.

    A file in a folder that cannot be converted is a row without text, which says why.

    Raises:
        UserError: A text is too long or in another encoding, two files differ in their extension only, or ``path`` is a
            file that cannot be converted.
    """
    seen: dict[str, Path] = {}
    for file in files:
        place = file.relative_to(path) if path.is_dir() else Path(file.name)
        doc_id = encodable(without_suffix(place))
        if doc_id in seen:
            mend = "rename one of them"
            raise UserError(f"doc_id {doc_id!r} is already that of {seen[doc_id].name}", where=str(file), mend=mend)
        seen[doc_id] = file
        found, fault = Converted(""), None
        try:
            found = read_document(file, encoding)
        except Unreadable as error:
            if not path.is_dir():
                raise
            fault = error
        yield encodable(str(file)), DocumentRow(doc_id, found, fault, is_converted(file))


def read_document(file: Path, encoding: str | None) -> Converted:
    """Return the text of one file, as it is or converted.

    Raises:
        UserError: It cannot be read; :class:`~logodata.sources.converters.Unreadable` if it cannot be converted.
    """
    if is_converted(file):
        from logodata.sources.converters.process import convert

        return convert(file, encoding)
    check_is_text(file, str(file), read=CONVERTED_SUFFIXES)
    data = read_bytes(file, most_bytes=json_files.MAX_JSON_BYTES, mend="split it into documents")
    text, name = decode_text(data, str(file), encoding)
    return Converted(plain_ends(text), Counter(), name)
