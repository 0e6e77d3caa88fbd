"""Answer the names and values that other programs use for the same thing.

A table maps another program's name, or a pattern of names (``hub_*``), to an answer: our fields, a remark, or both with
a colon between (``"samples_per_step: over all devices"``). An answer that begins with the colon means that there is no
such field, and says what happens instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple


class Answer(NamedTuple):
    """The answer to a foreign name."""

    fields: tuple[str, ...]
    """Our dotted names, from the section on."""
    remark: str

    def __str__(self) -> str:
        if not self.fields:
            return f"there is none here: {self.remark}"
        return f"here it is {' and '.join(self.fields)}{f': {self.remark}' if self.remark else ''}"


def by_name(answers: Mapping[str, str]) -> dict[str, str]:
    """Return the table of names, from one that gives each answer once, with all names that it is for, spaces between
    them."""
    pairs = [(name, answer) for answer, names in answers.items() for name in names.split()]
    assert len(dict(pairs)) == len(pairs), "a name has two answers"
    return dict(pairs)


def parse_answer(text: str) -> Answer:
    """Parse an entry of a table."""
    fields, _, remark = text.partition(":")
    return Answer(tuple(fields.replace(" and ", " ").split()), remark.strip())


def answer(name: str, table: Mapping[str, str]) -> Answer | None:
    """Return the answer of ``table`` to a name, however it is written (``Learning-Rate``). Exact entries come before
    patterns."""
    name = name.strip("-").replace("-", "_").lower()
    found = table.get(name) or next((text for pattern, text in table.items() if fnmatchcase(name, pattern)), None)
    return None if found is None else parse_answer(found)
