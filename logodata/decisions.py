"""What is decided on the responses to a question: faults by the rules, verdicts of a model, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from logodata.candidates import Candidate
from logodata.contract import Question, Response
from logodata.judge import Reason
from logodata.verdicts import ModelVerdict

Role = Literal["preferred", "rejected"]

Outcome = dict[str, Any]
"""What became of a question, as JSON: its ``id``; either ``sample`` (a :class:`PreferenceSample`) or ``rejected`` (a
row of ``rejected.jsonl``); and ``decisions`` (rows of ``decisions.jsonl``, one for each response that was judged)."""

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


@dataclass(slots=True, eq=False)
class Judgement:
    """All decisions on a question.

    ``preferred`` are the candidates for the preferred response, in the order they were tried; ``eligible`` those that
    the rules allow, in the order in which they are to be preferred; ``chosen`` the one that is; ``rejected`` the
    dis-preferred responses beside it.
    """

    plan: Candidate
    preferred: Sequence[Decision]
    eligible: Sequence[Decision]
    chosen: Decision | None = None
    rejected: Sequence[Decision] = field(default=())

    @property
    def rule_against_rejected(self) -> Reason | None:
        """The rules' first fault of a dis-preferred response."""
        return next((decision.rule for decision in self.rejected if decision.rule), None)

    @property
    def reason(self) -> Reason | None:
        """Why the pair is not kept; None if it is. Of several preferred candidates the first that came furthest is
        named."""
        if self.chosen is None:
            return self.eligible[0].objection if self.eligible else self.preferred[0].rule
        return self.rule_against_rejected or next(filter(None, (d.objection for d in self.rejected)), None)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of ``decisions.jsonl``. ``kept`` says whether the response stands in the data set."""
        pair_kept = self.reason is None
        for decision in (*self.preferred, *self.rejected):
            yield {
                "id": decision.question.id,
                "source": self.plan.document.source,
                "role": decision.role,
                **decision.response.model_dump(mode="json", exclude={"token_ids"}),
                "rule": decision.rule,
                "model_verdict": decision.model_verdict,
                "second_model_verdict": decision.second_model_verdict,
                "kept": pair_kept and (decision.role == "rejected" or decision is self.chosen),
            }


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
