"""The text of a Word document (.docx), as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from logodata.common.errors import first_line, pass_on
from logodata.sources.converters import Converted, Unreadable
from logodata.sources.converters.archive import open_archive
from logodata.sources.converters.page import html_text

_PARTS = {
    re.compile(r"word/(?:header|footer)\d*\.xml"): "headers and footers",
    re.compile(r"word/comments\.xml"): "comments",
}
_TEXT = re.compile(rb"<w:t[ >]")
_FORMULA = re.compile(rb"<m:oMath[ >]")
_IGNORED = "An unrecognised element was ignored: "


def word_text(file: Path, _encoding: str | None) -> Converted:
    """Return the text of a Word document: its body, with footnotes at the end. Links to other files are not followed.
    ``lost`` counts images (whose descriptions stay), tables, which become rows of cells, and what is left out: headers
    and footers, comments, formulas and elements that mammoth does not know.

    Raises:
        Unreadable: It is no Word document, is encrypted or broken, or has no text.
    """
    import mammoth

    lost = Counter[str]()
    with open_archive(file) as archive:
        names = archive.namelist()
        for pattern, name in _PARTS.items():
            parts = (archive.read(part) for part in names if pattern.fullmatch(part))
            lost[name] = sum(1 for part in parts if _TEXT.search(part))
        if "word/document.xml" in names:
            lost["formulas"] = len(_FORMULA.findall(archive.read("word/document.xml")))
    try:
        with open(file, "rb") as handle:
            result = mammoth.convert_to_html(
                handle, convert_image=mammoth.images.img_element(_no_source), include_embedded_style_map=False
            )
    except Exception as error:  # any, where a part is not what mammoth expects
        pass_on(error)
        mend = "open it in a word processor, and save or download it anew"
        what = f"cannot be read as a Word document: {first_line(error)}"
        raise Unreadable(what, where=str(file), mend=mend) from error
    ignored = {message.message for message in result.messages if message.message.startswith(_IGNORED)}
    lost["kinds of unknown elements"] = sum("math}" not in message for message in ignored)
    converted = html_text(result.value)
    if not converted.text:
        raise Unreadable(
            "a Word document without text", where=str(file), mend="leave it out, or look at it in a word processor"
        )
    return Converted(converted.text, +(lost + converted.lost))


def _no_source(_image: Any) -> dict[str, str]:
    """The attributes of an image, which is not opened."""
    return {"src": ""}
