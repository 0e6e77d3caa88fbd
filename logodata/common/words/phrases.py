"""Join words that mean something together: forty-two, 3 million, two thirds, minus seven, 5 square miles, ten o'clock.

text2num finds English numbers in words. This module adds what it leaves apart: scales behind digits, fractions, signs,
units, times of day. It also reads words that depend on their neighbours: the month of May, vitamin C, Henry VIII.
"""

from __future__ import annotations

from calendar import month_name
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import regex
from text_to_num import Token, find_numbers

from logodata.common.words import units
from logodata.common.words.values import INITIALS, MOST_DIGITS, ORDINAL, Word, as_time, as_version, negated, number


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SCALE_WORDS = ("hundred", "thousand", "million", "billion")
_GROUPS = {"dozen": 12, "lakh": 10**5, "crore": 10**7, "trillion": 10**12}  # unknown to text2num
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_DENOMINATORS = range(3, 101)
_ARTICLES = ("a", "an")
_NOT_THE_NUMBER_ONE = _words("another any each every no only other same some that the this which")
_NOT_THE_SECOND = ("each", "every", "one", "per", "split")
_NOT_A_HALF_AFTER = ("better", "each", "her", "his", "its", "latter", "other", "that", "the", "their", "this")
_NOT_A_HALF = ("brother", "brothers", "past", "sister", "sisters", "time", "way")
_KINDS_OF_UNITS = {
    **{"square": "square-", "sq": "square-", "cubic": "cubic-"},
    **{"nautical": "nautical-", "light": "light-", "man": "man-"},
}
_SCALE_SIGNS = "十百千万萬亿億兆십백천만억조"
_SPEEDS = ("metre", "kilometre", "mile", "foot")
_SIGNS = ("minus", "negative")
_VERSIONS = ("version", "ver", "v", "release")
_MONTHS = tuple(name.lower() for name in month_name if name)
_MONTHS_BY_START = {name[:3]: name for name in _MONTHS if name != "may"} | {"sept": "september"}
_ANY_MONTH = (*_MONTHS, *_MONTHS_BY_START)
_SUBJECTS = _words("""
a all an he her his i it my our she that the their these they this those we you your also be god have not
""")
_LABELS = _words("""
amount average cost costs distance gpa height magnitude price rate ratio score sum temperature total value weight
""")
_NUMBERED = _words("""
war type part chapter book volume act scene phase stage class title article section schedule level grade
""")
_ROMAN = regex.compile(r"(?=[IVX])(X{0,3})(IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"": 0, "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}


class _Piece(Token):
    """A word, or the text between two words, in the form that text2num takes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        """Return the text of the piece."""
        return self._text


def numbers_in_words(found: Sequence[Word], text: str) -> list[Word]:
    """Return the words of a text, with those that spell a number joined: ``forty-two``, ``twenty-first``."""
    result: list[Word] = []
    index = 0
    while index < len(found):
        if not _spells(found[index]):
            result.append(found[index])
            index += 1
            continue
        end = index + 1
        while end < len(found) and (_spells(found[end]) or found[end].text in ("and", "point")):
            end += 1
        result += _join_numbers(found, index, end, text)
        index = end
    return result


def _spells(word: Word) -> bool:
    return word.kind == "word" and _spells_a_number(word.text)


@lru_cache(maxsize=1 << 16)
def _spells_a_number(word: str) -> bool:
    return word != "o" and bool(find_numbers([_Piece(word)], "en", 0.0))  # "o'clock"


def _join_numbers(found: Sequence[Word], first: int, end: int, text: str) -> Iterator[Word]:
    """Yield the words from ``first`` up to ``end``, with those that spell a number joined."""
    pieces: list[_Piece] = []
    index_of: dict[int, int] = {}  # index of a piece -> index of its word
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
    """Return the number that some words spell; None if they mean something else ("no one", "a second later")."""
    before = found[first - 1] if first else None
    after = found[last + 1].text if last + 1 < len(found) else ""
    source = " ".join(word.text for word in found[first : last + 1])
    if source == "one" and (after == "another" or (before is not None and before.text in _NOT_THE_NUMBER_ONE)):
        return None
    if source == "second" and (
        after in ("later", "ago")
        or (before is not None and (before.kind == "number" or before.text in _NOT_THE_SECOND))
    ):
        return None
    start, end, unit = found[first].start, found[last].end, ORDINAL if is_ordinal else ""
    if len(digits) > MOST_DIGITS:
        return Word(digits, start, end, "number", unit, source)
    word = number(Fraction(digits.rstrip("sthndr") if is_ordinal else digits), start, end, unit, source)
    return word._replace(telling=source != "one", exact=source not in ("one", "first"))


def combine(found: Sequence[Word], text: str) -> Iterator[Word]:
    """Return the words of a text, with those that belong together joined, and interpreted by their neighbours."""
    return iter(_Reader(found, text).next, None)


_LEADS = frozenset([*_ARTICLES, "half", "quarter", *_SIGNS, *_VERSIONS])


class _Reader:
    """Reads words from left to right; ``_at`` is the index of the next one."""

    def __init__(self, found: Sequence[Word], text: str) -> None:
        self._found, self._text, self._at = found, text, 0

    def next(self) -> Word | None:
        """Return the next word with what belongs to it; None at the end."""
        if self._at == len(self._found):
            return None
        word = self._take()
        if word.kind == "number":
            return self._number(word)
        if word.kind == "run":
            return self._counted(word)
        if word.literal == INITIALS:
            return word._replace(telling=not self._follow(lambda w: w.literal[:1].isupper(), gap=" "))
        if word.text in _MONTHS_BY_START:
            before = self._before
            if self._follow(_is_number, gap=" .") or (before is not None and before.kind == "number"):
                return word._replace(text=_MONTHS_BY_START[word.text])
        if (word.text in _LEADS or units.money_code(word.text)) and (phrase := self._phrase(word)) is not None:
            return phrase
        return self._capitalised(word) if word.literal[:1].isupper() else word

    def _number(self, word: Word) -> Word:
        before = self._before
        whole = self._quantity(word)
        if whole is not word:
            return whole
        if before is not None and self._text[before.end : word.start] in (" ", "-") and _names_a_version(before, word):
            return word._replace(text=word.literal, value=None)
        return Word(word.literal, word.start, word.end) if _is_plural(word) else word

    def _take(self, count: int = 1) -> Word:
        self._at += count
        return self._found[self._at - 1]

    @property
    def _before(self) -> Word | None:
        """The word before the last one taken."""
        return self._found[self._at - 2] if self._at > 1 else None

    def _gap(self, ahead: int = 0) -> str:
        """Return the text before the next word (or one further ahead), or the rest of the text if there is none."""
        index = self._at + ahead
        end = self._found[index].start if index < len(self._found) else len(self._text)
        return self._text[self._found[index - 1].end : end]

    def _follow(self, *tests: Callable[[Word], bool] | Sequence[str], gap: str = " -\n\t") -> bool:
        """Whether the next words pass one test each, with only characters of ``gap`` before each of them."""
        if self._at + len(tests) > len(self._found):
            return False
        for ahead, test in enumerate(tests):
            word = self._found[self._at + ahead]
            if not (test(word) if callable(test) else word.text in test) or self._gap(ahead).strip(gap):
                return False
        return True

    def _phrase(self, word: Word) -> Word | None:
        """Return a number that begins with a word ("half a million", "minus seven", "version 2.1"); else None."""
        text = word.text
        if text in _SIGNS and self._follow(_is_number):
            return negated(self._quantity(self._take()))._replace(start=word.start)
        if text in _VERSIONS and self._follow(_is_in_digits):
            return as_version(self._take())._replace(start=word.start)
        if (money := units.money_code(text)) and self._follow(_is_in_digits, gap=" .") and not self._next().unit:
            return self._quantity(self._take()._replace(unit=money))._replace(start=word.start)
        if text == "half" or (text == "quarter" and self._follow(_is_unit)):
            return self._half_or_quarter(word)
        if text in _ARTICLES:
            return self._article_number(word)
        return None

    def _next(self) -> Word:
        return self._found[self._at]

    def _half_or_quarter(self, word: Word) -> Word | None:
        """Return half or a quarter of what follows; None if the word means something else."""
        before = self._before
        if self._follow(_NOT_A_HALF):
            return None
        if before is not None and (before.text in _NOT_A_HALF_AFTER or before.unit == ORDINAL):
            return None
        if self._gap()[:1] == "-" and not self._follow(_is_unit):  # "half-witted"
            return None
        if self._follow(_ARTICLES, lambda w: _is_scale(w) or _is_unit(w)):
            self._take()
        return self._quantity(number(Fraction(1, _PARTS[word.text]), word.start, word.end))._replace(start=word.start)

    def _article_number(self, article: Word) -> Word | None:
        """Return the number that begins with an article ("a dozen", "a third of", "an hour and a half"); else None."""
        if self._follow(tuple(_GROUPS)):
            group = self._take()
            return self._quantity(number(Fraction(_GROUPS[group.text]), article.start, group.end, literal=group.text))
        if self._follow(_is_part) and self._next().text != "half":
            before = self._before
            ends = (self._at + 1 == len(self._found) or self._gap(1).strip(" -\n\t")) and not (
                before is not None and before.text in ("and", "second", "then")
            )
            part = self._take()
            if ends or self._follow(lambda w: w.text == "of" or _is_unit(w) or _is_scale(w)):
                return self._quantity(number(Fraction(1, _denominator(part)), article.start, part.end))
            self._at -= 1
        if self._follow(_is_unit, ("and",), lambda w: w.text in _ARTICLES or w.kind == "number", _is_part):
            unit = self._take()
            return self._add_fraction(number(Fraction(1), article.start, unit.end, _unit(unit)), 1)
        return None

    def _quantity(self, word: Word) -> Word:
        """Return a number with its scale, fraction, unit and sign."""
        if word.value is None:
            return self._time(word) or word
        if word.unit == ORDINAL:
            return self._day(word)
        word = self._fraction(word) or self._year(word) or word
        word = self._add_fraction(word, _scale(word) if _is_scale(word) else 1)
        while scale := self._factor(word):
            word = number((word.value or 0) * scale, word.start, self._take().end, word.unit)
            word = self._add_fraction(word, scale)
        if word.value is not None and word.value < 1 and self._follow(("of",), _ARTICLES, _is_scale):
            of = self._take(3)
            word = number(word.value * _scale(of), word.start, of.end)
        if (with_time := self._time(word)) is not None:
            return with_time
        word = self._with_unit(word)
        if self._follow(("below",), lambda w: w.value == 0):
            word = negated(word)._replace(end=self._take(2).end)
        return word

    def _day(self, word: Word) -> Word:
        """Return an ordinal; next to a month it is the number of a day."""
        behind = self._before is not None and self._before.text in _ANY_MONTH
        if behind or self._follow(_ANY_MONTH) or self._follow(("of",), _ANY_MONTH):
            return word._replace(unit="", exact=True)
        return word

    def _factor(self, word: Word) -> Fraction | None:
        """Return what the next word multiplies a number by; None if it is not a scale."""
        if not self._follow(lambda w: w.kind != "run"):
            return None
        following = self._next()
        if _is_scale(following):
            return _scale(following)
        if following.kind != "word" or not word.literal[:1].isdigit() or "-" in self._gap():
            return None
        if len(following.text) == 1 and not units.is_money(word.unit):  # 300 K are kelvin
            return None
        return Fraction(units.scale(following.literal, of_money=units.is_money(word.unit))) or None

    def _add_fraction(self, word: Word, of: Fraction | int) -> Word:
        """Add the fraction of ``of`` that follows, as in "and a half" or "and three quarters"."""
        if word.value is None:
            return word
        if self._follow(("and",), lambda w: w.value is not None, lambda w: _is_part(w) and _written(w).endswith("s")):
            count = self._found[self._at + 1].value or Fraction(0)
        elif self._follow(("and",), _ARTICLES, _is_part):
            count = Fraction(1)
        else:
            return word
        part = self._take(3)
        return number(word.value + of * count / _denominator(part), word.start, part.end, word.unit)

    def _fraction(self, word: Word) -> Word | None:
        """Return a fraction in words, such as "two thirds" or "one half"; None if there is none."""
        value = word.value
        if value is None or value.denominator != 1 or word.unit or not self._follow(_is_part):
            return None
        part = self._next()
        if _written(part).endswith("s") == (value == 1):
            return None
        self._take()
        return number(value / _denominator(part), word.start, part.end)

    def _year(self, word: Word) -> Word | None:
        """Return a year in two parts ("nineteen twelve" is 1912); None if there is none."""
        if word.value is None or not (word.literal.isalpha() and 10 <= word.value <= 20):
            return None
        if not self._follow(lambda w: w.value is not None and 10 <= w.value <= 99 and w.literal[:1].isalpha(), gap=" "):
            return None
        if self._next().text == word.text or (self._at + 1 < len(self._found) and _is_unit(self._found[self._at + 1])):
            return None  # "ten ten", "twelve fifty dollars"
        rest = self._take()
        return number(100 * word.value + (rest.value or 0), word.start, rest.end, rest.unit)

    def _time(self, word: Word) -> Word | None:
        if self._follow(("am", "pm")):
            clock = as_time(word, self._next().text)
            return clock._replace(end=self._take().end) if clock else None
        if self._follow(("o",), ("clock",), gap=" '"):
            clock = (as_time(word, "") or word)._replace(end=self._take(2).end)
            return self._time(clock) or clock
        return None

    def _with_unit(self, word: Word) -> Word:
        if not word.unit:
            if self._follow(("per",), ("cent",)):
                return word._replace(unit="percent", end=self._take(2).end)
            kind = ""
            if self._follow(tuple(_KINDS_OF_UNITS), _is_unit, gap=" -.\n\t"):
                kind = _KINDS_OF_UNITS[self._take().text]
            if not self._follow(_is_unit, gap=" -.\n\t" if kind else " -\n\t"):
                return word
            unit = self._take()
            word = word._replace(unit=kind + _unit(unit), end=unit.end, telling=True)
        if word.unit == "degree" and self._follow(lambda w: bool(_temperature_scale(w))):
            heat = self._take()
            word = word._replace(unit=_temperature_scale(heat), end=heat.end)
        if word.unit in _SPEEDS:
            each = 2 if self._follow(("per", *_ARTICLES), _is_unit) else int(self._follow(_is_unit, gap="/"))
            if each:
                per = self._take(each)
                word = word._replace(unit=f"{word.unit}-per-{_unit(per)}", end=per.end)
        return self._add_fraction(word, 1)

    def _counted(self, run: Word) -> Word:
        """Return a run. A single character behind a number counts things and tells nothing: 2010年."""
        before = self._before
        is_counter = len(run.text) == 1 and before is not None and before.kind == "number" and before.end == run.start
        return run._replace(telling=False) if is_counter and run.text not in _SCALE_SIGNS else run

    def _capitalised(self, word: Word) -> Word:
        """Interpret a word with capitals by its neighbours: numerals, letters that name something, the month of May."""
        before, literal = self._before, word.literal
        begins = before is None or any(mark in self._gap(-1) for mark in ".!?:\"\n'“‘—-")
        named = before is not None and not begins and before.literal[:1].isupper() and before.telling
        if before is not None and named and (roman := _ROMAN.fullmatch(literal)):
            tens, ones = roman.groups()
            value = number(Fraction(10 * len(tens) + _ROMAN_VALUES[ones]), word.start, word.end, literal=literal)
            sure = (
                literal != "I"
                or before.text in _NUMBERED
                or self._follow(("of", "is", "and"))
                or self._at == len(self._found)
                or self._gap().strip()[:1] in tuple(",.;:!?)")
            )
            return value if sure else word
        if len(literal) == 1 and literal.isascii():
            return self._letter(word, begins)
        if literal in ("May", "MAY"):
            is_verb = begins and len(self._found) > 1 and self._follow(_SUBJECTS, gap=" ")
            return word if is_verb else word._replace(text="May", telling=True)
        return word

    def _letter(self, word: Word, begins: bool) -> Word:
        """Interpret a capital letter alone. It names something, unless it is an initial, the article or the pronoun."""
        before, letter = self._before, word.literal
        gap = self._gap()
        following = self._found[self._at] if self._at < len(self._found) else None
        is_initial = (
            gap.strip() == "."
            and following is not None
            and following.literal[:1].isupper()
            and (before is None or before.literal[:1].isupper())
        )
        if letter == "A":
            is_article = begins and following is not None and not gap.strip()
            return word if is_article or is_initial else word._replace(text="A", telling=True)
        return word._replace(telling=letter != "I" and not is_initial)


def _names_a_version(name: Word, word: Word) -> bool:
    """Whether a decimal behind a name is a version: Python 3.10 is not Python 3.1, but a price of 3.10 is 3.1."""
    is_name = name.kind == "word" and name.telling and name.literal[:1].isupper()
    return is_name and name.text not in _LABELS and name.text not in _MONTHS and word.literal.count(".") == 1


def _written(word: Word) -> str:
    return word.literal or word.text


def _is_number(word: Word) -> bool:
    return word.kind == "number"


def _is_in_digits(word: Word) -> bool:
    return word.kind == "number" and word.literal[:1].isdigit()


def _is_scale(word: Word) -> bool:
    """Whether a word multiplies the number before it."""
    spelled = all(part.removesuffix("s") in (*_SCALE_WORDS, *_GROUPS) for part in (word.literal or "-").lower().split())
    return spelled and (word.value is not None or word.text.removesuffix("s") in _GROUPS)


def _scale(word: Word) -> Fraction:
    return word.value if word.value is not None else Fraction(_GROUPS[word.text.removesuffix("s")])


def _denominator(word: Word) -> int:
    """Return what a word for a part divides by: 3 for "third", 4 for "quarters", 2 for "half"; 0 for any other word."""
    if word.kind == "word":
        return _PARTS.get(word.text, 0)
    value = word.value
    is_part = word.unit == ORDINAL and word.literal.isalpha() and value is not None and value in _DENOMINATORS
    return int(value) if is_part and value is not None else 0


def _is_part(word: Word) -> bool:
    return bool(_denominator(word))


def _is_plural(word: Word) -> bool:
    """Whether a word is a plural such as "thousands" or "thirds", which has no value alone."""
    return word.literal.isalpha() and word.literal.endswith("s")


def _temperature_scale(word: Word) -> str:
    """Return the temperature scale that a word names: "celsius", "centigrade", "C"; empty if it names none."""
    name = {"c": "celsius", "f": "fahrenheit"}.get(word.text) or _unit(word)
    return name if name in units.HEAT else ""


def _unit(word: Word) -> str:
    return units.unit(_written(word)) if word.kind == "word" else ""


def _is_unit(word: Word) -> bool:
    return bool(_unit(word))
