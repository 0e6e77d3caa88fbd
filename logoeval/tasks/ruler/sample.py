"""What a generator makes: the texts of one prompt and its references.

A generator is a pure function of a random source and a number of units (words, lines, documents). It draws in the order
of RULER's script for its task, so that the official stream of random numbers gives the official prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableSequence
from dataclasses import dataclass
from random import Random
from typing import Any

PERMUTATION_SEED = 42
"""RULER's default seed. Needles, words and documents are put in an order that this seed alone gives, the same in every
sample of one size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The texts of one prompt. A turn is a text inside the chat template, and what follows where the assistant's turn
    begins. The last turn is the question with the answer prefix, those before it are solved examples."""

    turns: tuple[tuple[str, str], ...]
    references: tuple[str, ...]


class Generator(ABC):
    """Makes the samples of one task at one length."""

    first: int
    """The smallest number of units that RULER's search tries."""
    step: int = 1
    """The distance between the numbers of units that the search tries."""
    most: int | None = None
    """The largest number of units that there are; None where the text goes round."""

    @abstractmethod
    def fewest(self, index: int, /) -> int:
        """Return the smallest number of units that question ``index`` can be asked with."""

    def goes_round(self, _num_units: int, /) -> bool:
        """Whether the user's text has fewer units, and is repeated. What is drawn, and noise, has no end."""
        return False

    def cluster(self, _index: int, /) -> str | None:
        """Return the name of what the sample shares with others, also of other lengths; None if all of it is drawn."""
        return None

    @abstractmethod
    def draw(self, rng: Random, num_units: int, index: int, /) -> Sample:
        """Draw a sample. ``index`` is the number of the question, for tasks that have a list of them."""


def put_in_fixed_order(items: MutableSequence[Any]) -> None:
    """Shuffle a list as RULER does, by its seed alone."""
    Random(PERMUTATION_SEED).shuffle(items)


def numbered(words: list[str] | tuple[str, ...]) -> str:
    """Return words as ``1. word 2. word``."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
