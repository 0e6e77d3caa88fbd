"""The text of a PDF file, page by page, by PDFium."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from logodata.sources.converters import Converted, Unreadable

_PASSWORD_ERROR = 4
"""``FPDF_ERR_PASSWORD`` of PDFium."""

_IMAGE = 3
"""``FPDF_PAGEOBJ_IMAGE`` of PDFium."""

_HYPHENS = str.maketrans("", "", "\x02\ufffe")
"""What PDFium puts in place of a hyphen at the end of a line, whose word it joins."""


def pdf_text(file: Path, _encoding: str | None) -> Converted:
    """Return the text of a PDF file, with an empty line between pages. ``lost`` counts images and pages without text.
    Tables are lines of text, and PDFium does not tell them from other lines.

    Raises:
        Unreadable: The file is encrypted or broken, or no page has text.
    """
    import pypdfium2

    with open(file, "rb") as handle:
        if b"%PDF-" not in handle.read(1024):
            raise Unreadable("not a PDF file", where=str(file), mend="give it the ending of its format")
    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD_ERROR:
            mend = "save a copy without password, e.g. with qpdf --decrypt"
            raise Unreadable("is encrypted", where=str(file), mend=mend) from error
        mend = "open it in a viewer, and save or download it anew"
        raise Unreadable(f"cannot be read as a PDF file: {error}", where=str(file), mend=mend) from error
    pages: list[str] = []
    lost = Counter[str]()
    for number in range(len(document)):
        try:
            page = document[number]
            text = page.get_textpage().get_text_bounded().replace("\r\n", "\n").translate(_HYPHENS).strip()
            lost["images"] += sum(1 for _ in page.get_objects(filter=(_IMAGE,)))
            page.close()
        except pypdfium2.PdfiumError:
            lost["broken pages"] += 1
            continue
        if text:
            pages.append(text)
        else:
            lost["pages without text"] += 1
    if not pages:
        mend = "a scan needs a text layer, e.g. by ocrmypdf"
        raise Unreadable(f"no text on {len(document)} pages, {lost['images']} images", where=str(file), mend=mend)
    return Converted("\n\n".join(pages), +lost)
