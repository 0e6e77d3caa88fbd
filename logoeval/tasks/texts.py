"""The texts for needles and perplexity: two built-in ones, and any folder of ``.txt`` files."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from logodata.common.errors import UserError
from logodata.common.foreign_files import check_is_text, how_to_convert, note_empty, note_left_out
from logodata.common.json_files import MAX_JSON_BYTES
from logodata.common.printable import encodable
from logodata.common.recipes.types import token_count
from logodata.common.user_files import read_text, visible_files

_SUFFIXES = (".txt", ".md", "")
_HOW = "give a folder of UTF-8 .txt files, or one such file"

# RULER's noise haystack repeats this line.
NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_HEADING = re.compile(r"^[^\n]+\n\s*[*=\-~^\"]{3,}$")
_MARKUP = re.compile(r"(?<!\w)\*{1,2}([^*\n]+?)\*{1,2}(?!\w)|\s\[\d+\]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])|[。！？][”’」』）]*\s*")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Mt|No|vs|etc|cf|e\.g|i\.e)|\b[A-Z])\.\W*$")


def text_fingerprint(text: str) -> str:
    """Return a hash of a text, 16 hexadecimal digits, for settings and records."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


PYDOC = "pydoc"
"""The name that stands for :func:`pydoc_documents` in place of a path."""


@cache
def pydoc_documents() -> tuple[tuple[str, str], ...]:
    """Return ``(name, prose)`` of each topic of Python's language reference (``pydoc_data.topics``), in order of name.

    Only paragraphs of sentences are kept, without headings, grammar and code. A paragraph that several topics share is
    kept once, because a model copies what it has read before, which would lower its perplexity. The text comes from the
    running Python version (Python Software Foundation License), so results hold its fingerprint.
    """
    from pydoc_data import topics

    seen: set[str] = set()
    documents = []
    for name, text in sorted(topics.topics.items()):
        fresh = [paragraph for paragraph in _paragraphs(text) if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            documents.append((name, "\n\n".join(fresh)))
    return tuple(documents)


def _paragraphs(text: str) -> list[str]:
    kept: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        if _HEADING.match(block.strip()):
            continue
        # The source has line breaks inside hyphenated words ("built-\nin").
        line = re.sub(r"-\n\s*", "-", block.strip()).strip()
        line = _MARKUP.sub(lambda match: match.group(1) or "", re.sub(r"\s+", " ", line))
        line = re.sub(r"^(?:[*•]|\d+\.) ", "", line)
        letters = sum(character.isalpha() or character.isspace() for character in line)
        if len(line) >= 60 and line[0].isupper() and line[-1] in ".!?" and letters >= 0.9 * len(line):
            kept.append(line)
    return kept


def read_documents(source: Path) -> tuple[tuple[str, str], ...]:
    """Return ``(name, text)`` of one ``.txt`` file, or of all ``.txt`` files in a folder in order of name.

    Raises:
        UserError: there is no such file, all files are empty, or a file is not UTF-8.
    """
    documents, empty = [], []
    files = text_files(source)
    for file in files:
        check_is_text(file, str(file))
        text = read_text(file, most_bytes=MAX_JSON_BYTES, mend="give UTF-8 text, split into files of that size").strip()
        if text:
            documents.append((encodable(file.name), text))
        else:
            empty.append(file)
    if not documents:
        raise UserError("the text is empty", where=str(source), mend=_HOW)
    if source.is_dir():
        note_left_out(source, files, ".txt files, without subfolders,")
    note_empty(source, empty, len(files))
    return tuple(documents)


def text_files(source: Path) -> list[Path]:
    """Return one ``.txt`` file, or all ``.txt`` files in a folder in order of name, without opening them. If there is
    none, a ``UserError`` is raised."""
    files = sorted(visible_files(source, (".txt",), below=False)) if source.is_dir() else [source]
    if source.is_file() and source.suffix.lower() not in _SUFFIXES and not how_to_convert([source.suffix.lower()]):
        raise UserError(f"a {source.suffix} file is not plain text", where=str(source), mend=_HOW)
    if not files or not files[0].is_file():
        raise UserError("no .txt file here", where=str(source), mend=_HOW)
    return files


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, not empty and with single spaces inside. The end of a paragraph is a border too.
    There is no border after common abbreviations and initials, because a needle inside "Mr. Smith" would stand out."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        start = 0
        line = " ".join(paragraph.split())
        for match in _SENTENCE_END.finditer(line):
            if not _ABBREVIATION.search(line, start, match.end()):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        if line[start:].strip():
            sentences.append(line[start:].strip())
    return sentences


Length = Annotated[int, Field(gt=1), BeforeValidator(token_count)]
Lengths = Annotated[tuple[Length, ...], Field(min_length=1)]
