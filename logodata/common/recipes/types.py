"""What recipe fields are made of besides numbers and names: counts of tokens, lists of one, text that may be a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_TOKENS = re.compile(r"(\d+(?:\.\d+)?) ?([KM])", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")
_UNITS = {"K": 2**10, "M": 2**20}


def token_count(value: Any) -> Any:
    """``128K`` or ``0.5M`` as a number of tokens, K for 1,024 and M for 1,024 K, as in "a window of 8K"; anything that
    is not such a text stays as it is.

    Raises:
        ValueError: text that is neither digits nor such a number, or not whole tokens.
    """
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = _TOKENS.fullmatch(value.strip())
    if match is None:
        raise ValueError("no number of tokens: write 131072, or 128K (K is 1,024)")
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number != int(number):
        raise ValueError("no whole number of tokens")
    return int(number)


Tokens = Annotated[int, Field(gt=0), BeforeValidator(token_count)]
"""A number of tokens, at least one; ``128K`` may be written for 131072."""


class OrPath:
    """Marks a field of texts that may be paths, with the words that are none (``Path`` fields need no mark)."""

    def __init__(self, *words: str) -> None:
        self.words = words


def is_path(value: str, words: tuple[str, ...]) -> bool:
    """Whether a text of such a field may be a path; ``NAME:PART`` is one of the words, too."""
    return bool(value) and value.partition(":")[0] not in words and not Path(value).is_absolute()


def as_list(value: Any) -> Any:
    """What stands for a list: one value for a list of it, text with commas for one of several. ``16,384`` is not taken
    apart: it may be one number."""
    if isinstance(value, str):
        parts = [value] if _GROUPED.fullmatch(value.strip()) else [part.strip() for part in value.split(",")]
        return [part for part in parts if part] or [value]
    if isinstance(value, int | float | dict) and not isinstance(value, bool):
        return [value]
    return value
