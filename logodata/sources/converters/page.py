"""The text of an HTML page, as Markdown: headings, lists, tables and code keep their form."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from pathlib import Path

from logodata.common import json_files
from logodata.common.user_files import decode_text
from logodata.sources.converters import Converted, Unreadable

_DECLARED = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)|<\?xml[^>]{0,200}?encoding=[\"']([\w.:-]+)", re.I
)
_DECLARED_WITHIN = 4096
_XML_HEAD = re.compile(r"\A\s*<\?xml[^>]*>")
_AS_WINDOWS = ("iso8859-1", "ascii")
"""Pages that declare these are in Windows-1252 (WHATWG, Encoding, section 4.2)."""

_INVISIBLE = ("script", "style", "template", "noscript", "title", "meta", "link", "base")
"""Not ``head`` as a whole: its end tag may be left out, and the parser then takes the body for a part of it."""
_LOST = {
    "nav": "menus",
    **dict.fromkeys(("img", "svg", "canvas"), "images"),
    **dict.fromkeys(("video", "audio", "iframe", "object", "embed"), "media"),
    "math": "formulas",
    "table": "tables flattened",
}


def page_text(file: Path, encoding: str | None) -> Converted:
    """Return the text of an HTML page. Scripts are not run, and nothing that it names is loaded. ``lost`` counts menus
    (``nav``), images (whose descriptions stay), media, formulas and tables, which become rows of cells.

    Raises:
        UserError: The page cannot be decoded.
        Unreadable: It is too long or has no text.
    """
    most = json_files.MAX_JSON_BYTES
    with open(file, "rb") as handle:
        data = handle.read(most + 1)
    if len(data) > most:
        raise Unreadable(f"more than {most // 2**20} MiB", where=str(file), mend="split it into documents")
    html, found = decode_page(data, str(file), encoding)
    converted = html_text(html)
    if not converted.text:
        raise Unreadable(
            "an HTML page without text",
            where=str(file),
            mend="its text may come from scripts: save what a browser shows",
        )
    converted.encoding = found
    return converted


def html_text(html: str) -> Converted:
    """Return the text of a page or of a part of one; it may be empty."""
    from bs4 import BeautifulSoup, Tag
    from bs4.element import Declaration, ProcessingInstruction
    from markdownify import MarkdownConverter

    class _Converter(MarkdownConverter):
        def convert_img(self, el: Tag, *_arguments: object, **_named: object) -> str:
            return str(el.get("alt") or "")

    soup = BeautifulSoup(_XML_HEAD.sub("", html, count=1), "html.parser")
    for tag in soup.find_all(_INVISIBLE):
        tag.decompose()
    for said in soup.find_all(string=lambda it: isinstance(it, Declaration | ProcessingInstruction)):
        said.extract()
    lost = Counter[str]()
    for tag in soup.find_all(list(_LOST)):
        if not tag.decomposed:
            lost[_LOST[tag.name]] += 1
            if tag.name == "nav":
                tag.decompose()
    writer = _Converter(
        heading_style="atx",
        bullets="-",
        strip=["a"],
        table_infer_header=True,
        escape_asterisks=False,
        escape_underscores=False,
    )
    text = writer.convert_soup(soup)
    lines = (line.rstrip() for line in text.splitlines())
    return Converted(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip(), lost)


def decode_page(data: bytes, where: str, encoding: str | None) -> tuple[str, str]:
    """Return the text of a page and its encoding, which is empty for UTF-8.

    The encoding is that of a byte order mark, else the one that the page declares, else UTF-8, else ``encoding``. The
    first one in which the page can be decoded counts.

    Raises:
        UserError: It is none of them.
    """
    match = _DECLARED.search(data[:_DECLARED_WITHIN])
    if match is not None:
        try:
            name = codecs.lookup((match[1] or match[2]).decode("ascii", "replace")).name
            name = "cp1252" if name in _AS_WINDOWS else name
            if not name.startswith(("utf-16", "utf-32", "utf-8")):
                return data.decode(name), name
        except (LookupError, ValueError):  # no encoding, one of bytes or texts (rot13), or not that of this page
            pass
    return decode_text(data, where, encoding)
