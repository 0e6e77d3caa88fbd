"""Documents that are zip archives: they are read part by part, and never unpacked to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from logodata.common import json_files
from logodata.sources.converters import KINDS, Unreadable

_TEXTS = (".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm")
_ENCRYPTED = 1
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""How files of old Word begin, and those that Word encrypted."""


@contextmanager
def open_archive(file: Path) -> Iterator[ZipFile]:
    """Open an archive whose texts take no more memory than any other document.

    An entry never gives more bytes than the archive's table of contents says (``zipfile`` stops there), so that table
    bounds what is read.

    Raises:
        Unreadable: It is no archive, is encrypted, or is too large.
    """
    suffix = file.suffix.lower()
    try:
        with ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.flag_bits & _ENCRYPTED for entry in entries):
                raise Unreadable("is encrypted", where=str(file), mend="save a copy without password")
            total = sum(entry.file_size for entry in entries if entry.filename.lower().endswith(_TEXTS))
            if total > json_files.MAX_JSON_BYTES:
                most = json_files.MAX_JSON_BYTES // 2**20
                mend = "this is no document, or split it into documents"
                raise Unreadable(f"unpacks to more than {most} MiB of text", where=str(file), mend=mend)
            yield archive
    except BadZipFile as error:
        with open(file, "rb") as handle:
            is_old = handle.read(4) == _OLD_OFFICE
        what = "is encrypted, or a file of old Word" if is_old else f"not {KINDS[suffix]}, which is a zip archive"
        mend = (
            f"save it as {suffix} without password" if is_old else "give it the ending of its format, or copy it anew"
        )
        raise Unreadable(what, where=str(file), mend=mend) from error
