"""ROUGE-L as the PyPI package ``rouge`` 1.0.1 computes it, value for value, at a fraction of its time.

The package's ROUGE-L is summary level: sentences are split at ".", and of every reference sentence the words that lie
on its longest common subsequence with any sentence of the prediction go into one set. F is taken over that set and the
sets of unique words. Which longest subsequence it takes where there are several follows from how it walks back through
the table, so the walk is the same here; the table is kept as bit rows (Crochemore et al. 2001), all sentences of the
prediction in one integer.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAMES = 985
"""The package walks back by recursion, a frame a step: with more, Python's limit of 1000 ends it, and LongBench's
script takes the exception for a score of 0. The exact number is 1000 less the caller's own depth."""


@dataclass(frozen=True, slots=True)
class RougeL:
    """``f`` of ROUGE-L, in [0, 1]. ``overflow``: the package would have met Python's recursion limit, so that the
    official score is 0 whatever the texts say."""

    f: float
    overflow: bool = False


def rouge_l(prediction: str, reference: str, *, max_frames: int = MAX_FRAMES) -> RougeL:
    """ROUGE-L of two texts whose words are separated by white space.

    Args:
        prediction: no words or sentences at all give 0.
        reference: the same.
        max_frames: steps of the walk back, the first call included, that the package survives.
    """
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
    # A sentence of nothing but white space counts as one empty word, there as here.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


class _Table:
    """Rows of the longest-common-subsequence tables between one sentence and all sentences of a prediction.

    A row is an integer. Every predicted sentence has a bit for each of its words and one more above them that stays 0
    and takes up carries. A bit is set where the table's row does not grow at that word.
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
        """Add to ``common`` the words that the walks through all tables of ``words`` meet; False if one is too deep."""
        flat = self._full
        matches: list[int] = []
        turns: list[int] = []
        for word in words:
            match = self._places.get(word, 0)
            hit = flat & match
            above, flat = flat, ((flat + hit) | (flat & ~match)) & self._full
            matches.append(match)
            # Where the walk leaves this row: at a match, or where the row above has the same value and the cell to
            # the left has less, which is where both rows grow.
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
