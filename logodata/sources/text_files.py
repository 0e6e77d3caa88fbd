"""Read text files as documents, from a folder or one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.foreign_files import check_is_text
from logodata.common.json_files import MAX_JSON_BYTES
from logodata.common.printable import encodable
from logodata.common.user_files import read_text, visible_files
from logodata.sources.json_rows import Row

SUFFIXES = (".txt", ".md")


def files_of(path: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Return the files in a folder and its subfolders with one of the extensions, sorted by path, without hidden ones;
    for a file, the file itself."""
    return [path] if path.is_file() else sorted(visible_files(path, suffixes))


def text_rows(path: Path) -> Iterator[Row]:
    """Yield each file as a row of ``doc_id`` (its path in the folder, without the extension) and ``context``.

    Raises:
        UserError: A file is not plain UTF-8 text or is too long, or two files differ in their extension only.
    """
    seen: dict[str, Path] = {}
    for file in files_of(path):
        place = file.relative_to(path) if path.is_dir() else Path(file.name)
        doc_id = encodable(place.with_suffix("").as_posix())
        if doc_id in seen:
            mend = "rename one of them"
            raise UserError(f"doc_id {doc_id!r} is already that of {seen[doc_id].name}", where=str(file), mend=mend)
        seen[doc_id] = file
        check_is_text(file, str(file))
        text = read_text(file, most_bytes=MAX_JSON_BYTES, mend="split it into documents")
        yield encodable(str(file)), {"doc_id": doc_id, "context": text}
