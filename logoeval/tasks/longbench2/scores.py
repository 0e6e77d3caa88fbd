"""Find the chosen letter in a response, and score it, as LongBench v2's ``pred.py`` and ``result.py`` do."""

from __future__ import annotations

import re

from logoeval.records import Metric

BY_CHANCE = 0.25
"""What the compensated score gives a response without a letter: the share that guessing finds."""

_IN_BRACKETS = re.compile(r"The correct answer is \(([A-D])\)")
_BARE = re.compile(r"The correct answer is ([A-D])")

METRICS = [
    Metric.share(
        "accuracy",
        "LongBench v2",
        "Share of the questions where the response names the right one of four choices; guessing finds 25 %.",
        slice_by=["difficulty"],
        also_by=[["text_length"], ["domain"], ["domain", "sub_domain"]],
    ),
    Metric.share(
        "compensated",
        "LongBench v2, compensated",
        "The same, where a response that names no choice counts as a quarter: guessing would find as much. It is an "
        "option of the official script, and no leaderboard number.",
        headline=False,
        slice_by=["difficulty"],
        also_by=[["text_length"]],
    ),
    Metric.share(
        "no_choice",
        "LongBench v2, no choice named",
        "Share of the responses without “The correct answer is (A)” or another letter; they count as wrong.",
        "lower",
        headline=False,
    ),
    Metric.share(
        "truncated",
        "LongBench v2 prompts cut in the middle",
        "Share of the prompts that were longer than what the window leaves them.",
        None,
        headline=False,
        slice_by=["text_length"],
    ),
]


def extract_answer(response: str) -> str | None:
    """Return the letter (``A`` to ``D``) that a response chooses, as the official function of the same name; None if it
    names none.

    Asterisks are deleted. The first letter in brackets after "The correct answer is" wins over any bare one, and the
    wording, its case and its spaces are exact. So "The correct answer is Both" is B.
    """
    response = response.replace("*", "")
    match = _IN_BRACKETS.search(response) or _BARE.search(response)
    return match[1] if match else None


def scores(choice: str | None, answer: str) -> dict[str, float]:
    """Return the scores of a choice by key of :data:`METRICS`; truncation is not among them."""
    right = float(choice == answer)
    return {
        "accuracy": right,
        "compensated": BY_CHANCE if choice is None else right,
        "no_choice": float(choice is None),
    }
