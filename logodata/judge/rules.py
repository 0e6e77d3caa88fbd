"""Rules that keep a pair, or say why not: the preferred response must be right, and every dis-preferred one wrong.

The measure depends on the length of the reference (:mod:`logodata.judge.measures`). A response may be neither right nor
wrong. Then it is not preferred to anything, and nothing is preferred to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from logodata.common.words import content_stems, without_reasoning, words
from logodata.contract import ErrorPattern, Measures, Reason, Response, RuleVerdict
from logodata.judge.measures import Similarity, contains_reference, number_share, repetition, token_f1, word_share
from logodata.judge.settings import JudgeSettings

# By these phrases a model shows that it was told the answer, and they would be learned.
_HINT_PHRASES = (
    "the answer is",
    "correct answer",
    "answer to the question",
    "answer to this question",
    "short sentence",
    "the question is",
)


class Measurer:
    """Measures responses under one set of settings."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._similarity = Similarity(settings.embedding_model)

    def measure(self, response: str, answers: Sequence[str]) -> Measures:
        """Return all measures of a response, for the best reference. Reasoning before the answer does not count.
        Without a reference there is nothing to measure."""
        if not answers:
            return Measures()
        response = without_reasoning(response)
        by_similarity = self._settings.measure == "similarity" or (
            self._settings.measure == "auto" and is_long(answers, self._settings.long_answer_words)
        )
        similarity = self._similarity.best(response, answers) if by_similarity and response.strip() else None
        measures = Measures(
            word_share=word_share(response, answers),
            token_f1=token_f1(response, answers),
            contains_reference=contains_reference(response, answers),
            number_share=number_share(response, answers),
            similarity=similarity,
        )
        return measures.model_copy(update={"verdict": self._verdict(measures)})

    def _verdict(self, measures: Measures) -> RuleVerdict:
        settings = self._settings
        if measures.similarity is not None:
            if measures.similarity >= settings.similar_at:
                return "right"
            return "wrong" if measures.similarity < settings.dissimilar_below else "half_right"
        if settings.measure == "containment":
            is_wrong = not measures.contains_reference
        else:
            value = measures.token_f1 if settings.measure == "token_f1" else measures.word_share
            assert value is not None  # these two are always measured here
            is_wrong = value < settings.right_at
        if is_wrong:
            return "wrong"
        lacks_number = measures.number_share is not None and measures.number_share < 1
        return "half_right" if settings.match_numbers and lacks_number else "right"


def is_long(answers: Sequence[str], limit: int) -> bool:
    """Whether the shortest reference has more content words than ``limit``."""
    return min((sum(1 for _ in content_stems(answer)) for answer in answers), default=0) > limit


def _only_repeats(text: str, answers: Sequence[str]) -> bool:
    """Whether a response adds less than two words to a reference. It is unlikely under the model then."""
    said = Counter(words(text))
    return any((said - Counter(words(answer)) - Counter(("a", "an", "the"))).total() < 2 for answer in answers)


def preferred_fault(
    response: Response, question: str, answers: Sequence[str], settings: JudgeSettings, *, guided: bool
) -> Reason | None:
    """Return why this response cannot be the preferred one; None if it can."""
    text = without_reasoning(response.text)
    if not text.strip():
        return "preferred_empty"
    if not settings.enabled:
        return None
    if guided and any(phrase in text.lower() for phrase in _HINT_PHRASES):
        return "preferred_leaks_hint"
    if response.verdict not in (None, "right"):
        return "preferred_wrong"
    if settings.require_ended and not response.ended:
        return "preferred_not_ended"
    if guided and _only_repeats(text, answers):
        return "preferred_is_bare_reference"
    if repetition(text) > settings.max_repetition:
        return "preferred_repeats_itself"
    if (
        answers
        and settings.max_added_words is not None
        and added_words(text, question, answers) > settings.max_added_words
    ):
        return "preferred_adds_words"
    return None


def added_words(text: str, question: str, answers: Sequence[str]) -> int:
    """Return the number of distinct content words, by stem, that stand in neither the question nor a reference."""
    known = {found for source in (question, *answers) for found in content_stems(source)}
    return len(set(content_stems(without_reasoning(text))) - known)


def rejected_fault(response: Response, preferred: Response | None, settings: JudgeSettings) -> Reason | None:
    """Return why this response cannot be a dis-preferred one beside ``preferred``, as far as that is known; None if it
    can."""
    text = without_reasoning(response.text)
    if not text.strip():
        return "rejected_empty"
    if preferred and (text, response.ended) == (without_reasoning(preferred.text), preferred.ended):
        return "identical_responses"
    if settings.enabled and response.verdict not in (None, "wrong"):
        return "rejected_right" if response.verdict == "right" else "rejected_half_right"
    return None


def error_pattern(wrong_response: str, question: str) -> ErrorPattern:
    """Return how a wrong response goes wrong (paper, Appendix C).

    With ``instruction_unfollowing`` it shares no entity with the question, and speaks of something else. With
    ``hallucination`` it shares entities, and is wrong about them. Entities are names, numbers and content words by
    their stems, as the built-in evaluator finds them.
    """
    shared = set(content_stems(without_reasoning(wrong_response))) & set(content_stems(question))
    return "hallucination" if shared else "instruction_unfollowing"
