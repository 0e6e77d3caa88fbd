"""Read the replies of judges. The forms are strict, and nothing is guessed from another one."""

from __future__ import annotations

import re
from functools import cache

from logodata.common.words import without_reasoning

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
