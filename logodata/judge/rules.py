"""Keep a pair or say why not: the preferred response must be right, every dis-preferred one wrong.

How right is measured depends on the reference's length (:mod:`logodata.judge.measures`). Between right and wrong there
may be responses that are neither: they are not preferred to anything, and nothing is preferred to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from logodata.common.words import content_stems, without_reasoning, words
from logodata.judge.measures import Similarity, contains_reference, number_share, repetition, token_f1, word_share
from logodata.judge.settings import ErrorPattern, JudgeSettings, Reason, Verdict

# Phrases by which a model shows that it was told the answer; they would be learned.
_HINT_PHRASES = (
    "the answer is",
    "correct answer",
    "answer to the question",
    "answer to this question",
    "short sentence",
    "the question is",
)


class Measures(NamedTuple):
    """How near a response comes to the references, and what follows from it. ``number_share`` is None where a reference
    holds no number, ``similarity`` where it is not asked for."""

    word_share: float
    token_f1: float
    contains_reference: bool
    number_share: float | None
    similarity: float | None
    verdict: Verdict


class Measurer:
    """Measures responses under one set of settings.

    Args:
        settings: which measure decides, and from where on.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._similarity = Similarity(settings.embedding_model)

    def measure(self, response: str, answers: Sequence[str]) -> Measures:
        """All measures of a response, best over the references. What the model reasoned before it answered does not
        count."""
        response = without_reasoning(response)
        by_similarity = self._settings.measure == "similarity" or (
            self._settings.measure == "auto" and is_long(answers, self._settings.long_answer_words)
        )
        similarity = self._similarity.best(response, answers) if by_similarity and response.strip() else None
        measured = (
            word_share(response, answers),
            token_f1(response, answers),
            contains_reference(response, answers),
            number_share(response, answers),
        )
        return Measures(*measured, similarity, self._verdict(*measured, similarity if by_similarity else None))

    def _verdict(
        self, share: float, f1: float, contained: bool, found_numbers: float | None, similarity: float | None
    ) -> Verdict:
        settings = self._settings
        if similarity is not None:
            if similarity >= settings.similar_at:
                return "right"
            return "wrong" if similarity < settings.dissimilar_below else "half_right"
        value = {"token_f1": f1, "containment": float(contained)}.get(settings.measure, share)
        if value < (1.0 if settings.measure == "containment" else settings.right_at):
            return "wrong"
        missing = settings.match_numbers and found_numbers is not None and found_numbers < 1
        return "half_right" if missing else "right"


def verdict(response: str, references: Sequence[str], settings: JudgeSettings | None = None) -> Verdict:
    """What the rules say of a response beside the references: ``right``, ``half_right`` or ``wrong``.

    Args:
        response: as the model wrote it; reasoning before the answer is taken off.
        references: answers each of which is right.
        settings: what decides, and from where on; the defaults of a recipe where None.

    Raises:
        UserError: the embedding model, which long references need, cannot be loaded.
    """
    return Measurer(settings or JudgeSettings()).measure(response, references).verdict


def is_long(answers: Sequence[str], limit: int) -> bool:
    """Whether the shortest reference has more content words than ``limit``."""
    return min((sum(1 for _ in content_stems(answer)) for answer in answers), default=0) > limit


@dataclass(frozen=True, slots=True)
class JudgedText:
    """What the judge sees of a response: its text without reasoning; ``verdict`` is :meth:`Measurer.measure`'s."""

    text: str
    ended: bool
    verdict: Verdict


def _only_repeats(text: str, answers: Sequence[str]) -> bool:
    """Whether a response adds fewer than two words to a reference: not the model's own words, and unlikely under it."""
    said = Counter(words(text))
    return any((said - Counter(words(answer)) - Counter(("a", "an", "the"))).total() < 2 for answer in answers)


def preferred_fault(
    candidate: JudgedText, question: str, answers: Sequence[str], settings: JudgeSettings, *, guided: bool
) -> Reason | None:
    """Why this response cannot be the preferred one; None if it can."""
    if not candidate.text.strip():
        return "preferred_empty"
    if not settings.enabled:
        return None
    lowered = candidate.text.lower()
    if guided and any(phrase in lowered for phrase in _HINT_PHRASES):
        return "preferred_leaks_hint"
    if candidate.verdict != "right":
        return "preferred_wrong"
    if settings.require_ended and not candidate.ended:
        return "preferred_not_ended"
    if guided and _only_repeats(candidate.text, answers):
        return "preferred_is_bare_reference"
    if repetition(candidate.text) > settings.max_repetition:
        return "preferred_repeats_itself"
    if (
        settings.max_added_words is not None
        and added_words(candidate.text, question, answers) > settings.max_added_words
    ):
        return "preferred_adds_words"
    return None


def added_words(text: str, question: str, answers: Sequence[str]) -> int:
    """Distinct content words, by stem, that stand in neither the question nor a reference."""
    known = {found for source in (question, *answers) for found in content_stems(source)}
    return len(set(content_stems(without_reasoning(text))) - known)


def rejected_fault(candidate: JudgedText, preferred: JudgedText, settings: JudgeSettings) -> Reason | None:
    """Why this response cannot be a dis-preferred one beside ``preferred``; None if it can."""
    if not candidate.text.strip():
        return "rejected_empty"
    if (candidate.text, candidate.ended) == (preferred.text, preferred.ended):
        return "identical_responses"
    if settings.enabled and candidate.verdict != "wrong":
        return "rejected_right" if candidate.verdict == "right" else "rejected_half_right"
    return None


def error_pattern(wrong_response: str, question: str) -> ErrorPattern:
    """How a wrong response goes wrong (paper, Appendix C).

    ``instruction_unfollowing``: none of its entities is an entity of the question, it speaks of something else.
    ``hallucination``: they share entities, and what it says of them is wrong. Entities are those of the built-in
    evaluator: names, numbers and content words by their stems.
    """
    shared = set(content_stems(without_reasoning(wrong_response))) & set(content_stems(question))
    return "hallucination" if shared else "instruction_unfollowing"
