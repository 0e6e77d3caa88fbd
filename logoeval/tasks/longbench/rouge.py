"""Compute ROUGE-L with exactly the values of the PyPI package ``rouge`` 1.0.1, in a fraction of its time.

The package computes ROUGE-L at summary level. It splits sentences at "." and takes, for every reference sentence, the
words on its longest common subsequence with each sentence of the prediction. All these words form one set; F is
computed from that set and the sets of unique words. Where there are several longest subsequences, the package's way
back through the table decides which is taken, so this module takes the same way. It stores the table as rows of bits
(Crochemore et al. 2001), with all sentences of the prediction in one integer.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAMES = 985
"""The number of steps that the package can walk back: it recurses once per step, and Python's limit is 1000 frames.

Beyond it the package raises RecursionError, and LongBench's script takes 0 as the score. The exact number is 1000 minus
the depth of the caller."""


@dataclass(frozen=True, slots=True)
class RougeL:
    """F of ROUGE-L, in [0, 1]. ``overflow`` says whether the package would exceed Python's recursion limit, so that the
    official score is 0."""

    f: float
    overflow: bool = False


def rouge_l(prediction: str, reference: str, *, max_frames: int = MAX_FRAMES) -> RougeL:
    """Return ROUGE-L of two texts whose words are separated by white space. An empty text gives 0. ``max_frames`` is
    the number of steps, the first call included, that the package can walk back."""
    predicted, wanted = _sentences(prediction), _sentences(reference)
    if not predicted or not wanted:
        return RougeL(0.0)
    table = _Table(predicted)
    common: set[str] = set()
    for sentence in wanted:
        if not table.collect(sentence, common, max_frames):
            return RougeL(0.0, overflow=True)
    precision = len(common) / len({word for sentence in predicted for word in sentence})
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    return RougeL(2.0 * ((precision * recall) / (precision + recall + 1e-8)))


def _sentences(text: str) -> list[list[str]]:
    # As in the package, a sentence of white space counts as one empty word.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


class _Table:
    """The longest-common-subsequence tables between a reference sentence and all sentences of a prediction.

    A row of all tables is one integer. Each predicted sentence has one bit per word, and one bit above them that stays
    0 and absorbs carries. A bit is set where the value of the row does not grow at that word.
    """

    def __init__(self, sentences: list[list[str]]) -> None:
        self._spans: list[tuple[int, int]] = []
        self._places: dict[str, int] = {}
        self._full, offset = 0, 0
        for words in sentences:
            for number, word in enumerate(words, offset):
                self._places[word] = self._places.get(word, 0) | 1 << number
            self._full |= ((1 << len(words)) - 1) << offset
            self._spans.append((offset, len(words)))
            offset += len(words) + 1

    def collect(self, words: list[str], common: set[str], max_frames: int) -> bool:
        """Add the common words of ``words`` and each predicted sentence to ``common``; return False if a walk is too
        deep."""
        flat = self._full
        matches: list[int] = []
        turns: list[int] = []
        for word in words:
            match = self._places.get(word, 0)
            hit = flat & match
            above, flat = flat, ((flat + hit) | (flat & ~match)) & self._full
            matches.append(match)
            # The walk leaves this row at a match, or where the row above has the same value and the cell to the left
            # has a smaller one, which is where both rows grow.
            turns.append(match | (self._full & ~(above | flat)))
        for offset, length in self._spans:
            j, frames = length, 1
            for i in range(len(words) - 1, -1, -1):
                stop = ((turns[i] >> offset) & ((1 << j) - 1)).bit_length()
                frames += j - stop
                j = stop
                if not j:
                    break
                frames += 1
                if matches[i] >> (offset + j - 1) & 1:
                    common.add(words[i])
                    j -= 1
                    if not j:
                        break
            if frames > max_frames:
                return False
        return True
