"""Gather yield, purity and make-up of a data set, question by question, so that memory does not grow with them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePath
from typing import Literal, get_args

from logodata.contract import (
    DecisionRow,
    ErrorPattern,
    EvaluatorChoice,
    GroupStats,
    ModelVerdict,
    PreferenceSample,
    QuestionOutcome,
    Response,
    ResponseOrigin,
    Role,
    RuleVerdict,
    SolveStats,
    Spread,
    Stats,
)
from logodata.judge.agreement import verdict_statistics
from logodata.judge.grade_agreement import GradeCounts
from logodata.judge.judged_response import contradicts, is_solved
from logodata.judge.rules import error_pattern
from logodata.sources.document_files import SUFFIXES


def source_group(file: str) -> str:
    """Return the name that a file counts under: its own, or that of the folder for a text file of one document."""
    return f"{PurePath(file).parent}/" if PurePath(file).suffix.lower() in SUFFIXES else file


def _is_kept(row: DecisionRow) -> bool:
    return row.kept


@dataclass(slots=True)
class _Group:
    """Counts over questions that have something in common, such as their source file."""

    num_kept: int = 0
    num_decided: int = 0
    num_pure: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[Role, RuleVerdict | None]] = field(default_factory=Counter)

    def add(self, outcome: QuestionOutcome) -> None:
        if outcome.rejected is None:
            self.num_kept += 1
            kept = list(filter(_is_kept, outcome.decisions))
            # Answers that were graded without a reference have no verdict.
            is_decided = any(row.verdict is not None for row in kept)
            self.num_decided += is_decided
            self.num_pure += is_decided and not any(map(contradicts, kept))
        else:
            self.reasons[outcome.rejected.reason] += 1
        self.verdicts.update((row.role, row.verdict) for row in outcome.decisions)

    def result(self) -> GroupStats:
        total = self.num_kept + self.reasons.total()
        return GroupStats(
            questions=total,
            kept=self.num_kept,
            yield_=self.num_kept / total if total else None,
            rejected_by_reason=dict(self.reasons.most_common()),
            purity=self.num_pure / self.num_decided if self.num_decided else None,
            preferred_judged=self._judged("preferred"),
            dispreferred_judged=self._judged("rejected"),
        )

    def _judged(self, role: Role) -> dict[RuleVerdict, int]:
        return {verdict: self.verdicts[role, verdict] for verdict in get_args(RuleVerdict)}


class Statistics:
    """Gathers :class:`~logodata.contract.Stats`, one question after the other. Imported pairs have no ``evaluator``."""

    def __init__(self, evaluator: EvaluatorChoice | None) -> None:
        self._evaluator = evaluator
        self._all = _Group()
        self._by_source = defaultdict[str, _Group](_Group)
        self._by_kind = defaultdict[str, _Group](_Group)
        self._origins: Counter[ResponseOrigin] = Counter()
        self._verdicts: Counter[tuple[ModelVerdict, ModelVerdict | None]] = Counter()
        self._grades = GradeCounts()
        self._solved: Counter[int] = Counter()
        self._num_tries = 0
        self._patterns: Counter[ErrorPattern | Literal["right"]] = Counter(
            dict.fromkeys(get_args(ErrorPattern), 0) if evaluator else {}
        )
        self._prompt_lengths: Counter[int] = Counter()
        self._preferred, self._dispreferred = _Responses(), _Responses()
        self._num_answered = self._num_known_answered = self._num_single_critical = 0
        self._nums_dispreferred: set[int] = set()

    def add(self, outcome: QuestionOutcome) -> None:
        """Count the outcome of a question."""
        for group in (self._all, self._by_source[source_group(outcome.source)], self._by_kind[outcome.kind]):
            group.add(outcome)
        for decision in outcome.decisions:
            # What is tried tells of the question, and what the rules find right would raise every share.
            if decision.model_verdict is not None and decision.role != "try":
                self._verdicts[decision.model_verdict, decision.second_model_verdict] += 1
        self._grades.add(outcome)
        if tries := [is_solved(row.verdict, row.model_verdict) for row in outcome.decisions if row.role == "try"]:
            self._num_tries = len(tries)
            self._solved[sum(tries)] += 1
        if outcome.sample is not None:
            self._add_sample(outcome.sample)

    def _add_sample(self, sample: PreferenceSample) -> None:
        self._nums_dispreferred.add(len(sample.rejected))
        self._origins[sample.origin] += 1
        self._prompt_lengths[len(sample.prompt_ids)] += 1
        self._num_answered += bool(sample.answer_in_critical)
        self._num_known_answered += sample.answer_in_critical is not None
        self._num_single_critical += sum(chunk.critical for chunk in sample.chunks) == 1
        self._preferred.add(sample.chosen)
        for response in sample.rejected:
            self._dispreferred.add(response)
            if sample.question is None or self._evaluator is None or response.verdict is None:
                continue  # nothing says what is wrong with it
            # A judge that was switched off lets right ones through.
            is_right = response.verdict in ("right", "half_right")
            self._patterns["right" if is_right else error_pattern(response.text, sample.question)] += 1

    def _solve(self) -> SolveStats | None:
        if not self._num_tries:
            return None
        return SolveStats(tries=self._num_tries, histogram=[self._solved[n] for n in range(self._num_tries + 1)])

    def result(self) -> Stats:
        """Return the statistics of all questions so far."""
        kinds = Counter({kind: group.num_kept for kind, group in self._by_kind.items() if group.num_kept})
        preferred, dispreferred = self._preferred, self._dispreferred
        return Stats(
            **dict(self._all.result()),
            kept_by_kind=dict(kinds.most_common()),
            kept_by_origin=dict(self._origins.most_common()),
            dispreferred_per_sample=next(iter(self._nums_dispreferred)) if len(self._nums_dispreferred) == 1 else None,
            prompt_tokens=_spread(self._prompt_lengths),
            preferred_tokens=_spread(preferred.lengths),
            dispreferred_tokens=_spread(dispreferred.lengths),
            preferred_ended=preferred.mean("ended"),
            dispreferred_ended=dispreferred.mean("ended"),
            preferred_word_share=preferred.mean("word_share"),
            dispreferred_word_share=dispreferred.mean("word_share"),
            preferred_token_f1=preferred.mean("token_f1"),
            dispreferred_token_f1=dispreferred.mean("token_f1"),
            dispreferred_error_patterns=dict(self._patterns),
            answer_in_critical=self._num_answered / self._num_known_answered if self._num_known_answered else None,
            single_critical_chunk=self._num_single_critical if self._evaluator else None,
            model_judge=verdict_statistics(self._verdicts) if self._verdicts else None,
            grades=self._grades.result(),
            solve=self._solve(),
            by_source={source: self._by_source[source].result() for source in sorted(self._by_source)},
            by_kind={kind: self._by_kind[kind].result() for kind in sorted(self._by_kind)},
            evaluator=self._evaluator,
        )


@dataclass(slots=True)
class _Responses:
    """Counts over the kept responses of one role."""

    lengths: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    nums_measured: Counter[str] = field(default_factory=Counter)

    def add(self, response: Response) -> None:
        self.lengths[len(response.token_ids)] += 1
        for measure in ("ended", "word_share", "token_f1"):
            if (value := getattr(response, measure)) is not None:
                self.sums[measure] += value
                self.nums_measured[measure] += 1

    def mean(self, measure: str) -> float | None:
        count = self.nums_measured[measure]
        return self.sums[measure] / count if count else None


def _spread(counts: Counter[int]) -> Spread | None:
    if not counts:
        return None
    numbers = sorted(counts)
    upto = list(accumulate(counts[number] for number in numbers))
    return Spread(min=numbers[0], median=numbers[bisect_right(upto, upto[-1] // 2)], max=numbers[-1])
