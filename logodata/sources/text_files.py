"""A folder of text files, or one: each file is a document."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.foreign_files import check_is_text
from logodata.common.json_lines import MAX_JSON_BYTES
from logodata.sources.json_rows import Row

SUFFIXES = (".txt", ".md")


def text_files(path: Path) -> list[Path]:
    """Text files in a folder and its subfolders, hidden ones left out, in order of their names; or the file itself."""
    return [path] if path.is_file() else sorted(visible_files(path, SUFFIXES))


def visible_files(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Files in a folder and its subfolders with one of these endings, or with any if none is given, hidden ones left
    out, in any order."""
    every = (file for file in folder.rglob("*") if not suffixes or file.suffix.lower() in suffixes)
    files = (file for file in every if file.is_file())
    return (file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def text_rows(path: Path) -> Iterator[Row]:
    """Yield each file as a row of ``doc_id`` (its path in the folder without the ending) and ``context``.

    Raises:
        UserError: a file is not UTF-8 or too long, or two files have one name but for the ending.
    """
    seen: dict[str, Path] = {}
    for file in text_files(path):
        place = file.relative_to(path) if path.is_dir() else Path(file.name)
        doc_id = place.with_suffix("").as_posix()
        if doc_id in seen:
            raise UserError(
                f"doc_id {doc_id!r} would be {seen[doc_id].name}'s too", where=str(file), mend="rename one of them"
            )
        seen[doc_id] = file
        if file.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"more than {MAX_JSON_BYTES // 2**20} MiB", where=str(file), mend="split it into documents")
        check_is_text(file, str(file))
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"not UTF-8 (byte {error.start})", where=str(file), mend="save the file as UTF-8"
            ) from error
        yield str(file), {"doc_id": doc_id, "context": text}
