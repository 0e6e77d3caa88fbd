"""Small PDF files, Word documents and EPUB books, written by hand."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def save(folder: Path, name: str, data: bytes) -> Path:
    """Write a file in a folder, and return its path."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def make_pdf(pages: Sequence[str | None], *, password: bool = False) -> bytes:
    """A PDF file with a page for each text, a line for each of its lines; None is the picture of a page."""
    objects = [b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    objects.append(
        b"<</Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8/Length 1>>\n"
        b"stream\n\x00\nendstream"
    )
    kids = []
    for text in pages:
        drawn = b"q 500 0 0 700 50 50 cm /I Do Q"
        if text is not None:
            shown = (line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in text.split("\n"))
            drawn = (
                b"BT /F 10 Tf 12 TL 40 780 Td " + b" ".join(f"({it}) Tj T*".encode("cp1252") for it in shown) + b" ET"
            )
        objects.append(b"<</Length %d>>\nstream\n%s\nendstream" % (len(drawn), drawn))
        contents = len(objects)
        used = b"<</Font<</F 1 0 R>>/XObject<</I 2 0 R>>>>"
        objects.append(b"<</Type/Page/Parent 0 0 R/Contents %d 0 R/Resources%s>>" % (contents, used))
        kids.append(len(objects))
    tree = len(objects) + 1
    for kid in kids:
        objects[kid - 1] = objects[kid - 1].replace(b"/Parent 0 0 R", b"/Parent %d 0 R" % tree)
    listed = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects.append(b"<</Type/Pages/MediaBox[0 0 600 800]/Count %d/Kids[%s]>>" % (len(kids), listed))
    objects.append(b"<</Type/Catalog/Pages %d 0 R>>" % tree)
    root, trailer = len(objects), b""
    if password:  # no password fits keys of zeros
        zeros = b"<" + b"00" * 32 + b">"
        objects.append(b"<</Filter/Standard/V 1/R 2/P -4/O%s/U%s>>" % (zeros, zeros))
        trailer = b"/Encrypt %d 0 R/ID[<00><00>]" % len(objects)
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size + b"".join(b"%010d 00000 n \n" % it for it in offsets)
    return bytes(out + b"trailer<</Size %d/Root %d 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, root, trailer, start))


def make_zip(parts: Mapping[str, str | bytes], *, says: Mapping[str, int] | None = None) -> bytes:
    """An archive. ``says`` are other sizes of parts, as its table of contents gives them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    whole = bytearray(buffer.getvalue())
    for name, size in (says or {}).items():
        at = whole.rindex(name.encode()) - 46  # the entry of the table of contents, before its name
        assert whole[at : at + 4] == b"PK\x01\x02"
        whole[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(whole)


_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def make_docx(
    paragraphs: Sequence[str], *, table: Sequence[Sequence[str]] = (), header: str = "", comment: str = "", **says: int
) -> bytes:
    """A Word document of paragraphs and a table. ``says`` is :func:`make_zip`'s, of ``document``."""

    def text(words: str) -> str:
        return f"<w:p><w:r><w:t>{escape(words)}</w:t></w:r></w:p>"

    rows = ("".join(f"<w:tc>{text(cell)}</w:tc>" for cell in row) for row in table)
    grid = f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in rows)}</w:tbl>" if table else ""
    body = f'<w:document xmlns:w="{_WORD}"><w:body>{"".join(map(text, paragraphs))}{grid}</w:body></w:document>'
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": body,
    }
    if header:
        parts["word/header1.xml"] = f'<w:hdr xmlns:w="{_WORD}">{text(header)}</w:hdr>'
    if comment:
        parts["word/comments.xml"] = f'<w:comments xmlns:w="{_WORD}">{text(comment)}</w:comments>'
    return make_zip(parts, says={f"word/{name}.xml": size for name, size in says.items()})


def make_epub(
    chapters: Mapping[str, str], *, spine: Sequence[str] | None = None, encrypted: Sequence[str] = ()
) -> bytes:
    """An EPUB book of pages by name. ``spine`` names its chapters in order; by default they are all pages."""
    order = list(chapters) if spine is None else spine
    items = "".join(
        f'<item id="{it}" href="{it}.xhtml" media-type="application/xhtml+xml"/>' for it in dict.fromkeys(order)
    )
    refs = "".join(f'<itemref idref="{name}"/>' for name in order)
    cipher = "".join(f'<e:CipherReference URI="text/{name}.xhtml"/>' for name in encrypted)
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="text/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "text/book.opf": f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{refs}</spine></package>',
        **{f"text/{name}.xhtml": page for name, page in chapters.items()},
    }
    if encrypted:
        parts["META-INF/encryption.xml"] = (
            f'<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#">{cipher}</encryption>'
        )
    return make_zip(parts)


def word_with(document: str) -> bytes:
    """A Word document with another part of text."""
    with zipfile.ZipFile(io.BytesIO(make_docx([]))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return make_zip({**parts, "word/document.xml": document})
