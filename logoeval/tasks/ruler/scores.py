"""RULER's scores: whether references occur in an answer. They equal those of its scripts (``eval/evaluate.py``,
``eval/synthetic/constants.py``) to the last bit."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def clean_prediction(text: str) -> str:
    """Return a response as the official script scores it (``postprocess_pred``): without white space at its ends, and
    with each control character below U+0020 as a newline."""
    return _CONTROL.sub("\n", text.strip()).strip()


def share_found(response: str, references: Sequence[str]) -> float:
    """Return the share of references that occur in the cleaned response. Case does not count, word borders do not
    either, and a reference that stands twice counts twice."""
    said = clean_prediction(response).lower()
    return sum([1.0 if reference.lower() in said else 0.0 for reference in references]) / len(references)


def any_found(response: str, references: Sequence[str]) -> float:
    """Return 1.0 if any reference occurs in the cleaned response, and 0.0 otherwise."""
    said = clean_prediction(response).lower()
    return max(1.0 if reference.lower() in said else 0.0 for reference in references)


def string_match_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the score of all tasks but question answering: the mean over samples of :func:`share_found`, in percent,
    rounded as officially to two decimals. Predictions are cleaned first, as ``evaluate.py`` does; cleaning twice
    changes nothing.

    Raises:
        ZeroDivisionError: there are no predictions, or a sample has no references, as officially.
        ValueError: there are not as many references as predictions.
    """
    return round(percent([share_found(said, wanted) for said, wanted in zip(predictions, references, strict=True)]), 2)


def string_match_part(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the score of question answering: the mean over samples of :func:`any_found`, in percent, like
    :func:`string_match_all`."""
    return round(percent([any_found(said, wanted) for said, wanted in zip(predictions, references, strict=True)]), 2)


def percent(scores: Sequence[float]) -> float:
    """Return the mean of the scores of some samples in percent, in the order of the official script's operations."""
    return sum(scores) / len(scores) * 100
