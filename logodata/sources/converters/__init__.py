"""Turn documents of other formats into text: PDF files, HTML pages, Word documents and EPUB books.

A converter takes a file and returns its text and counts of what the text lacks. ``pdf``, ``page``, ``word`` and
``book`` hold one each. ``worker`` runs them in a process of its own, with a limit of memory, and ``process`` talks to
it: a document made to fill the memory, or to end the process that reads it, costs that document and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec

from logodata.common.errors import UserError

KINDS = {
    ".pdf": "a PDF file",
    **dict.fromkeys((".html", ".htm", ".xhtml"), "an HTML page"),
    ".docx": "a Word document",
    ".epub": "an EPUB book",
}
"""The extensions of files that can be converted, and what such a file is."""

SUFFIXES = tuple(KINDS)


class Unreadable(UserError):
    """A document that cannot be turned into text. In a folder it is set apart with this reason, and alone it ends the
    command."""


@dataclass(slots=True)
class Converted:
    """The text of a document. ``lost`` counts what the document has and the text lacks or flattens, by name.
    ``encoding`` is that of its file, where it is not UTF-8."""

    text: str
    lost: Counter[str] = field(default_factory=Counter)
    encoding: str = ""


def versions(suffixes: Collection[str]) -> str:
    """Return the libraries that convert files with these extensions, with their versions, a line each."""
    libraries = sorted({library for suffix in suffixes for library in _libraries(suffix)})
    return "".join(f"{library} {version(library)}\n" for library in libraries)


def _libraries(suffix: str) -> tuple[str, ...]:
    return {".pdf": ("pypdfium2",), ".docx": ("mammoth", "markdownify")}.get(suffix, ("markdownify",))


def check_installed(suffixes: Collection[str]) -> None:
    """Check that the libraries are installed that files with these extensions need.

    Raises:
        UserError: One of them is not.
    """
    for suffix in sorted(set(suffixes)):
        for library in _libraries(suffix):
            if find_spec(library) is None:
                mend = "pip install '.[documents]' in the checkout, or 'logo-align[documents]'"
                raise UserError(f"{library} is not installed, which {suffix} files need", mend=mend)
