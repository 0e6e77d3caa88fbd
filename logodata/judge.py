"""Keep a pair or say why not: the preferred response must be right, every dis-preferred one wrong.

Right is measured by the share of the reference's words in the response. Responses are short (length-capped), so the
share cannot be bought with length; token F1 is computed beside it and kept in the data, but does not decide: a chatty
right answer scores 0.4 against a two-word reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from logodata.common.recipe_io import RecipeModel
from logodata.text import content_stems, stem, words
from logodata.verdicts import ModelJudgeSettings

Reason = Literal[
    "preferred_empty",
    "preferred_not_ended",
    "preferred_wrong",
    "preferred_leaks_hint",
    "preferred_is_bare_reference",
    "preferred_repeats_itself",
    "rejected_empty",
    "rejected_right",
    "identical_responses",
    "judge_says_preferred_wrong",
    "judge_says_rejected_right",
    "judge_reply_malformed",
    "judge_prompt_exceeds_window",
]
"""Why a pair is not kept."""

ErrorPattern = Literal["instruction_unfollowing", "hallucination"]
"""How a wrong answer goes wrong (paper, Appendix C)."""

RIGHT_AT = 0.6
"""Share of the reference's content words from which on a response is right, where a recipe says nothing else."""

# Phrases by which a model shows that it was told the answer; they would be learned.
_HINT_PHRASES = (
    "the answer is",
    "correct answer",
    "answer to the question",
    "answer to this question",
    "short sentence",
    "the question is",
)


class JudgeSettings(RecipeModel):
    """When a response counts as right."""

    enabled: bool = True
    """Off keeps every pair whose responses are not empty (the published code's behaviour, for ablations)."""
    right_at: float = Field(default=RIGHT_AT, gt=0, le=1)
    """A response is right if it holds at least this share of the reference's content words."""
    require_ended: bool = True
    """Whether a preferred response must have ended by itself within the length cap."""
    keep_bare_reference: bool = True
    """Whether a guided response that adds nothing to the reference is preferred where no other candidate is right. Such
    responses are unlikely under the model and raise the margin that training can gain cheaply."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """Largest share of repeated word trigrams in a preferred response."""
    model: ModelJudgeSettings | None = None
    """A model that judges what these rules let through: the preferred response must be correct, every other one wrong.
    Off by default."""

    @model_validator(mode="after")
    def _model_comes_after_the_rules(self) -> JudgeSettings:
        if self.model is not None and not self.enabled:
            raise ValueError("judge.model judges what the rules let through: it needs judge.enabled=true")
        return self


@dataclass(frozen=True, slots=True)
class JudgedText:
    """What the judge sees of a response."""

    text: str
    ended: bool


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
    left, right = (
        Counter(word for word in words(text) if word not in ("a", "an", "the")) for text in (response, answer)
    )
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


def _only_repeats(text: str, answers: Sequence[str]) -> bool:
    """Whether a response adds fewer than two words to a reference: not the model's own words, and unlikely under it."""
    said = Counter(words(text))
    return any((said - Counter(words(answer)) - Counter(("a", "an", "the"))).total() < 2 for answer in answers)


def preferred_fault(
    candidate: JudgedText, answers: Sequence[str], settings: JudgeSettings, *, guided: bool
) -> Reason | None:
    """Why this response cannot be the preferred one; None if it can."""
    if not candidate.text.strip():
        return "preferred_empty"
    if not settings.enabled:
        return None
    lowered = candidate.text.lower()
    if guided and any(phrase in lowered for phrase in _HINT_PHRASES):
        return "preferred_leaks_hint"
    if word_share(candidate.text, answers) < settings.right_at:
        return "preferred_wrong"
    if settings.require_ended and not candidate.ended:
        return "preferred_not_ended"
    if guided and _only_repeats(candidate.text, answers):
        return "preferred_is_bare_reference"
    if repetition(candidate.text) > settings.max_repetition:
        return "preferred_repeats_itself"
    return None


def rejected_fault(
    candidate: JudgedText, preferred: JudgedText, answers: Sequence[str], settings: JudgeSettings
) -> Reason | None:
    """Why this response cannot be a dis-preferred one beside ``preferred``; None if it can."""
    if not candidate.text.strip():
        return "rejected_empty"
    if candidate == preferred:
        return "identical_responses"
    if settings.enabled and word_share(candidate.text, answers) >= settings.right_at:
        return "rejected_right"
    return None


def error_pattern(wrong_response: str, question: str) -> ErrorPattern:
    """How a wrong response goes wrong (paper, Appendix C).

    ``instruction_unfollowing``: none of its entities is an entity of the question, it speaks of something else.
    ``hallucination``: they share entities, and what it says of them is wrong. Entities are those of the built-in
    evaluator: names, numbers and content words by their stems.
    """
    shared = set(content_stems(wrong_response)) & set(content_stems(question))
    return "hallucination" if shared else "instruction_unfollowing"
