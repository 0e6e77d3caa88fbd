"""Split a text into words: the one place that decides what is a word, a content word, a number, and the same word.

Evaluators, judge and evaluation share it, so a chunk is critical by the same words by which an answer is right.
"""

from __future__ import annotations

from calendar import month_name
from collections.abc import Iterator
from functools import lru_cache

import regex

from logodata.common.words.normal import CLUSTER, fold_case, normalise
from logodata.common.words.phrases import combine, numbers_in_words
from logodata.common.words.units import unit_of_symbol
from logodata.common.words.values import INITIALS, ORDINAL, VERSION, Word, as_version, negated, read_number, with_suffix

# Scripts without spaces between words, and Korean, which attaches particles to them.
_RUN = (
    r"[[\p{L}\p{M}\p{Nl}]&&[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Hang}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}"
    r"\p{scx=Mymr}\p{scx=Tibt}]]"
)
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{Nl}}]--{_RUN}]"
_INNER = rf"[[\p{{L}}\p{{M}}\p{{Nl}}\d]--{_RUN}]"
_WORD = regex.compile(
    rf"""
    (?P<plain>[A-Za-z]{{3,}}+(?![\p{{L}}\p{{M}}\d\p{{Sc}}'&+]))  # most words, found quickly
    | (?<!{_INNER})[vV](?P<version>\d+(?:\.\d+)*(?!{_INNER}))
    | (?<!{_INNER})
      (?P<year>\d{{4}})(?P<dash>[-./])(?P<month>0[1-9]|1[0-2])(?P=dash)(?P<day>[0-2]\d|3[01])
      (?![-\d[\p{{L}}--[T]]])
    | (?<!{_INNER})
      (?P<sign>(?<![\p{{L}}\p{{M}}\d)\]%.'])[-–](?=\s?\p{{Sc}}?\.?\d))?
      (?:[A-Z]{{0,3}}(?P<currency>\p{{Sc}})\s?(?P<sign_after>-)?)?
      (?P<number>
          \d+(?::\d+)+
        | \d{{1,3}}(?:\.\d{{3}})+,\d+(?!\d)
        | \d+(?:\.\d+){{2,}}
        | \d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}(?!\d)(?:\.\d+)?
        | \d{{1,3}}(?:[\ '_]\d{{3}})+(?![\ '_]?\d)(?:[.,]\d+)?
        | \d+\ \d+/\d+(?![/\d])
        | (?<!\d/)\d+/\d+(?![/\d])
        | (?<!\d,)\d+,(?:\d{{1,2}}|\d{{4,}})(?![\d,])
        | \d+(?:\.\d+)?
        | (?<!\.)\.\d+
      )
      (?P<power>\^-?\d+)?
      (?:'?(?P<suffix>[ap]\.\ ?m\b|{_LETTER}{_INNER}*)|\ ?(?P<symbol>%|°|\p{{Sc}}(?!\ ?\d)))?
    | (?<!{_INNER})(?P<initials>
          (?:\p{{L}}\p{{Ll}}?\.)+\p{{L}}\p{{Ll}}?(?!{_INNER})\.?
        | (?:\p{{Lu}}\.\ )+\p{{Lu}}\.(?!{_INNER})
      )
    | (?P<word>
          \p{{Lu}}{{1,3}}(?:\ ?&\ ?\p{{Lu}}{{1,3}})+(?!{_INNER})
        | (?<![\p{{L}}\d.])\.NET(?!{_INNER})
        | {_LETTER}{_INNER}*\+\+
        | {_LETTER}{{1,2}}\+(?![\d\p{{L}}+])
        | {_LETTER}\#(?!{_INNER})
        | (?<![{_INNER}*])[A-Z][-*♭♮](?![\p{{L}}\d*-])
        | {_LETTER}{_INNER}*(?:'t(?!{_INNER})|(?P<contraction>'(?:[dm]|ll|re|ve)(?!{_INNER})))?
      )(?:'[sS](?!{_INNER}))?
    | (?P<run>{_RUN}+)
    """,
    regex.VERBOSE | regex.V1,
)
_DENSE = regex.compile(r"[\p{scx=Han}\p{scx=Hang}]")
"""Scripts in which two characters tell as much as a word. In other scripts it takes three."""

# English function words, and the words that only frame a question.
_STOP_WORDS = """
a about above after again against all also although am an and another any anyone anything are around as at be
because been before being below between both but by can cannot could did do does doing done down during each
either else ever every everyone everything few for from further get give given go had has have having he hence
her here hers herself him himself his how however i if in into is it its itself just kind least less like made
make many may me might more most much must my myself name named near neither no nobody none nor not nothing now
of off often on once one only onto or other others our ours ourselves out over own per perhaps put quite rather
really same say said see seem several shall she should since so some someone something still such take taken
than that the their theirs them themselves then there these they thing things this those though through thus to
told too toward towards under until up upon us use used very was we well went were what whatever when where
whether which while who whole whom whose why will with within without would yet you your yours yourself
yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_NAMES_IN_CAPITALS = ("US", "IT", "WHO")


@lru_cache(maxsize=64)
def read(text: str) -> tuple[Word, ...]:
    """Return the words of a text in order, with numbers as values."""
    form, places = normalise(text)
    all_capitals = form.isupper() and sum(part.isalpha() for part in form.split()) > 1
    found = [word for match in _WORD.finditer(form) for word in _lexed(match, all_capitals)]
    whole = combine(numbers_in_words(found, form), form)
    if places is None:
        return tuple(whole)
    # One character may have become several: a word is as long as what it came from.
    return tuple(w._replace(start=places[w.start], end=max(places[w.end], places[w.end - 1] + 1)) for w in whole)


def _lexed(match: regex.Match[str], all_capitals: bool) -> Iterator[Word]:
    """Yield the words of a match. Where the whole text is in capitals, they tell nothing."""
    start, end = match.span()
    if (word := match["plain"] or match["word"]) is not None:
        yield _word(word, start, end, all_capitals, is_contraction=match["contraction"] is not None)
    elif (run := match["run"]) is not None:
        yield Word(run, start, end, "run")
    elif (initials := match["initials"]) is not None:
        yield _word(initials.replace(".", "").replace(" ", ""), start, end, all_capitals)._replace(literal=INITIALS)
    elif (version := match["version"]) is not None:
        yield as_version(read_number(version, start, end))
    elif (year := match["year"]) is not None:
        yield read_number(year, start, match.end("year"))
        yield Word(month_name[int(match["month"])].lower(), match.start("month"), match.end("month"))
        yield read_number(match["day"], match.start("day"), end)
    else:
        yield from _number(match)


def _word(word: str, start: int, end: int, all_capitals: bool, *, is_contraction: bool = False) -> Word:
    """Return a word. A name in capitals that looks like a function word keeps them."""
    if word in _NAMES_IN_CAPITALS:
        return Word(word, start, end, literal=word, telling=not all_capitals)
    text = fold_case(word.replace(" ", ""))
    tells = text not in STOP_WORDS and (len(text) > 1 or not text.isascii()) and not is_contraction
    return Word(text, start, end, literal=text if all_capitals else word, telling=tells)


def _number(match: regex.Match[str]) -> Iterator[Word]:
    start, end = match.span()
    written, suffix, symbol = match["number"], match["suffix"] or "", match["symbol"] or match["currency"]
    found = read_number(written, start, end)
    if match["power"]:
        minus = "-" if match["sign"] or match["sign_after"] else ""
        found = Word(minus + found.text + match["power"], start, end, "number")
    elif match["sign"] or match["sign_after"]:
        found = negated(found)
    if symbol:
        found = found._replace(unit=unit_of_symbol(symbol))
    if not suffix:
        yield found
    elif (whole := with_suffix(found, suffix)) is not None:
        yield whole
    elif written.isdigit() and not symbol:  # "4B", "1990s", "3D": names, not quantities
        yield Word(fold_case(written + suffix), start, end)
    else:
        yield found._replace(end=match.end("number"))
        yield _word(suffix, match.start("suffix"), end, all_capitals=False)


def parts(run: str) -> list[str]:
    """Return the overlapping parts by which a run is compared: two characters long (as a reader counts them) in Chinese
    and Korean, else three. A shorter run is one part."""
    clusters = CLUSTER.findall(run)
    size = part_size(run)
    return ["".join(clusters[i : i + size]) for i in range(max(1, len(clusters) - size + 1))]


def part_size(run: str) -> int:
    """Return the number of characters in a part of this run."""
    return 2 if _DENSE.search(run) else 3


def characters(run: str) -> list[str]:
    """Return the characters of a run as a reader counts them."""
    return CLUSTER.findall(run)


def words(text: str) -> list[str]:
    """Return the words of a text in the form in which they are compared, in order, without punctuation and possessive
    endings.

    A number gives its value and the name of its unit; a run without spaces gives its :func:`parts`.
    """
    return [piece for word in read(text) for piece in _pieces(word)]


def _pieces(word: Word) -> list[str]:
    if word.kind == "run":
        return parts(word.text)
    return [word.text, word.unit] if word.unit not in ("", ORDINAL, VERSION) else [word.text]


def stem(word: str) -> str:
    """Strip the most common English endings, so that ``carved``, ``carves`` and ``carving`` are equal.

    A word that begins with a digit stays as it is: ``1990s`` is not 1990.
    """
    if len(word) < 4 or word[0].isdigit():
        return word
    for ending, replacement in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            return word[: len(word) - len(ending)] + replacement
    return word


def stems(word: Word) -> list[str]:
    """Return the stems by which a word is found. Numbers stay as they are."""
    pieces = _pieces(word)
    return [pieces[0], *map(stem, pieces[1:])] if word.kind == "number" else list(map(stem, pieces))


def content_stems(text: str) -> Iterator[str]:
    """Yield the stems of words that carry meaning (names, numbers, nouns, verbs, adjectives), in order, with
    repeats."""
    for word in read(text):
        if word.telling:
            yield from stems(word)


def marked(text: str, wanted: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the text in parts, each with whether it is a word with one of the ``wanted`` stems. Joined, they are the
    text."""
    position = 0
    for start, end in _places(text, wanted):
        if start > position:
            yield text[position:start], False
        if end > position:
            yield text[max(start, position) : end], True
        position = max(position, end)
    if position < len(text):
        yield text[position:], False


def _places(text: str, wanted: set[str]) -> Iterator[tuple[int, int]]:
    for word in read(text):
        hits = [number for number, found in enumerate(stems(word)) if found in wanted]
        if not hits:
            continue
        shown = list(CLUSTER.finditer(text, word.start, word.end))
        if word.kind != "run" or len(shown) != len(characters(word.text)):
            yield word.start, word.end
            continue
        for hit in hits:
            yield shown[hit].start(), shown[min(hit + part_size(word.text), len(shown)) - 1].end()
