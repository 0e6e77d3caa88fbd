"""How near a response comes to a reference answer: one number a measure, no decision. Pure functions of two texts.

Which of them suits depends on the length of the reference. Short ones (a name, a number, a phrase): the share of the
reference's words, since a chatty right answer scores 0.4 in token F1. Long ones (a paragraph): cosine of sentence
embeddings (:class:`Similarity`), since a right answer in other words shares few of them. Measured on answers of
SmolLM2-135M to FairytaleQA and QMSum; see ``benchmarks/LOG.md``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from logodata.text import content_stems, stem, words

if TYPE_CHECKING:
    from logodata.evaluators.embedding import SentenceEmbedder

_ARTICLES = ("a", "an", "the")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_UP_TO_TWENTY = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_UP_TO_TWENTY.split(), 2)} | {
    word: str(10 * value) for value, word in enumerate(_TENS.split(), 3)
}


def word_share(response: str, answers: Sequence[str]) -> float:
    """Share of a reference's distinct content words that occur in the response, best over the references; in [0, 1].

    A reference without content words ("yes", "the other one") is compared by all its words. 0 without references.
    """
    found = {stem(word) for word in words(response)}
    best = 0.0
    for answer in answers:
        wanted = set(content_stems(answer)) or {stem(word) for word in words(answer)}
        if wanted:
            best = max(best, len(wanted & found) / len(wanted))
    return best


def token_f1(response: str, answers: Sequence[str]) -> float:
    """Multiset word F1 after lower-casing and removing punctuation and articles, best over the references; in [0,
    1]."""
    return max((_f1(response, answer) for answer in answers), default=0.0)


def _f1(response: str, answer: str) -> float:
    left, right = (Counter(word for word in words(text) if word not in _ARTICLES) for text in (response, answer))
    common = sum((left & right).values())
    if not common:
        return 0.0
    precision, recall = common / left.total(), common / right.total()
    return 2 * precision * recall / (precision + recall)


def repetition(text: str) -> float:
    """Share of word trigrams that occurred before in the text; 0 for texts under three words."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def numbers(text: str) -> set[str]:
    """Numbers of a text, in digits: ``12``, ``1,200`` as 1200, ``twelve`` as 12; "one" is none, it mostly means
    somebody. A compound in words ("forty-two") is the set of its parts."""
    found = (_NUMBER_WORDS.get(word, word) for word in words(_THOUSANDS.sub("", text)))
    return {number.lstrip("0") or "0" for number in found if number.isdecimal()}


def number_share(response: str, answers: Sequence[str]) -> float | None:
    """Share of a reference's numbers that the response holds, best over the references; None if one of them holds
    none."""
    wanted = [numbers(answer) for answer in answers]
    if not all(wanted):
        return None
    found = numbers(response)
    return max((len(those & found) / len(those) for those in wanted), default=None)


def contains_reference(response: str, answers: Sequence[str]) -> bool:
    """Whether the words of a reference, articles left out, stand in the response one after the other."""
    said = _plain(response)
    return any(f" {_plain(answer).strip()} " in said for answer in answers if _plain(answer).strip())


def _plain(text: str) -> str:
    return f" {' '.join(word for word in words(text) if word not in _ARTICLES)} "


class Similarity:
    """Cosine between sentence embeddings of response and reference. The model is loaded with the first texts.

    A text longer than the model reads is the mean of its parts.

    Args:
        model: as :func:`logodata.models.resolve_embedding_model` takes it.
    """

    def __init__(self, model: str) -> None:
        self._name = model
        self._embedder: SentenceEmbedder | None = None

    def best(self, response: str, answers: Sequence[str]) -> float:
        """The largest cosine over the references, in [-1, 1]; 0 without references.

        Raises:
            UserError: the model cannot be loaded.
        """
        vector = self._vector(response)
        return max((float(vector @ self._vector(answer)) for answer in answers), default=0.0)

    def _vector(self, text: str) -> NDArray[np.float32]:
        if self._embedder is None:
            from logodata.evaluators.embedding import SentenceEmbedder
            from logodata.models import resolve_embedding_model

            self._embedder = SentenceEmbedder(resolve_embedding_model(self._name), 8, "judge.embedding_model")
        mean = self._embedder.encode(self._embedder.parts(text)).mean(axis=0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)
