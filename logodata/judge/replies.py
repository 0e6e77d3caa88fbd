"""Read the replies of judges. The forms are strict, and nothing is guessed from another one."""

from __future__ import annotations

import re
from functools import cache

from logodata.common.words import without_reasoning

_FACT = re.compile(r"(\d+)[.)][ \t]+(\S.*)")
_NO_FACTS = re.compile(r"(?:1[.)][ \t]+)?none\.?", re.IGNORECASE)
_NOTHING = re.compile(r"\W?no relevant information\W{0,2}", re.IGNORECASE)
_SUPPORTS = {"full": 1.0, "partial": 0.5, "none": 0.0}
_SCORE = r"10(?:\.0)?|[0-9](?:\.[0-9])?"


def last_line(reply: str, word: str, values: str, *, ended: bool) -> str | None:
    """Return what the last line of a reply says after ``word:``; None if the reply is malformed.

    The last line must be ``word: value``, in any case and perhaps with a full stop, where the value matches the pattern
    ``values``. No other line may begin with ``word:``, and the reply must have ended by itself. A model may reason
    before this line, and its reasoning between its own markers does not count.
    """
    match = _form(word, values).fullmatch(without_reasoning(reply))
    return match["value"].lower() if match and ended else None


@cache
def _form(word: str, values: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?![ \t]*{word}[ \t]*:)[^\n]*\n)*[ \t]*{word}: (?P<value>{values})\.?\s*", re.IGNORECASE)


def parse_score(reply: str, *, ended: bool) -> float | None:
    """Return the score of a reply whose last line is ``Score: n``, in [0, 10] with at most one decimal; None if it is
    malformed."""
    found = last_line(reply, "Score", _SCORE, ended=ended)
    return None if found is None else float(found)


def parse_support(reply: str, *, ended: bool) -> float | None:
    """Return 1, 0.5 or 0 for a reply whose last line is ``Support: full``, ``partial`` or ``none``; None if it is
    malformed."""
    found = last_line(reply, "Support", "|".join(_SUPPORTS), ended=ended)
    return None if found is None else _SUPPORTS[found]


def parse_facts(reply: str, *, ended: bool, most: int) -> list[str] | None:
    """Return the facts of a reply: lines that are numbered from 1 on, at most so many. ``None`` alone is no fact.

    Returns:
        None if the reply is malformed: another line stands among them, a number is wrong, there are too many, or it
        did not end by itself.
    """
    text = without_reasoning(reply).strip()
    if not ended or not text:
        return None
    if _NO_FACTS.fullmatch(text):
        return []
    matches = [_FACT.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    facts = [match[2] for number, match in enumerate(matches, 1) if match and int(match[1]) == number]
    return facts if len(facts) == len(matches) <= most else None


def parse_extract(reply: str, *, ended: bool) -> str | None:
    """Return what a part of a text says about a question, empty if the reply says that it says nothing; None if the
    reply is empty, or did not end by itself."""
    text = without_reasoning(reply).strip()
    if not ended or not text:
        return None
    return "" if _NOTHING.fullmatch(text) else text
