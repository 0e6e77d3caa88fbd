"""Make text of strangers safe for a terminal and for Markdown: neither interprets anything in it."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_HIDDEN_CONTROLS = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""C1 controls, which some terminals obey too, and characters that change the direction of text."""

_REPLACEMENTS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(_HIDDEN_CONTROLS, 0xFFFD),
}
"""C0 controls and DEL become their symbols: the start of an escape sequence becomes ``\N{SYMBOL FOR ESCAPE}``."""

_MARKUP = re.compile(r"[\\`]|<(?=[A-Za-z/!?])|(?<=\])(?=\()")
_PASSWORD = re.compile(r"//[^/@\s]+@")


def encodable(text: str, backslash: str = "\\") -> str:
    """Return the text in a form that UTF-8 can encode.

    Python reads a byte of a file name that is not UTF-8 as an unpaired surrogate. It becomes ``\\xe9``; any other
    unpaired surrogate becomes the replacement character. ``backslash`` says how one is written where the text goes.
    """

    def shown(half: re.Match[str]) -> str:
        byte = ord(half[0]) - 0xDC00
        return f"{backslash}x{byte:02x}" if 0x80 <= byte <= 0xFF else "\ufffd"

    return _SURROGATE.sub(shown, text)


def printable(text: str) -> str:
    """Return the text without what a terminal obeys. Tabs and line ends stay."""
    return encodable(text).replace("\r\n", "\n").translate(_REPLACEMENTS)


def without_passwords(text: str) -> str:
    """Return the text without the user and password of any address in it."""
    return _PASSWORD.sub("//***@", text)


def markdown_text(text: str) -> str:
    """Return the text as one line of Markdown in which no code, link or element begins."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))


def markdown_cell(text: str) -> str:
    """Return :func:`markdown_text` for a cell of a table."""
    return markdown_text(text).replace("|", "\\|")


def markdown_code(text: str) -> str:
    """Return the text as inline code of Markdown, whatever backticks it holds. In a table, a bar in it ends the
    cell."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
