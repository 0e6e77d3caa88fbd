"""Numbers as values: 1,204 and 1204, 3.50 and 3.5, forty-two and 42, 3 million and 3,000,000, $29 and 29 dollars.

Numbers in words are found by text2num (English). What it leaves apart is put together here: scales behind digits,
fractions, signs, units, times of day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple
from unicodedata import name as unicode_name

from logodata.common.words.normal import fold_case

# A unit a line: its name, then other spellings. Plurals are found by their stem.
_UNIT_LINES = """
metre meter m
kilometre kilometer km
centimetre centimeter cm
millimetre millimeter mm
mile mi
yard yd
foot feet ft
inch
gram gramme g
kilogram kilo kg
milligram mg
tonne t
ton
pound lb lbs gbp sterling
ounce oz
litre liter l
millilitre milliliter ml
gallon gal
acre
hectare ha
second sec s
minute min
hour hr hrs h
day
week wk
month
year yr yrs
decade
century centuries
percent pct
degree
celsius centigrade
fahrenheit
kelvin
hertz hz
kilohertz khz
megahertz mhz
gigahertz ghz
byte
kilobyte kb
megabyte mb
gigabyte gb
terabyte tb
watt w
kilowatt kw
megawatt mw
volt v
dollar usd buck
euro eur
yen jpy
rupee inr rs
yuan cny rmb
franc chf
cent
fathom
league
knot
square-metre m2 sqm
square-kilometre km2
cubic-metre m3
mile-per-hour mph
kilometre-per-hour kmh kph
"""
_UNITS = {spelling: line.split()[0] for line in _UNIT_LINES.strip().splitlines() for spelling in line.split()}
_SCALES = {"k": 10**3, "mn": 10**6, "mln": 10**6, "mio": 10**6, "bn": 10**9, "tn": 10**12}
_CAPITAL_SCALES = {"M": 10**6, "B": 10**9, "T": 10**12}
_SCALE_WORDS = ("hundred", "thousand", "million", "billion", "trillion")
_GROUPS = {"dozen": 12}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_DENOMINATORS = range(3, 101)
_ARTICLES = ("a", "an")
_NOT_THE_NUMBER_ONE = frozenset(
    ["another", "any", "each", "every", "no", "only", "other", "same", "some", "that", "the", "this", "which"]
)
_NOT_THE_SECOND = ("each", "every", "per", "split")
_MOST_DIGITS = 100  # a longer run of digits is compared as it is written
_ORDINAL = "th"
_POWERS = {"square": "square-", "sq": "square-", "cubic": "cubic-"}
_BEFORE_A_MONTH = frozenset(
    ["by", "during", "early", "from", "in", "last", "late", "mid", "next", "of", "since", "this", "till", "to", "until"]
)
_BETWEEN = ("and", "point")
_VERSIONS = ("version", "ver", "v", "release")
HEAT = ("celsius", "fahrenheit", "kelvin")
"""Units that "degrees" may stand for."""


class Word(NamedTuple):
    """A word of a text in the form in which it is compared.

    ``start`` and ``end`` are its place. ``kind`` is ``number`` for a value (``text`` is the shortest way to write it,
    ``unit`` the name of its unit if it has one, ``literal`` what stood there), and ``run`` for a stretch of a script
    that puts no spaces between words. A word that is not ``telling`` carries no meaning of its own, and a number that
    is not ``exact`` ("one", "first") may be missing from an answer.
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


def number(value: Fraction, literal: str, start: int, end: int, unit: str = "") -> Word:
    """A number with its value, written in the shortest way: ``3.5``, ``1/3``."""
    return Word(_shortest(value), start, end, "number", unit, literal, value=value)


def _shortest(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    digits = Context(prec=2 * _MOST_DIGITS + 400).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{digits:f}"


def read_number(written: str, start: int, end: int) -> Word:
    """A number in digits, without sign, unit and currency: ``1,204.5``, ``1.204,50``, ``3 1/2``, ``10:30``, ``2.3.1``.

    A point is the decimal point, and so is a comma that groups no three digits. Times, ratios and numbers of more parts
    (versions, dates with points) are one thing, compared part by part.
    """
    if ":" in written:
        return _clock([part.lstrip("0") or "0" for part in written.split(":")], written, start, end)
    plain = written.replace("'", "")
    pieces = plain.split(".")
    grouped = len(pieces) > 1 and all(len(piece.split(",")[0]) == 3 for piece in pieces[1:])
    if "," in pieces[-1] and len(pieces) > 1:
        plain = "".join(pieces).replace(",", ".")
    elif len(pieces) > 2 and not grouped:
        return Word(".".join(piece.lstrip("0") or "0" for piece in pieces), start, end, "number", literal=written)
    elif len(pieces) > 2:
        plain = "".join(pieces)
    elif "," in plain:
        last = plain.split(".")[0].split(",")[-1]
        plain = plain.replace(",", "") if len(last) == 3 else plain.replace(",", ".")
    if sum(map(str.isdigit, plain)) > _MOST_DIGITS:
        return Word(plain, start, end, "number", literal=written)
    if "/" in plain:
        *whole, fraction = plain.split()
        above, below = map(int, fraction.split("/"))
        if not below:
            return Word(plain, start, end, "number", literal=written)
        return number(sum(map(int, whole)) + Fraction(above, below), written, start, end)
    return number(Fraction(plain.replace(" ", "")), written, start, end)


def _clock(parts: list[str], literal: str, start: int, end: int) -> Word:
    """A time of day on twelve hours, or a ratio. 15:45 is 3:45 in the afternoon; 3:45 alone may be either."""
    minutes = literal.split(":")[1:]
    if len(parts) > 3 or any(len(part) != 2 or int(part) > 59 for part in minutes) or len(parts[0]) > 2:
        return Word(":".join(parts), start, end, "number", literal=literal)
    hour, unit = int(parts[0]), ""
    if hour > 24:
        return Word(":".join(parts), start, end, "number", literal=literal)
    if hour in (0, 24):
        hour, unit = 12, "am"
    elif hour > 12:
        hour, unit = hour - 12, "pm"
    seconds = "" if minutes[1:] in ([], ["00"]) else f":{minutes[1]}"
    return Word(f"{hour}:{minutes[0]}{seconds}", start, end, "number", unit, literal)


def with_suffix(found: Word, suffix: str, *, money: bool) -> Word | None:
    """A number with the letters glued to it (``5kg``, ``21st``, ``3M``, ``5pm``); None if they are no part of it."""
    lowered = fold_case(suffix)
    if lowered in ("st", "nd", "rd", "th") and found.value is not None and found.value.denominator == 1:
        return found._replace(unit=_ORDINAL)
    if found.value is not None:
        scale = _SCALES.get(lowered) or _CAPITAL_SCALES.get(suffix.upper() if money else suffix)
        if scale:
            return number(found.value * scale, found.literal + suffix, found.start, found.end, found.unit)
    if lowered in ("am", "pm"):
        return _with_half_of_day(found, lowered)
    unit = _UNITS.get(lowered)
    if unit is None or found.unit:
        return None
    if lowered == "s" and found.value is not None and found.value % 10 == 0:
        return None  # "1990s" is a decade
    return found._replace(unit=unit)


def as_version(found: Word) -> Word:
    """A number that names a version: 2.10 is not 2.1."""
    return found._replace(text=found.literal, unit="version", value=None)


def currency(symbol: str) -> str:
    """The name of the money that a symbol stands for, or of what a percent or degree sign says: ``dollar``."""
    return unicode_name(symbol, "").removesuffix(" SIGN").rpartition(" ")[2].lower()


class _Piece:
    """A word, or what stands between two, as text2num takes it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        """What stands there."""
        return self._text

    def nt_separated(self, previous: object) -> bool:  # noqa: ARG002
        """Whether something other than the text parts a piece from the one before: never."""
        return False

    def not_a_number_part(self) -> bool:
        """Whether a piece is no part of a number in spite of its form: never."""
        return False


def numbers_in_words(found: Sequence[Word], text: str) -> list[Word]:
    """The words of a text with those that spell a number taken together: ``forty-two``, ``twenty-first``."""
    result: list[Word] = []
    index = 0
    while index < len(found):
        if not _spells(found[index]):
            result.append(found[index])
            index += 1
            continue
        end = index + 1
        while end < len(found) and (_spells(found[end]) or found[end].text in _BETWEEN):
            end += 1
        result += _taken_together(found, index, end, text)
        index = end
    return result


def _spells(word: Word) -> bool:
    return word.kind == "word" and _spells_a_number(word.text)


@lru_cache(maxsize=1 << 16)
def _spells_a_number(word: str) -> bool:
    from text_to_num import find_numbers

    return bool(find_numbers([_Piece(word)], "en", 0.0))


def _taken_together(found: Sequence[Word], first: int, end: int, text: str) -> Iterator[Word]:
    """The words from ``first`` up to ``end``, those that spell a number as one."""
    from text_to_num import find_numbers

    pieces: list[_Piece] = []
    index_of: dict[int, int] = {}  # the number of a piece -> that of its word
    for index in range(first, end):
        if index > first:
            pieces.append(_Piece(text[found[index - 1].end : found[index].start]))
        index_of[len(pieces)] = index
        pieces.append(_Piece(text[found[index].start : found[index].end]))
    done = first
    for place in find_numbers(pieces, "en", 0.0):
        begins, ends = index_of[place.start], index_of[place.end - 1]
        word = _spelled(found, begins, ends, place.text, place.is_ordinal)
        if word is not None:
            yield from found[done:begins]
            yield word
            done = ends + 1
    yield from found[done:end]


def _spelled(found: Sequence[Word], first: int, last: int, digits: str, is_ordinal: bool) -> Word | None:
    """The number that some words spell; None where they mean something else ("no one", "a second later")."""
    before = found[first - 1] if first else None
    after = found[last + 1].text if last + 1 < len(found) else ""
    source = " ".join(word.text for word in found[first : last + 1])
    if source == "o":  # of "o'clock"
        return None
    if source == "one" and (after == "another" or (before is not None and before.text in _NOT_THE_NUMBER_ONE)):
        return None
    if source == "second" and (
        after in ("later", "ago")
        or (before is not None and (before.kind == "number" or before.text in (*_NOT_THE_SECOND, "one")))
    ):
        return None
    value = Fraction(digits.rstrip("sthndr") if is_ordinal else digits)
    word = number(value, source, found[first].start, found[last].end, _ORDINAL if is_ordinal else "")
    return word._replace(telling=source != "one", exact=source not in ("one", "first"))


def combine(found: Sequence[Word], text: str) -> list[Word]:
    """Numbers with what belongs to them: scales, fractions, signs, units, the time of day."""
    reader = _Reader(found, text)
    return list(reader.read())


class _Reader:
    """Reads words from left to right; ``_at`` is the next one."""

    def __init__(self, found: Sequence[Word], text: str) -> None:
        self._found, self._text, self._at = found, text, 0

    def read(self) -> Iterator[Word]:
        while self._at < len(self._found):
            word = self._part_of_one(self._take()) or self._found[self._at - 1]
            if word.kind == "number":
                start = self._found[self._at - 1]
                word = self._number(word)
                yield _as_word(start) if word is start and _is_plural(word) else word
            elif word.text in ("minus", "negative") and self._next_is(lambda w: w.kind == "number", " -"):
                start_of_sign = word.start
                word = self._number(self._take())
                yield _negated(word)._replace(start=start_of_sign)
            elif word.text == "may" and self._is_month(word):
                yield word._replace(text="May", telling=True)
            elif word.text in _VERSIONS and self._next_is(_is_in_digits, " "):
                yield as_version(self._take())._replace(start=word.start)
            else:
                yield word

    def _take(self) -> Word:
        self._at += 1
        return self._found[self._at - 1]

    def _peek(self, ahead: int = 0) -> Word | None:
        return self._found[self._at + ahead] if self._at + ahead < len(self._found) else None

    def _gap(self, ahead: int = 0) -> str:
        """What stands before the next word (or one further ahead)."""
        index = self._at + ahead
        return self._text[self._found[index - 1].end : self._found[index].start]

    def _next_is(self, test: Callable[[Word], bool], allowed: str = " -/", ahead: int = 0) -> bool:
        """Whether the next word passes and nothing but the ``allowed`` characters stands before it."""
        word = self._peek(ahead)
        return word is not None and not self._gap(ahead).strip(allowed + "\n\t") and test(word)

    def _next_are(self, *wanted: str) -> bool:
        return all(self._next_is(lambda w, text=text: w.text == text, " ", n) for n, text in enumerate(wanted))  # type: ignore[misc]

    # Fractions that begin with a word: "half a million", "half of it", "a third of it".
    def _part_of_one(self, word: Word) -> Word | None:
        if word.text == "half" and word.kind == "word":
            if self._next_is(lambda w: w.text in _ARTICLES, " ") and self._next_is(_is_scale, " ", 1):
                self._take()
                scale = self._take()
                return number(_scale_of(scale) / 2, "", word.start, scale.end)
            if self._next_is(lambda w: w.text in _ARTICLES, " "):
                article = self._take()
                return number(Fraction(1, 2), "", word.start, article.end)
            if self._next_is(lambda w: w.text in ("of", "the"), " "):
                return number(Fraction(1, 2), "", word.start, word.end)
        elif word.text in _ARTICLES and self._next_is(lambda w: bool(_denominator(w)), " "):
            if self._next_is(lambda w: w.text == "of", " ", 1):
                part = self._take()
                return number(Fraction(1, _denominator(part)), "", part.start, part.end)
        elif word.text in _ARTICLES and self._next_is(lambda w: w.text in _GROUPS, " "):
            group = self._take()
            return number(Fraction(_GROUPS[group.text]), "", group.start, group.end)
        return None

    def _number(self, word: Word) -> Word:
        value = word.value
        if value is not None:
            taken = self._scaled(word, value) or self._fraction(word, value) or self._year(word, value)
            if taken is not None:
                word, value = taken, taken.value
            if value is not None and self._next_are("and", "a") and self._next_is(_is_part, " ", 2):
                self._take()
                self._take()
                part = self._take()
                word = number(value + Fraction(1, _denominator(part)), "", word.start, part.end)
        return self._below_zero(self._with_unit(word))

    def _scaled(self, word: Word, value: Fraction) -> Word | None:
        if word.unit == _ORDINAL or not self._next_is(_is_scale, " -"):
            return None
        scale = self._take()
        return number(value * _scale_of(scale), "", word.start, scale.end, word.unit)

    def _fraction(self, word: Word, value: Fraction) -> Word | None:
        if value.denominator != 1 or word.unit or not self._next_is(lambda w: bool(_denominator(w)), " -"):
            return None
        part = self._peek()
        assert part is not None
        plural = (part.literal or part.text).endswith("s")
        if plural == (value == 1):
            return None
        self._take()
        return number(value / _denominator(part), "", word.start, part.end)

    def _year(self, word: Word, value: Fraction) -> Word | None:
        """ "Nineteen twelve" is 1912."""
        if not (word.literal.isalpha() and 11 <= value <= 20):
            return None
        if not self._next_is(lambda w: bool(w.value and 10 <= w.value <= 99 and w.literal[:1].isalpha()), " "):
            return None
        second = self._take()
        assert second.value is not None
        return number(100 * value + second.value, "", word.start, second.end, second.unit)

    def _with_unit(self, word: Word) -> Word:
        word = self._time(word) or self._temperature(word)
        if not word.unit:
            word = self._unit(word)
        return self._speed(word) if word.unit in ("mile", "kilometre", "metre") else word

    def _time(self, word: Word) -> Word | None:
        if self._next_is(lambda w: w.text in ("am", "pm"), " "):
            following = self._peek()
            clock = _with_half_of_day(word, following.text if following else "")
            return clock._replace(end=self._take().end) if clock else None
        if self._next_is(lambda w: w.text == "o", " ") and self._next_is(lambda w: w.text == "clock", "'", 1):
            clock = _with_half_of_day(word, "") or word
            self._take()
            clock = clock._replace(end=self._take().end)
            return self._time(clock) or clock
        return None

    def _temperature(self, word: Word) -> Word:
        if word.unit == "degree" and self._next_is(lambda w: bool(_scale_of_heat(w)), " "):
            scale = self._take()
            return word._replace(unit=_scale_of_heat(scale), end=scale.end)
        return word

    def _unit(self, word: Word) -> Word:
        if self._next_are("per", "cent"):
            self._take()
            return word._replace(unit="percent", end=self._take().end)
        power = ""
        following = self._peek()
        if following is not None and following.text in _POWERS and self._next_is(lambda w: bool(_unit(w)), " ", 1):
            power = _POWERS[self._take().text]
        if not self._next_is(lambda w: bool(_unit(w)), " -"):
            return word
        unit = self._take()
        return self._temperature(word._replace(unit=power + _unit(unit), end=unit.end))

    def _speed(self, word: Word) -> Word:
        over = self._peek()
        if over is not None and self._next_is(lambda w: w.text == "per", " ") and self._next_is(_is_unit, " ", 1):
            self._take()
        elif over is None or self._gap() != "/" or not _unit(over):
            return word
        per = self._take()
        return word._replace(unit=f"{word.unit}-per-{_unit(per)}", end=per.end)

    def _is_month(self, word: Word) -> bool:
        """Whether "May" is the month and not the verb."""
        before = self._found[self._at - 2] if self._at > 1 else None
        return word.literal == "May" and (
            len(self._found) == 1
            or self._next_is(lambda w: w.kind == "number", " ,")
            or (before is not None and (before.kind == "number" or before.text in _BEFORE_A_MONTH))
        )

    def _below_zero(self, word: Word) -> Word:
        if self._next_is(lambda w: w.text == "below", " ") and self._next_is(lambda w: w.value == 0, " ", 1):
            self._take()
            return _negated(word)._replace(end=self._take().end)
        return word


def _is_in_digits(word: Word) -> bool:
    return word.value is not None and word.literal[:1].isdigit()


def _is_scale(word: Word) -> bool:
    return word.literal.removesuffix("s") in _SCALE_WORDS or (word.kind == "word" and word.text in _GROUPS)


def _scale_of(word: Word) -> Fraction:
    return word.value if word.value is not None else Fraction(_GROUPS[word.text])


def _denominator(word: Word) -> int:
    """Of "third", "quarters", "half"; 0 for anything else."""
    if word.kind == "word":
        return _PARTS.get(word.text, 0)
    value = word.value
    is_part = word.unit == _ORDINAL and word.literal.isalpha() and value is not None and value in _DENOMINATORS
    return int(value) if is_part and value is not None else 0


def _is_part(word: Word) -> bool:
    return bool(_denominator(word))


def _is_plural(word: Word) -> bool:
    """ "Thousands" and "thirds" alone are no values."""
    return word.literal.isalpha() and word.literal.endswith("s")


def _as_word(word: Word) -> Word:
    return Word(word.literal, word.start, word.end)


def _negated(word: Word) -> Word:
    if word.value is None:
        return word
    return word._replace(text=_shortest(-word.value), value=-word.value, literal="")


def _with_half_of_day(word: Word, half: str) -> Word | None:
    """``10``, ``10.30`` or ``10:30`` with ``am`` or ``pm`` as a time; None if it is none."""
    if ":" in word.text:
        return word._replace(unit=half or word.unit)
    hour, _, minutes = word.literal.partition(".")
    if word.unit or word.value is None or not 1 <= word.value < 13:
        return None
    if not hour.isdigit():
        hour, minutes = str(int(word.value)), ""
    if minutes and (len(minutes) != 2 or not minutes.isdigit() or int(minutes) > 59):
        return None
    return word._replace(text=f"{int(hour)}:{minutes or '00'}", unit=half, value=None)


def _scale_of_heat(word: Word) -> str:
    """Of "celsius", "centigrade", "C"; empty for anything else."""
    name = {"c": "celsius", "f": "fahrenheit"}.get(word.text) or _unit(word)
    return name if name in HEAT else ""


def _unit(word: Word) -> str:
    """The name of a unit that a word spells, singular or plural; empty if it is none."""
    if word.kind != "word":
        return ""
    singulars = (word.text, word.text.removesuffix("s"), word.text.removesuffix("es"))
    return next((_UNITS[name] for name in singulars if name in _UNITS and (name == word.text or len(name) > 2)), "")


def _is_unit(word: Word) -> bool:
    return bool(_unit(word))
