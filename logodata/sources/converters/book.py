"""The text of an EPUB book, chapter by chapter in the order of its spine (EPUB 3.3, section 5)."""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

from logodata.common import json_files
from logodata.common.errors import first_line
from logodata.sources.converters import Converted, Unreadable
from logodata.sources.converters.archive import open_archive
from logodata.sources.converters.page import decode_page, html_text

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"


def book_text(file: Path, encoding: str | None) -> Converted:
    """Return the text of a book, with an empty line between chapters. ``lost`` counts what the chapters lose as pages
    (:func:`~logodata.sources.converters.page.page_text`), and chapters that are listed and not there.

    Raises:
        Unreadable: It is no book, its chapters are encrypted, or it has none with text.
    """
    lost = Counter[str]()
    texts: list[str] = []
    with open_archive(file) as archive:
        try:
            for chapter in _chapters(archive, file):
                if chapter not in archive.NameToInfo:
                    lost["missing chapters"] += 1
                    continue
                html, _ = decode_page(archive.read(chapter), f"{file}: {chapter}", encoding)
                converted = html_text(html)
                lost += converted.lost
                texts += [converted.text] * bool(converted.text)
                # A book may list a chapter any number of times.
                if sum(map(len, texts)) > json_files.MAX_JSON_BYTES:
                    most = json_files.MAX_JSON_BYTES // 2**20
                    raise Unreadable(f"more than {most} MiB of text", where=str(file), mend="this is no book")
        except (KeyError, BadZipFile, ET.ParseError) as error:
            what = f"cannot be read as an EPUB book: {first_line(error)}"
            raise Unreadable(what, where=str(file), mend="open it in a reader, or copy it anew") from error
    if not texts:
        raise Unreadable(
            "an EPUB book without chapters of text", where=str(file), mend="open it in a reader, or copy it anew"
        )
    return Converted("\n\n".join(texts), lost)


def _chapters(archive: ZipFile, file: Path) -> list[str]:
    """Return the names of the chapters in the archive."""
    rootfile = next(_named(ET.fromstring(archive.read(_CONTAINER)), "rootfile"), None)
    package = "" if rootfile is None else rootfile.get("full-path", "")
    root = ET.fromstring(archive.read(package))
    pages = {
        item.get("id"): _resolve(package, item.get("href", ""))
        for item in _named(root, "item")
        if "html" in item.get("media-type", "")
    }
    chapters = [pages[item.get("idref")] for item in _named(root, "itemref") if item.get("idref") in pages]
    if _ENCRYPTION in archive.NameToInfo:  # it may be that of fonts alone
        references = _named(ET.fromstring(archive.read(_ENCRYPTION)), "CipherReference")
        if {unquote(reference.get("URI", "")) for reference in references} & set(chapters):
            raise Unreadable("is encrypted", where=str(file), mend="get a copy without copy protection")
    return chapters


def _named(root: ET.Element, name: str) -> Iterator[ET.Element]:
    return (
        element for element in root.iter() if isinstance(element.tag, str) and element.tag.rpartition("}")[2] == name
    )


def _resolve(package: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(href.partition("#")[0])))
