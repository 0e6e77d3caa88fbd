"""Choose a pair by grades: the best answer that may be preferred, and the worst one that may be dis-preferred."""

from __future__ import annotations

from collections.abc import Sequence

from logodata.contract import Reason, Role
from logodata.judge.judged_response import Decision, said_in
from logodata.judge.settings import GradeSettings, JudgeSettings

_NEVER: tuple[Reason | None, ...] = ("preferred_empty", "tokens_lose_text", "holds_reasoning")
"""Faults that keep an answer from either role."""


def sides(answers: Sequence[Decision], settings: JudgeSettings) -> tuple[list[Decision], list[Decision]] | Reason:
    """Return the answers that may be preferred, and those that may be dis-preferred; or the reason why one side is
    empty.

    Beside a reference the rules have given each answer its role, and no grade changes it. Without one an answer may
    stand on either side, and one that is no preferred response, because it did not end by itself or repeats itself, may
    only be dis-preferred. With the rules switched off every answer but an empty one may stand on either side.
    """
    winners = [answer for answer in answers if answer.role == "preferred" and answer.rule is None]
    losers = [
        answer
        for answer in answers
        if (answer.rule is None if answer.role == "rejected" else _is_free(answer, settings))
    ]
    if not winners:
        return _first_fault(answers, "preferred") or "preferred_wrong"
    if not losers:
        return _first_fault(answers, "rejected") or "rejected_right"
    return winners, losers


def _first_fault(answers: Sequence[Decision], role: Role) -> Reason | None:
    return next((answer.rule for answer in answers if answer.role == role and answer.rule), None)


def _is_free(answer: Decision, settings: JudgeSettings) -> bool:
    """Whether the rules say nothing of an answer, so that it may be dis-preferred, too."""
    return not (settings.enabled and answer.response.verdict) and answer.rule not in _NEVER


def best_and_worst(
    winners: Sequence[Decision], losers: Sequence[Decision], settings: GradeSettings
) -> tuple[Decision, Decision] | Reason:
    """Return the best of the winners and the worst of the losers; or the reason why they are no pair.

    Of equal answers the first one counts. The grades of a pair differ by ``settings.gap`` at least, so ties are none.
    """
    up, down = ([one for one in side if grade_of(one) is not None] for side in (winners, losers))
    # Equal answers have one grade.
    graded = {said_in(answer.response.text) for answer in (*up, *down)}
    if len(graded) < settings.least_graded or not up or not down:
        return "too_few_grades"
    best, worst = max(up, key=_grade), min(down, key=_grade)
    return (best, worst) if _grade(best) - _grade(worst) >= settings.gap else "grades_too_close"


def grade_of(answer: Decision) -> float | None:
    """Return the grade of an answer; None if it has none."""
    return answer.grades.grade if answer.grades else None


def _grade(answer: Decision) -> float:
    grade = grade_of(answer)
    assert grade is not None
    return grade
