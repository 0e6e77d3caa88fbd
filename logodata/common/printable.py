"""Text of strangers as a terminal and Markdown may have it: nothing in it is obeyed."""

from __future__ import annotations

import re

_HALF = re.compile("[\ud800-\udfff]")
_UNSHOWN = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""C1, which some terminals obey too, and signs that turn the order of letters round."""

_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(_UNSHOWN, 0xFFFD),
}
"""C0 and DEL become the signs for them: what began an escape sequence is ``\N{SYMBOL FOR ESCAPE}``."""

_PASSWORD = re.compile(r"//[^/@\s]+@")

_OBEYED = re.compile(r"[\\`]|<(?=[A-Za-z/!?])|(?<=\])(?=\()")


def encodable(text: str, backslash: str = "\\") -> str:
    """The text as UTF-8 can hold it.

    A byte of a file's name that is not UTF-8, which Python has as half a character, becomes ``\\xe9``; any other half
    becomes the replacement character.

    Args:
        text: any.
        backslash: how one is written where the text is going.
    """

    def shown(half: re.Match[str]) -> str:
        byte = ord(half[0]) - 0xDC00
        return f"{backslash}x{byte:02x}" if 0x80 <= byte <= 0xFF else "\ufffd"

    return _HALF.sub(shown, text)


def printable(text: str) -> str:
    """The text without what a terminal obeys; tabs and ends of lines stay."""
    return encodable(text).replace("\r\n", "\n").translate(_PICTURES)


def without_passwords(text: str) -> str:
    """The text without the user and password of any address in it."""
    return _PASSWORD.sub("//***@", text)


def markdown_text(text: str) -> str:
    """The text on one line of Markdown, as text: no code, link or element begins in it."""
    return _OBEYED.sub(r"\\\g<0>", " ".join(printable(text).split()))


def markdown_cell(text: str) -> str:
    """:func:`markdown_text` in a table."""
    return markdown_text(text).replace("|", "\\|")


def markdown_code(text: str) -> str:
    """The text as code in a line of Markdown, whatever backticks it holds; in a table a bar in it ends the cell."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
