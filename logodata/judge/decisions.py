"""What is decided on the responses to a question: faults by the rules, verdicts of a model, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from logodata.contract import Question, Response
from logodata.judge.settings import ModelVerdict, Reason

Role = Literal["preferred", "rejected"]

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

    ``rule`` is the rules' fault. ``model_verdict`` and ``second_model_verdict`` are a model's, None where it was not
    asked; the second one decides nothing.
    """

    question: Question
    role: Role
    number: int
    response: Response
    rule: Reason | None
    model_verdict: ModelVerdict | None = None
    second_model_verdict: ModelVerdict | None = None

    @property
    def id(self) -> str:
        """Unique in a build."""
        return f"{self.question.id}/{self.role}-{self.number}"

    @property
    def objection(self) -> Reason | None:
        """What the model's verdict has against it; None if nothing, or if no model was asked."""
        if self.model_verdict is None:
            return None
        return _AGAINST.get((self.role, self.model_verdict)) or _UNDECIDED.get(self.model_verdict)


def contradicts(row: Mapping[str, Any]) -> bool:
    """Whether a verdict on the response of a row of ``decisions.jsonl`` says the opposite of its role: the rules', or a
    model's in either wording."""
    by_the_rules: bool = row["verdict"] != {"preferred": "right", "rejected": "wrong"}[row["role"]]
    return by_the_rules or any(
        (row["role"], row[name]) in _AGAINST for name in ("model_verdict", "second_model_verdict")
    )


def eligible(preferred: Sequence[Decision], *, keep_bare_reference: bool) -> list[Decision]:
    """Candidates that can be preferred by the rules, in their order; a bare reference comes last, if it may at all."""
    allowed = [decision for decision in preferred if decision.rule is None]
    bare = [decision for decision in preferred if decision.rule == "preferred_is_bare_reference"]
    return allowed + (bare[:1] if keep_bare_reference else [])
