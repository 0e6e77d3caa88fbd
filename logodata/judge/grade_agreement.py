"""Count grades, and measure how far the two wordings of a judge that grades agree."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from logodata.common.resampling import mean_interval
from logodata.contract import DecisionRow, Grades, GradeStats, QuestionOutcome
from logodata.judge.agreement import wilson_interval
from logodata.judge.judged_response import said_in


class GradeCounts:
    """Gathers :class:`~logodata.contract.GradeStats`, one question after the other."""

    def __init__(self) -> None:
        self._graded = self._malformed = self._exceeds_window = self._graded_again = self._ungraded_again = 0
        self._kept: dict[str, list[float]] = {"preferred": [], "rejected": []}
        self._longer: list[bool] = []
        self._same_best: list[bool] = []
        self._same_worst: list[bool] = []
        self._agree: list[bool] = []
        self._correlations: list[float] = []
        self._documents: list[str] = []

    def add(self, outcome: QuestionOutcome) -> None:
        """Count the grades of a question's answers."""
        graded = sorted((row for row in outcome.decisions if row.grades), key=lambda row: row.kept)
        # Equal responses count once. Of these the one that was kept comes last, and is taken.
        rows = list({said_in(row.text): row for row in graded}.values())
        for row in rows:
            assert row.grades is not None
            missing = {score for score in row.grades.scores.values() if isinstance(score, str)}
            self._graded += not missing
            self._malformed += "malformed" in missing
            self._exceeds_window += missing == {"exceeds_window"}
        kept = {row.role: row for row in rows if row.kept}
        for role, row in kept.items():
            self._kept[role].append(_grade(row.grades))
        sample = outcome.sample
        if kept and sample and sample.rejected:
            self._longer.append(len(sample.chosen.token_ids) > len(sample.rejected[0].token_ids))
        if any(row.second_grades for row in rows):
            self._graded_again += 1
            self._ungraded_again += sum(_second(row) is None for row in rows)
            both = [row for row in rows if None not in (_first(row), _second(row))]
            if len(both) >= 2:
                self._compare(both, outcome.doc_id)
        pair = [kept[role].second_grades for role in ("preferred", "rejected") if role in kept]
        if len(pair) == 2 and all(grades and grades.grade is not None for grades in pair):
            self._agree.append(_grade(pair[0]) > _grade(pair[1]))

    def _compare(self, both: Sequence[DecisionRow], document: str) -> None:
        first, second = ([_grade(row.grades) for row in both], [_grade(row.second_grades) for row in both])
        # Where several are equally good, the first one counts in a pair.
        self._same_best.append(second[first.index(max(first))] == max(second))
        self._same_worst.append(second[first.index(min(first))] == min(second))
        if len(set(first)) > 1 and len(set(second)) > 1:
            self._correlations.append(rank_correlation(first, second))
            self._documents.append(document)

    def result(self) -> GradeStats | None:
        """Return what was counted; None if nothing was graded."""
        if not self._graded + self._malformed + self._exceeds_window:
            return None
        return GradeStats(
            graded=self._graded,
            malformed=self._malformed,
            exceeds_window=self._exceeds_window,
            preferred=_mean(self._kept["preferred"]),
            dispreferred=_mean(self._kept["rejected"]),
            longer_preferred=_mean(self._longer),
            longer_preferred_interval=_share_interval(self._longer),
            graded_again=self._graded_again,
            ungraded_again=self._ungraded_again,
            compared=len(self._correlations),
            rank_correlation=_mean(self._correlations),
            rank_correlation_interval=mean_interval(self._correlations, self._documents)
            if self._correlations
            else None,
            same_best=_mean(self._same_best),
            same_worst=_mean(self._same_worst),
            pairs_again=len(self._agree),
            pairs_agree=_mean(self._agree),
            pairs_agree_interval=_share_interval(self._agree),
        )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two lists that are not constant. Equal values share their mean rank."""
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _first(row: DecisionRow) -> float | None:
    return row.grades.grade if row.grades else None


def _second(row: DecisionRow) -> float | None:
    return row.second_grades.grade if row.second_grades else None


def _grade(grades: Grades | None) -> float:
    assert grades is not None
    assert grades.grade is not None
    return grades.grade


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _share_interval(values: Sequence[bool]) -> tuple[float, float] | None:
    return wilson_interval(sum(values), len(values)) if values else None


def describe_grades(stats: GradeStats) -> str:
    """Return what a dataset card says of a judge that grades."""
    text = f"it graded {stats.graded} answers"
    text += f", {stats.malformed} had a malformed reply" if stats.malformed else ""
    text += f", {stats.exceeds_window} did not fit its window" if stats.exceeds_window else ""
    if stats.preferred is not None and stats.dispreferred is not None and stats.longer_preferred is not None:
        text += (
            f"; preferred answers have {stats.preferred:.2f} of 10 on average and dis-preferred ones "
            f"{stats.dispreferred:.2f}, and {stats.longer_preferred:.0%} of the preferred ones are longer"
        )
    if stats.rank_correlation is not None:
        text += f"; over {stats.compared} of {stats.graded_again} questions graded in two wordings the ranks of answers"
        text += f" correlate by {stats.rank_correlation:.2f}{_between(stats.rank_correlation_interval, '.2f')}"
    if stats.pairs_agree is not None:
        text += (
            f", and {stats.pairs_agree:.0%}{_between(stats.pairs_agree_interval, '.0%')} of {stats.pairs_again} pairs"
        )
        text += " have the same order in both"
    return text


def _between(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
