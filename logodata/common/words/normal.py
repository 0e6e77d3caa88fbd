"""Text in one form: what looks alike is written alike, whatever the characters that were typed.

Compatibility forms (ligatures, full-width letters), composed and decomposed accents, digits of other scripts, dashes,
apostrophes, soft hyphens and characters without width all have several spellings in Unicode (UAX 15, UTS 39). Letters
keep their case and their marks: ``दिल्ली`` is not ``दल``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import regex

_NON_ASCII = regex.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # with the ASCII letter that a first mark belongs to
CLUSTER = regex.compile(r"\p{RI}{1,2}|[\p{Block=Hangul_Jamo}]+|\P{M}[\p{M}\uff9e\uff9f]{0,30}|\p{M}{1,30}")
"""A character as a reader counts them: a letter with its marks. The full rule of Unicode takes quadratic time on some
texts."""
_INVISIBLE = regex.compile(
    # Vowels of Arabic and Hebrew are written or left out.
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
    """The text in its normal form, with the place in ``text`` that each of its characters came from.

    Returns:
        The normal form, and ``places`` of length ``len(normal form) + 1``: character ``i`` came from
        ``text[places[i]]``, and the last entry is ``len(text)``. None instead of the places: nothing moved.
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
            add(_raised(piece, form) or _fold(piece), cluster.start())
        position = stretch.end()
    form.append(text[position:])
    places.extend(range(position, len(text) + 1))
    return "".join(form), places


def _raised(character: str, before: Sequence[str]) -> str | None:
    """A vulgar fraction or a raised digit, set apart from the digits before it: NFKC would write 3½ as 31⁄2 and 10² as
    102. None for anything else."""
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
        return " " if unicodedata.category(character) == "So" else None  # a trade mark is no letter of the word
    if last[-1:].isdigit() or last.endswith("^-"):
        return plain if "^" in last else f"^{plain}"
    return f" {plain}" if len(last) > _LONGEST_UNIT and last.isalpha() else plain


@lru_cache(maxsize=1 << 16)
def _fold(cluster: str) -> str:
    """The normal form of one character as a reader sees it (a grapheme cluster)."""
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", cluster.translate(_TYPED))).translate(_ALIKE)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain)


def fold_case(word: str) -> str:
    """A word of a normal form without its case; case folding may take it out of that form, so it is made anew."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word.casefold().replace("i\u0307", "i"))  # İ is an i with a dot
