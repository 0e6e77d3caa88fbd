"""Bring text into one form, so that characters that look alike are equal.

Unicode has several spellings (UAX 15, UTS 39) for compatibility forms (ligatures, full-width letters), composed and
decomposed accents, digits of other scripts, dashes, apostrophes, soft hyphens and characters without width. Letters
keep their case and their marks: ``दिल्ली`` is not ``दल``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import regex

_NON_ASCII = regex.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # with the ASCII letter that a first mark belongs to
CLUSTER = regex.compile(r"\p{RI}{1,2}|[\p{Block=Hangul_Jamo}]+|\P{M}[\p{M}\uff9e\uff9f]{0,30}|\p{M}{1,30}")
"""A character as a reader counts it: a letter with its marks. Unicode's full rule takes quadratic time on some
texts."""
_INVISIBLE = regex.compile(
    # Vowel marks of Arabic and Hebrew may be written or left out.
    r"[\p{Default_Ignorable_Code_Point}\p{Cf}\N{ARABIC TATWEEL}\u064b-\u0652\u0670"
    r"\u05b0-\u05bd\u05bf\u05c1\u05c2\u05c7]"
)
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u201b", "'"),
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
        **dict.fromkeys("\u2044\u2215", "/"),
        "\u066b": ".",  # the Arabic decimal and thousands separators
        "\u066c": ",",
        "\u266f": "#",
    }
)
_TYPED = str.maketrans("\u00ba\u02da\u00b4`\u02bb\u02be", "\u00b0\u00b0''''")  # what people type for ° and '
_LONGEST_UNIT = 3  # letters: in "km²" the digit belongs to the unit, in "lighthouse²" it is a footnote


def normalise(text: str) -> tuple[str, Sequence[int] | None]:
    """Return the normal form of a text, with the place in ``text`` that each of its characters came from.

    Returns:
        The normal form, and ``places`` of length ``len(normal form) + 1``: character ``i`` came from
        ``text[places[i]]``, and the last entry is ``len(text)``. ``places`` is None if nothing moved.
    """
    if text.isascii():
        return text, None
    form: list[str] = []
    places: list[int] = []

    def add(piece: str, start: int) -> None:
        form.append(piece)
        places.extend([start] * len(piece))

    position = 0
    for stretch in _NON_ASCII.finditer(text):
        form.append(text[position : stretch.start()])
        places.extend(range(position, stretch.start()))
        for cluster in CLUSTER.finditer(text, stretch.start(), stretch.end()):
            piece = cluster.group()
            add(_set_apart(piece, form) or _fold(piece), cluster.start())
        position = stretch.end()
    form.append(text[position:])
    places.extend(range(position, len(text) + 1))
    return "".join(form), places


def _set_apart(character: str, before: Sequence[str]) -> str | None:
    """Return a vulgar fraction or a raised digit, set apart from digits before it; None for any other character. NFKC
    would write 3½ as 31⁄2 and 10² as 102."""
    if len(character) != 1 or character.isascii():
        return None
    written = unicodedata.decomposition(character)
    if not written.startswith(("<fraction>", "<super>")):
        return None
    plain = unicodedata.normalize("NFKC", character).translate(_ALIKE)
    reach = _LONGEST_UNIT + 1
    last = "".join(piece[-reach:] for piece in before[-reach:])[-reach:]
    if written.startswith("<fraction>"):
        return f" {plain}" if last[-1:].isdigit() else plain
    if plain == "-" and last[-1:].isdigit():
        return "^-"
    if not plain.isdigit():
        return " " if unicodedata.category(character) == "So" else None  # a trade mark sign is not a letter of the word
    if last[-1:].isdigit() or last.endswith("^-"):
        return plain if "^" in last else f"^{plain}"
    return f" {plain}" if len(last) > _LONGEST_UNIT and last.isalpha() else plain


@lru_cache(maxsize=1 << 16)
def _fold(cluster: str) -> str:
    """Return the normal form of one character as a reader sees it (a grapheme cluster)."""
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", cluster.translate(_TYPED))).translate(_ALIKE)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain)


def fold_case(word: str) -> str:
    """Return a word without its case, in normal form. Case folding may leave that form, so it is applied again."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word.casefold().replace("i\u0307", "i"))  # İ is an i with a dot
