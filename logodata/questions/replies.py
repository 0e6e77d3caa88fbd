"""Read what a model wrote: a question with its answer, and the chunks that it names as evidence.

All functions are pure. Nothing is guessed from a reply of another form.
"""

from __future__ import annotations

import re
from typing import Literal

from logodata.common.words import words

_REPLY = re.compile(
    r"^[\s*#>]*q(?:uestion)?\s*:[\s*]*(?P<question>.+?)[\s*#>]*^[\s*#>]*a(?:nswer)?\s*:[\s*]*(?P<answer>.+?)\s*"
    r"(?=^[\s*#>]*q(?:uestion)?\s*:|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_FORM = re.compile(r"\byour (?:question|answer)\s*:", re.IGNORECASE)
"""The part of the form that small models repeat."""

_MARKS = r"[ \t*#>]*"
_KEY = rf"{_MARKS}(?:q|question|a|answer|evidence){_MARKS}:"
_NUMBERED_REPLY = re.compile(
    rf"[\s*#>]*question{_MARKS}:(?P<question>(?:(?!\n{_KEY}).)+)"
    rf"\n{_MARKS}answer{_MARKS}:(?P<answer>(?:(?!\n{_KEY}).)+)"
    rf"\n{_MARKS}evidence{_MARKS}:{_MARKS}(?P<numbers>[0-9]{{1,4}}(?:[ \t]*,[ \t]*[0-9]{{1,4}})+)\.?[\s*]*",
    re.IGNORECASE | re.DOTALL,
)
_SKIPPED = re.compile(r"[\s*\"']*skipped[\s*.\"']*", re.IGNORECASE)


def parse_reply(reply: str) -> tuple[str, str] | None:
    """Return the first question with its answer in a reply; None if the reply has another form."""
    return _parts(_REPLY.search(reply))


def parse_cluster_reply(reply: str, num_chunks: int) -> tuple[str, str, tuple[int, ...]] | Literal["skipped"] | None:
    """Return question, answer and evidence of a reply that was asked for from ``num_chunks`` numbered chunks; None if
    the reply has another form.

    The form is strict. The lines ``Question:``, ``Answer:`` and ``Evidence:`` stand once each and in this order, and
    nothing stands before or after them. The evidence is two or more different numbers from 1 to ``num_chunks`` with
    commas between them; it is returned as rising indices from 0 on. A reply may also be the one word ``Skipped``.
    """
    if _SKIPPED.fullmatch(reply):
        return "skipped"
    match = _NUMBERED_REPLY.fullmatch(reply)
    parsed = _parts(match)
    if match is None or parsed is None:
        return None
    numbers = [int(number) for number in match["numbers"].split(",")]
    if len(set(numbers)) < len(numbers) or not all(1 <= number <= num_chunks for number in numbers):
        return None
    return *parsed, tuple(sorted(number - 1 for number in numbers))


def _parts(match: re.Match[str] | None) -> tuple[str, str] | None:
    """Return question and answer of a matched reply; None if they are none."""
    if match is None or len(words(match["question"])) < 3 or not words(match["answer"]):
        return None
    if _FORM.search(match["question"]) or _FORM.search(match["answer"]):
        return None
    question, answer = (" ".join(match[name].split()).strip("*").strip() for name in ("question", "answer"))
    return question, answer
