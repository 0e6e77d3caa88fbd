"""Words, and numbers in digits as values: 1,204 and 1204, 3.50 and 3.5, 10:30, 5kg, 21st, $3M."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

from logodata.common.words import units

MOST_DIGITS = 100
"""A number with more digits is compared as text."""
INITIALS = "initials"
ORDINAL = "th"
VERSION = "version"


class Word(NamedTuple):
    """A word of a text in the form in which it is compared.

    ``start`` and ``end`` are its place. ``kind`` is ``number`` for a value (``text`` is its shortest form, ``unit`` the
    name of its unit if it has one), and ``run`` for a stretch of a script without spaces between words. ``literal`` is
    the original text. A word that is not ``telling`` carries no meaning of its own. A number that is not ``exact``
    ("one", "first") may be missing from an answer.
    """

    text: str
    start: int
    end: int
    kind: Literal["word", "number", "run"] = "word"
    unit: str = ""
    literal: str = ""
    telling: bool = True
    exact: bool = True
    value: Fraction | None = None


def number(value: Fraction, start: int, end: int, unit: str = "", literal: str = "") -> Word:
    """Return a number with its value, written in the shortest form: ``3.5``, ``1/3``."""
    return Word(shortest(value), start, end, "number", unit, literal, value=value)


def shortest(value: Fraction) -> str:
    """Return the shortest text that gives a value exactly."""
    rest = value.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    if value.denominator == 1 or rest > 1:
        return str(value)
    digits = Context(prec=6 * MOST_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{digits:f}"


def read_number(written: str, start: int, end: int) -> Word:
    """Read a number in digits, without sign, unit and currency: ``1,204.5``, ``1.204,50``, ``3 1/2``, ``10:30``,
    ``2.3.1``.

    A point is the decimal point, and so is a comma that does not group three digits. Times, ratios and numbers of more
    parts (versions, dates with points) are one word, compared part by part.
    """
    if ":" in written:
        return _clock(written, start, end)
    plain = written.replace("'", "").replace("_", "")
    pieces = plain.split(".")
    if "," in pieces[-1] and len(pieces) > 1:  # 1.204,50
        plain = "".join(pieces).replace(",", ".")
    elif len(pieces) > 2 and all(len(piece) == 3 for piece in pieces[1:]):  # 1.204.000
        plain = "".join(pieces)
    elif len(pieces) > 2:
        return Word(_without_zeros(written, "."), start, end, "number", literal=written)
    elif "," in plain:
        grouped = len(pieces[0].rpartition(",")[2]) == 3 and not plain.startswith("0,")
        plain = plain.replace(",", "" if grouped else ".")
    *whole, last = plain.split(" ") if "/" in plain else [plain.replace(" ", "")]
    above, _, below = last.partition("/")
    if sum(map(str.isdigit, plain)) > MOST_DIGITS or (below and not int(below)):
        return Word(plain, start, end, "number", literal=written)
    value = sum(map(int, whole)) + Fraction(above) / int(below or 1)
    return number(value, start, end, literal=written)


def _without_zeros(written: str, between: str) -> str:
    return between.join(part.lstrip("0") or "0" for part in written.split(between))


def _clock(written: str, start: int, end: int) -> Word:
    """Read a time of day on twelve hours, or a ratio. 15:45 is 3:45 in the afternoon; 3:45 alone may be either."""
    hour, *rest = written.split(":")
    if len(rest) > 2 or len(hour) > 2 or int(hour) > 24 or any(len(part) != 2 or int(part) > 59 for part in rest):
        return Word(_without_zeros(written, ":"), start, end, "number", literal=written)
    half = "am" if int(hour) in (0, 24) else "pm" if int(hour) > 12 else ""
    text = ":".join([str((int(hour) - 1) % 12 + 1), rest[0], *(part for part in rest[1:] if part != "00")])
    return Word(text, start, end, "number", half, written)


def as_time(word: Word, half: str) -> Word | None:
    """Return ``10``, ``10.30`` or ``10:30`` with ``am`` or ``pm`` (or "o'clock") as a time; None if it is not one."""
    if ":" in word.text:
        return word._replace(unit=half or word.unit)
    hour, _, minutes = word.literal.partition(".") if word.literal[:1].isdigit() else (str(word.text), "", "")
    if word.unit or not hour.isdigit() or not 1 <= int(hour) <= 12 or len(minutes) not in (0, 2):
        return None
    if minutes and not (minutes.isdigit() and int(minutes) < 60):
        return None
    return word._replace(text=f"{int(hour)}:{minutes or '00'}", unit=half, value=None)


def as_version(word: Word) -> Word:
    """Return a number as the name of a version: 2.10 is not 2.1."""
    return word._replace(text=word.literal, unit=VERSION, value=None)


def with_suffix(word: Word, suffix: str) -> Word | None:
    """Return a number with the letters glued to it (``5kg``, ``21st``, ``3M``, ``5pm``); None if they are not part of
    it."""
    lowered, value = suffix.lower().replace(".", "").replace(" ", ""), word.value
    if value is None:
        return as_time(word, lowered) if lowered in ("am", "pm") else None
    if lowered in ("st", "nd", "rd", "th"):
        return word._replace(unit=ORDINAL) if value.denominator == 1 and not word.unit else None
    is_name = value.denominator == 1 and not word.unit and suffix in ("B", "T")  # 221B Baker Street
    if not is_name and (factor := units.scale(suffix, of_money=units.is_money(word.unit))):
        return number(value * factor, word.start, word.end, word.unit)
    if lowered in ("am", "pm"):
        return as_time(word, lowered)
    name = units.unit(suffix, glued=True)
    is_decade = lowered == "s" and value % 10 == 0  # "1990s"
    if suffix == "G":  # 5G
        return None
    return word._replace(unit=name) if name and not word.unit and not is_decade else None


def negated(word: Word) -> Word:
    """Return a number with the opposite sign."""
    if word.value is None:
        return word
    return word._replace(text=shortest(-word.value), value=-word.value, literal="")
