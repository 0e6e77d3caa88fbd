"""Recognise files that are not plain text, and name the command that turns them into text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.user_files import visible_files

_PANDOC = "pandoc -t plain --wrap=none FILE -o FILE.txt"
_CONVERTERS = {
    ".pdf": "pdftotext FILE.pdf",
    **dict.fromkeys((".html", ".htm", ".xhtml", ".docx", ".epub", ".odt", ".rtf"), _PANDOC),
    ".doc": "soffice --headless --convert-to txt:Text FILE.doc",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "soffice --headless --convert-to csv FILE"),
    **dict.fromkeys((".mobi", ".azw3"), "ebook-convert FILE FILE.txt"),
}
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
}
_OFFICE = {
    **dict.fromkeys((".docx", ".doc"), "a Word document"),
    ".epub": "an EPUB book",
    ".odt": "an OpenDocument text",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a workbook"),
}
"""The extension tells these formats apart: inside, they are archives or look alike."""

_HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_XML = re.compile(rb"\s*<\?xml\b")
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_BINARY = (
    *(_OLD_OFFICE, b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"\x7fELF", b"MZ\x90"),
    *(b"SQLite format 3", b"PAR1", b"ARROW1"),
)
"""How other files that are not text may begin. Anything else that is not text is refused as not UTF-8."""

_HEAD = 8192

_BESIDE = re.compile(
    r"(?:readme|licen[cs]e|notice|copying|changelog)(?:[._-]\S*)?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json"
)
"""Names of files that lie beside data, such as ``LICENSE-APACHE.txt``. ``Notice of Termination.txt`` is data."""


def check_is_text(file: Path, shown: str, *, markup: bool = False, read: Collection[str] = ()) -> None:
    """Refuse a file that is not plain text, judged by how it begins. Messages call it ``shown``.

    ``markup`` accepts HTML and XML, for a reader that reports them as its own faults. ``read`` are the extensions of
    formats that the caller reads under these extensions.

    Raises:
        UserError: It is compressed, a document of a word processor, a page or a binary file.
    """
    with open(file, "rb") as handle:
        check_head(handle.read(_HEAD), file.suffix.lower(), shown, markup=markup, read=read)


def check_head(head: bytes, suffix: str, shown: str, *, markup: bool = False, read: Collection[str] = ()) -> None:
    """Refuse what is not plain text, as :func:`check_is_text`, by the beginning of a file and its extension."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    if suffix in _OFFICE and head.startswith((b"PK", _OLD_OFFICE)):
        kind, ending = _OFFICE[suffix], suffix
    elif archive := next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None):
        raise UserError(f"is compressed ({archive})", where=shown, mend="unpack it first")
    elif head.startswith(b"%PDF-"):
        kind, ending = "a PDF file", ".pdf"
    elif head.startswith(b"{\\rtf"):
        kind, ending = "an RTF document", ".rtf"
    elif head.startswith(_BINARY):
        kind, ending = "a binary file", ""
    elif not markup and _HTML.match(head):
        kind, ending = "an HTML page", ".html"
    elif not markup and _XML.match(head):
        kind, ending = "an XML file", ""
    else:
        return
    mend = "give plain text, without tags"
    if ending in read:
        mend = "leave source.format out" if suffix == ending else f"give it the ending {ending}"
    elif ending:
        mend = f"turn it into text first: {_CONVERTERS[ending]}"
    raise UserError(f"{kind}, not plain text", where=shown, mend=mend)


def is_page(text: str) -> bool:
    """Whether a text begins like an HTML page."""
    return _HTML.match(text[:_HEAD].encode("utf-8", "replace")) is not None


def is_beside_data(file: Path) -> bool:
    """Whether a file describes the data in its folder and is not data, such as ``README.md`` or ``LICENSE``."""
    return _BESIDE.fullmatch(file.name.lower()) is not None


def how_to_convert(suffixes: Iterable[str]) -> str:
    """Return the commands that turn files with these extensions into text; empty if none is known."""
    return ", ".join(dict.fromkeys(_CONVERTERS[suffix] for suffix in suffixes if suffix in _CONVERTERS))


def count_endings(files: Iterable[Path]) -> str:
    """Return the counts of extensions, the most common first: ``.pdf 2, .html 1``."""
    counts = Counter(file.suffix.lower() or "no ending" for file in files)
    return ", ".join(f"{suffix} {count}" for suffix, count in sorted(counts.items(), key=lambda it: (-it[1], it[0])))


def note_left_out(folder: Path, taken: Collection[Path], read: str) -> None:
    """Print a note, once, on the files of a folder and its subfolders that are not ``taken``. Hidden files are not
    mentioned, and of those beside data only those that could be taken for data. ``read`` says what is read, such as
    ``.txt and .md files``."""
    places, endings = {file.resolve() for file in taken}, {file.suffix.lower() for file in taken}
    others = [file for file in visible_files(folder) if file.resolve() not in places]
    left = [file for file in others if not is_beside_data(file)]
    beside = sorted(file.name for file in others if is_beside_data(file) and file.suffix.lower() in endings)
    if beside:
        _note_once(f"{folder}: left out what describes the data, by its name: {', '.join(beside)}")
    if left:
        commands, total = how_to_convert(sorted({file.suffix.lower() for file in left})), len(left) + len(places)
        _note_once(
            f"{folder}: left out {len(left)} of {total} files ({count_endings(left)}), only {read} are read"
            + (f"; to read them too, turn them into text: {commands}" if commands else "")
        )


def note_empty(folder: Path, empty: Collection[Path], total: int) -> None:
    """Print a note, once, on the files that are empty, of ``total`` files."""
    if empty:
        names = ", ".join(file.name for file in list(empty)[:5])
        _note_once(f"{folder}: left out {len(empty)} of {total} files, which are empty: {names}")


@cache
def _note_once(text: str) -> None:
    """Print a note once, because folders are read more than once."""
    from logodata.common.console import note

    note(text)
