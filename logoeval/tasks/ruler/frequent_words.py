"""The two aggregation tasks: common words (``common_words_extraction.py``) and frequent coded words
(``freq_words_extraction.py``)."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

import numpy as np

from logoeval.tasks.ruler.sample import Generator, Sample, numbered, put_in_fixed_order

_NUM_COMMON = 10
_LETTERS, _ALPHA = 6, 2.0


class CommonWordsGenerator(Generator):
    """Makes samples of common words; units are different words. ``words`` are wonderwords', in RULER's order."""

    first = 10

    def __init__(self, length: int, prompt: tuple[str, str], words: list[str]) -> None:
        self._template, self._prefix = prompt
        self._words, self.most = words, len(words)
        # How often common words and others stand in the list.
        self._times, self._example = ((6, 1), (20, 3, 1)) if length < 4096 else ((30, 3), (40, 10, 3))

    def fewest(self, _: int) -> int:
        """Return the number of common words."""
        return _NUM_COMMON

    def draw(self, rng: Random, num_units: int, _: int) -> Sample:
        """Draw the words of the solved example, then those of the question. RULER writes the example with the chat
        template around its question too."""
        solved, answer = self._list(rng, *self._example)
        context, common = self._list(rng, num_units, *self._times)
        return Sample(
            (
                (self._template.format(context=solved), f"{self._prefix} {numbered(answer)}\n"),
                (self._template.format(context=context), self._prefix),
            ),
            tuple(common),
        )

    def _list(self, rng: Random, num_words: int, common_times: int, other_times: int) -> tuple[str, list[str]]:
        drawn = rng.sample(self._words, num_words)
        common = drawn[:_NUM_COMMON]
        words = common * common_times + drawn[_NUM_COMMON:] * other_times
        put_in_fixed_order(words)
        return numbered(words), common


class FrequentWordsGenerator(Generator):
    """Makes samples of frequent coded words; units are words before their numbers are rounded down.

    ``num_tokens`` is what the prompt may have. Word k of the vocabulary stands n k^-2 / zeta(2) times among n.
    """

    def __init__(self, num_tokens: int, prompt: tuple[str, str]) -> None:
        self._template, self._prefix = prompt
        self._num_words = num_tokens // 50
        self.first, self.step = num_tokens // _LETTERS, num_tokens // 32

    def fewest(self, _: int) -> int:
        """Return the number with which the fourth word, the last of the answer, still stands once."""
        return 27

    def draw(self, rng: Random, num_units: int, _: int) -> Sample:
        """Draw the vocabulary. Its most frequent word is noise, the next three are the answer."""
        drawn: set[str] = set()
        while len(drawn) < self._num_words:
            drawn.add("".join(rng.choices(ascii_lowercase, k=_LETTERS)))
        vocabulary = sorted(drawn)
        put_in_fixed_order(vocabulary)
        vocabulary[0] = "..."
        times = num_units * np.arange(1, len(vocabulary) + 1) ** -_ALPHA / _zeta(_ALPHA)
        words = [word for word, count in zip(vocabulary, times.astype(int), strict=True) for _ in range(count)]
        put_in_fixed_order(words)
        question = self._template.format(context=" ".join(words), query="")
        return Sample(((question, self._prefix),), tuple(vocabulary[1:4]))


def _zeta(alpha: float) -> float:
    from scipy.special import zeta

    return float(zeta(alpha))
