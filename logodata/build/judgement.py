"""All decisions on a question, and the outcome that follows from them: a sample, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from logodata.build.preparing import Prepared, PreparedQuestion, UnusableQuestion
from logodata.common.words import without_reasoning
from logodata.contract import DecisionRow, PreferenceSample, QuestionOutcome, Reason, RejectedQuestion, Response
from logodata.judge.judged_response import Decision
from logodata.judge.measures import word_share


@dataclass(slots=True, eq=False)
class Judgement:
    """All decisions on a question.

    ``preferred`` holds the candidates for the preferred response, as they were tried, and ``eligible`` those that the
    rules allow, as they are to be preferred. ``rejected`` holds the dis-preferred responses beside the ``chosen`` one,
    and ``others`` what was judged beside them. ``fault`` speaks against the question as a whole.
    """

    prepared: PreparedQuestion
    preferred: Sequence[Decision] = ()
    eligible: Sequence[Decision] = ()
    chosen: Decision | None = None
    rejected: Sequence[Decision] = ()
    others: list[Decision] = field(default_factory=list)
    fault: Reason | None = None

    @property
    def rule_against_rejected(self) -> Reason | None:
        """The first fault that the rules find in a dis-preferred response."""
        return next((decision.rule for decision in self.rejected if decision.rule), None)

    @property
    def reason(self) -> Reason | None:
        """The reason why the pair is not kept; None if it is. It is that of the first candidate that came furthest."""
        if self.fault:
            return self.fault
        if self.chosen is None:
            return self.eligible[0].objection if self.eligible else self.preferred[0].rule
        return self.rule_against_rejected or next(filter(None, (d.objection for d in self.rejected)), None)

    def choose(self, best: Decision, worst: Decision) -> None:
        """Make a pair of two answers that were graded. Without a reference either might have had the other's role."""
        worst.role, worst.rule = "rejected", None
        self.chosen, self.rejected = best, [worst]
        self.preferred = [decision for decision in self.preferred if decision is not worst]
        self.others = [decision for decision in self.others if decision is not worst]

    def outcome(self) -> QuestionOutcome:
        """Return the sample or the reason, with all decisions."""
        prepared, chosen, reason = self.prepared, self.chosen, self.reason
        source, is_kept = prepared.document.source, reason is None
        decisions = [decision.row(source, kept=is_kept and decision is chosen) for decision in self.preferred]
        decisions += [decision.row(source, kept=is_kept) for decision in self.rejected]
        decisions += [decision.row(source, kept=False) for decision in self.others]
        if reason is None:
            assert chosen is not None
            sample = _sample(prepared, chosen.response, [decision.response for decision in self.rejected])
            return QuestionOutcome(id=prepared.question.id, decisions=decisions, sample=sample)
        return _rejected(
            prepared,
            decisions,
            reason,
            stage="judge",
            answers=prepared.question.answers,
            preferred=_texts([chosen] if chosen else self.preferred),
            rejected=_texts(self.rejected) if chosen else None,
        )


def unusable(question: UnusableQuestion) -> QuestionOutcome:
    """Return the outcome of a question for which there is no context."""
    return _rejected(question, [], question.reason, stage="contexts", detail=question.detail)


def _rejected(prepared: Prepared, decisions: list[DecisionRow], reason: str, **details: Any) -> QuestionOutcome:
    rejected = RejectedQuestion(
        id=prepared.question.id,
        doc_id=prepared.document.doc_id,
        where=prepared.document.where,
        source=prepared.document.source,
        question=prepared.question.question,
        kind=prepared.question.kind,
        reason=reason,
        **details,
    )
    return QuestionOutcome(id=rejected.id, decisions=decisions, rejected=rejected)


def _texts(decisions: Iterable[Decision]) -> list[str]:
    return [without_reasoning(decision.response.text) for decision in decisions]


def _sample(prepared: PreparedQuestion, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, question, critical = prepared.pool, prepared.question, prepared.contexts.critical
    held = word_share(" ".join(map(pool.text, critical)), question.answers) == 1.0 if question.answers else None
    return PreferenceSample(
        id=question.id,
        doc_id=prepared.document.doc_id,
        question_id=question.id,
        kind=question.kind,
        question=question.question,
        answers=question.answers,
        prompt_ids=list(prepared.prompt.ids),
        chunks=prepared.training_chunks(),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=held,
    )
