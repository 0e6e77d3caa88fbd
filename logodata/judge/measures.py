"""Measures of how near a response comes to a reference answer: pure functions of two texts, without a decision.

The length of the reference decides which measure suits. For a short one (a name, a number, a phrase) it is the share of
the reference's words, because a chatty right answer scores 0.4 in token F1. For a long one (a paragraph) it is the
cosine of sentence embeddings (:class:`Similarity`), because a right answer in other words shares few of them. This was
measured on answers of SmolLM2-135M to FairytaleQA and QMSum; see ``benchmarks/LOG.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from logodata.common.words import HEAT, ORDINAL, VERSION, Word, characters, normalise, part_size, read, stems, words

if TYPE_CHECKING:
    from logodata.contexts.embedding import SentenceEmbedder

_ARTICLES = ("a", "an", "the")


class _Said:
    """What a response says: stems of words, values of numbers with their units, and runs of scripts without spaces."""

    def __init__(self, response: str) -> None:
        found = read(response)
        self._stems = {stem for word in found for stem in stems(word)}
        self._stems |= {stem.lower() for stem in self._stems}  # "IT" may be "it" in capitals
        self._counted: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
        for word, places in _counting(found):
            self._counted[word.unit == ORDINAL] |= places
        self._runs = "\n".join(word.text for word in found if word.kind == "run")
        self._numbers = {(text, unit) for word in found if word.kind == "number" for text, unit in _readings(word)}

    def counts_otherwise(self, number: Word, places: set[tuple[str, str]]) -> bool:
        """Whether the response has another number where a reference has "one" or "first"."""
        return bool(places & self._counted[number.unit == ORDINAL]) and not self.has_number(number)

    def hits(self, word: Word) -> tuple[int, int]:
        """Return how many characters of a run are said, and how many it has; for another word 0 or 1, and 1."""
        if word.kind == "run":
            return _covered(word.text, self._runs), len(characters(word.text))
        if word.kind == "number":
            return int(self.has_number(word)), 1
        return int(stems(word)[0] in self._stems), 1

    def has_number(self, number: Word) -> bool:
        """Whether a number is said, in the same unit if both have one. An ordinal is no count: third is not three."""
        units = (number.unit, _NO_UNIT) if number.unit not in ("", ORDINAL) else (number.unit,)
        hour = number.text.removesuffix(":00")  # "at 8" says 8:00
        return (hour != number.text and (hour, _NO_UNIT) in self._numbers) or any(
            (text, unit) in self._numbers for text in {number.text, number.literal} for unit in units
        )


def _counting(found: Sequence[Word]) -> Iterator[tuple[Word, set[tuple[str, str]]]]:
    """Yield the numbers of a text, each with what it counts: the unit or the words beside it."""
    for index, word in enumerate(found):
        if word.kind == "number":
            places = {("unit", word.unit)} if word.unit not in ("", ORDINAL) else set()
            if index + 1 < len(found) and found[index + 1].telling:
                places.add(("after", stems(found[index + 1])[0]))
            if index and found[index - 1].literal[:1].isupper() and found[index - 1].telling:
                places.add(("before", stems(found[index - 1])[0]))
            yield word, places


_NO_UNIT = "none"


def _readings(number: Word) -> Iterator[tuple[str, str]]:
    """Yield the forms in which a reference may ask for a number: value or text ("3.10"), with or without a unit."""
    texts = {number.text}
    if number.literal[:1].isdigit():
        texts.add(number.literal)
    if ":" in number.text:
        # A time may be written with a point, or without its minutes.
        texts |= {form.replace(":", ".") for form in texts} | {form.removesuffix(":00") for form in texts}
    if number.unit == ORDINAL:
        return product(texts, (ORDINAL,))
    units = {"", number.unit or _NO_UNIT}
    if number.unit == VERSION:
        units.add(_NO_UNIT)
    if number.unit in HEAT:
        units.add("degree")
    elif number.unit == "degree":
        units.update(HEAT)
    return product(texts, units)


def _covered(run: str, said: str) -> int:
    """Return how many characters of a run stand in a part of it that is said."""
    shown, size = characters(run), part_size(run)
    covered: set[int] = set()
    for start in range(max(1, len(shown) - size + 1)):
        if "".join(shown[start : start + size]) in said:
            covered.update(range(start, min(start + size, len(shown))))
    return len(covered)


def word_share(response: str, answers: Sequence[str]) -> float:
    """Return the share of a reference's distinct content words that occur in the response, in [0, 1].

    The best reference counts, and without references the share is 0. Numbers are compared as values. In a script
    without spaces (Chinese, Japanese, Thai, ...) each character counts as a word, found only with its neighbours. A
    reference without content words ("yes", "the other one") is compared by all its words, and one without words ("★")
    by its characters.
    """
    said = _Said(response)
    return max((_share(said, response, answer) for answer in answers), default=0.0)


def _share(said: _Said, response: str, answer: str) -> float:
    found = read(answer)
    if not found:
        signs = normalise(answer)[0].strip()
        return float(bool(signs) and signs in normalise(response)[0])
    telling = [word for word in found if word.telling] or found
    distinct = {(word.kind, *stems(word), word.unit): word for word in telling}
    hits = [said.hits(word) for word in distinct.values()]
    return sum(hit for hit, _ in hits) / sum(size for _, size in hits)


def token_f1(response: str, answers: Sequence[str]) -> float:
    """Return the F1 of words with the best reference, in [0, 1]. Case, punctuation and articles do not count."""
    return max((_f1(response, answer) for answer in answers), default=0.0)


def _f1(response: str, answer: str) -> float:
    left, right = (Counter(word for word in words(text) if word not in _ARTICLES) for text in (response, answer))
    common = sum((left & right).values())
    if not common:
        return 0.0
    precision, recall = common / left.total(), common / right.total()
    return 2 * precision * recall / (precision + recall)


def repetition(text: str) -> float:
    """Return the share of word trigrams that occurred before in the text; 0 for a text of less than three words."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def number_share(response: str, answers: Sequence[str]) -> float | None:
    """Return the share of a reference's numbers that the response holds, for the best reference.

    It is None if a reference holds no number. "One" and "first" count as numbers only if the response has another
    number in their place, as in World War One and World War Two.
    """
    said = _Said(response)
    wanted = [
        {
            (word.text, word.unit): word
            for word, places in _counting(read(answer))
            if word.exact or said.counts_otherwise(word, places)
        }
        for answer in answers
    ]
    if not all(wanted):
        return None
    return max((sum(map(said.has_number, those.values())) / len(those) for those in wanted), default=None)


def contains_reference(response: str, answers: Sequence[str]) -> bool:
    """Whether the response holds the words of a reference one after the other, articles left out."""
    said = _line(response)
    return any(wanted in said for answer in answers if (wanted := _line(answer, open_ended=True)).strip())


def _line(text: str, *, open_ended: bool = False) -> str:
    """Return the words of a text between spaces."""
    # A run of a script without spaces may stand within a longer one, so an open end has no space.
    kept = [word for word in read(text) if word.text not in _ARTICLES]
    line = " ".join(" ".join(filter(None, (word.text, word.unit))) for word in kept)
    left = "" if open_ended and kept and kept[0].kind == "run" else " "
    right = "" if open_ended and kept and kept[-1].kind == "run" else " "
    return f"{left}{line}{right}"


class Similarity:
    """Computes the cosine between sentence embeddings of response and reference.

    The model is named as :func:`logodata.models.loading.resolve_embedding_model` takes it, and loaded for the first
    texts. A text longer than the model reads is the mean of its parts.
    """

    def __init__(self, model: str) -> None:
        self._name = model

    @cached_property
    def _embedder(self) -> SentenceEmbedder:
        from logodata.contexts.embedding import SentenceEmbedder
        from logodata.models.loading import resolve_embedding_model

        return SentenceEmbedder(resolve_embedding_model(self._name), 8, "judge.embedding_model")

    def best(self, response: str, answers: Sequence[str]) -> float:
        """Return the largest cosine over the references, in [-1, 1]; 0 without references."""
        vector = self._vector(response)
        return max((float(vector @ self._vector(answer)) for answer in answers), default=0.0)

    def _vector(self, text: str) -> NDArray[np.float32]:
        return self._embedder.encode_whole([text])[0]
