"""Types of recipe fields: counts of tokens, lists that may be given as one value, text that may be a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

_TOKENS = re.compile(r"(\d+(?:\.\d+)?) ?([KM])", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")
_UNITS = {"K": 2**10, "M": 2**20}


def token_count(value: Any) -> Any:
    """Return ``128K`` or ``0.5M`` as a number of tokens. K is 1,024 and M is 1,024 K, as in "a window of 8K". Digits
    and values that are not text stay as they are.

    Raises:
        ValueError: The text is not a number of tokens, or not a whole one.
    """
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = _TOKENS.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a number of tokens: write 131072, or 128K (K is 1,024)")
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number != int(number):
        raise ValueError("not a whole number of tokens")
    return int(number)


JsonFields = dict[str, JsonValue]
"""Fields of a JSON object by name."""

TemplateArgs = dict[str, bool | int | float | str | None]
"""Variables of a chat template by name."""

Tokens = Annotated[int, Field(gt=0), BeforeValidator(token_count)]
"""A number of tokens, at least 1. ``128K`` may be written for 131072."""


def _known_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:  # also for codecs that turn bytes into bytes
        raise ValueError("there is no such encoding of text") from None
    return value


Encoding = Annotated[str, AfterValidator(_known_encoding)]
"""The name of an encoding of text that Python knows."""


class OrPath:
    """Marks a text field that may hold paths, with the words that are not paths. ``Path`` fields need no mark."""

    def __init__(self, *words: str) -> None:
        self.words = words


def is_path(value: str, words: tuple[str, ...]) -> bool:
    """Whether the text of such a field may be a relative path. ``NAME:PART`` counts as the word ``NAME``."""
    return bool(value) and value.partition(":")[0] not in words and not Path(value).is_absolute()


def as_list(value: Any) -> Any:
    """Return one value as a list of it, and a text with commas as a list of several. Other values stay. ``16,384`` is
    not split, because it may be one number."""
    if isinstance(value, str):
        parts = [value] if _GROUPED.fullmatch(value.strip()) else [part.strip() for part in value.split(",")]
        return [part for part in parts if part] or [value]
    if isinstance(value, int | float | dict) and not isinstance(value, bool):
        return [value]
    return value
