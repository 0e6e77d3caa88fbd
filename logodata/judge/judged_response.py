"""A response to a question as it is judged: the fault that the rules find, and the verdicts of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logodata.common.words import without_reasoning
from logodata.contract import DecisionRow, Grades, ModelVerdict, Question, Reason, Response, Role, RuleVerdict


def said_in(text: str) -> str:
    """Return what a response says, by which responses are equal: its answer, without the reasoning before it."""
    return without_reasoning(text).strip()


_AGREES: dict[Role, RuleVerdict] = {"preferred": "right", "rejected": "wrong"}

_AGAINST: dict[tuple[Role, ModelVerdict], Reason] = {
    ("preferred", "wrong"): "judge_says_preferred_wrong",
    ("rejected", "correct"): "judge_says_rejected_right",
}
_UNDECIDED: dict[ModelVerdict, Reason] = {
    "malformed": "judge_reply_malformed",
    "exceeds_window": "judge_prompt_exceeds_window",
}


@dataclass(slots=True, eq=False)
class Decision:
    """A response to ``question``, the ``number``-th of its role, and what speaks against it.

    ``rule`` is the fault that the rules find. Verdicts and grades are those of a model judge, None if it was not asked.
    The second ones decide nothing.
    """

    question: Question
    role: Role
    number: int
    response: Response
    rule: Reason | None
    model_verdict: ModelVerdict | None = None
    second_model_verdict: ModelVerdict | None = None
    grades: Grades | None = None
    second_grades: Grades | None = None

    @property
    def id(self) -> str:
        """The id of the decision, unique in a build."""
        return f"{self.question.id}/{self.role}-{self.number}"

    @property
    def objection(self) -> Reason | None:
        """The model's objection to the response; None if it has none, or was not asked."""
        if self.model_verdict is None:
            return None
        return _AGAINST.get((self.role, self.model_verdict)) or _UNDECIDED.get(self.model_verdict)

    def row(self, source: str, *, kept: bool) -> DecisionRow:
        """Return the row of ``decisions.jsonl`` for a question on a document in the file ``source``."""
        return DecisionRow(
            id=self.question.id,
            source=source,
            role=self.role,
            **self.response.model_dump(exclude={"token_ids"}),
            rule=self.rule,
            model_verdict=self.model_verdict,
            second_model_verdict=self.second_model_verdict,
            grades=self.grades,
            second_grades=self.second_grades,
            kept=kept,
        )


def contradicts(row: DecisionRow) -> bool:
    """Whether a verdict on a response contradicts its role: that of the rules, or a model's in either wording."""
    verdicts = (row.model_verdict, row.second_model_verdict)
    return row.verdict not in (None, _AGREES[row.role]) or any((row.role, verdict) in _AGAINST for verdict in verdicts)


def is_solved(verdict: RuleVerdict | None, model_verdict: ModelVerdict | None) -> bool:
    """Whether an answer solves its question: the rules find it right, and so does a model judge, if there is one."""
    return verdict == "right" and model_verdict in (None, "correct")


def eligible(preferred: Sequence[Decision], *, keep_bare_reference: bool) -> list[Decision]:
    """Return the candidates that the rules allow, in their order. A bare reference comes last if it is allowed."""
    allowed = [decision for decision in preferred if decision.rule is None]
    bare = [decision for decision in preferred if decision.rule == "preferred_is_bare_reference"]
    return allowed + (bare[:1] if keep_bare_reference else [])
