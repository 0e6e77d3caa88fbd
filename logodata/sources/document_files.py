"""Read files of one document each: text as it is, other formats converted, from a folder or one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
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
    """The row of a file, with its ``doc_id``. The file is read when its text is asked for."""

    def __init__(self, doc_id: str, file: Path, encoding: str | None, *, is_alone: bool) -> None:
        super().__init__(doc_id=doc_id)
        self._file, self._encoding, self._is_alone = file, encoding, is_alone
        self.is_converted = is_converted(file)
        self.fault: Unreadable | None = None
        """Why the file could not be read."""

    @cached_property
    def found(self) -> Converted:
        """The text, and how it was read. A file among others that cannot be converted has none, and a :attr:`fault`.

        Raises:
            UserError: A text is too long or in another encoding, or a file alone cannot be converted.
        """
        try:
            return read_document(self._file, self._encoding)
        except Unreadable as error:
            if self._is_alone:
                raise
            self.fault = error
            return Converted("")


def files_of(path: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files in a folder and its subfolders with one of the extensions, sorted by path, without hidden ones;
    for a file, the file itself."""
    return [path] if path.is_file() else sorted(visible_files(path, suffixes))


def without_suffix(name: PurePath) -> str:
    """Return the ``doc_id`` of a file: its path in the folder, without the extension. Files that differ in it only keep
    it."""
    return name.with_suffix("").as_posix()


def is_converted(file: Path) -> bool:
    """Whether a file is converted, and not read as it is."""
    return file.suffix.lower() in CONVERTED_SUFFIXES


def document_rows(path: Path, files: Sequence[Path], encoding: str | None) -> Iterator[Row]:
    """Yield each file as a row, which is read later. ``path`` is their folder, or the file itself.

    Raises:
        UserError: Two files have the same ``doc_id``, as ``a.txt.md`` and ``a.txt`` beside ``a.pdf``.
    """
    is_alone = not path.is_dir()
    places = [Path(file.name) if is_alone else file.relative_to(path) for file in files]
    num_files = Counter(map(without_suffix, places))
    seen: dict[str, Path] = {}
    for file, place in zip(files, places, strict=True):
        name = without_suffix(place)
        doc_id = encodable(name if num_files[name] == 1 else place.as_posix())
        if doc_id in seen:
            mend = "rename one of them"
            raise UserError(f"doc_id {doc_id!r} is already that of {seen[doc_id].name}", where=str(file), mend=mend)
        seen[doc_id] = file
        yield encodable(str(file)), DocumentRow(doc_id, file, encoding, is_alone=is_alone)


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
