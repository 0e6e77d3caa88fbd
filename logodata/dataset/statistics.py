"""Yield, purity and make-up of a data set, gathered question by question: memory does not grow with their number."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePath
from typing import Any, Literal, get_args

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample, Response, RuleVerdict
from logodata.judge.agreement import verdict_statistics
from logodata.judge.decisions import contradicts
from logodata.judge.rules import error_pattern
from logodata.judge.settings import ErrorPattern, ModelVerdict
from logodata.sources.text_files import SUFFIXES

_ROLES = {"preferred": "preferred", "rejected": "dispreferred"}


def source_group(file: str) -> str:
    """What a file counts under: itself, or for a text file, which is one document, its folder."""
    return f"{PurePath(file).parent}/" if PurePath(file).suffix.lower() in SUFFIXES else file


def error_kind(response: Response, question: str) -> ErrorPattern | Literal["right"]:
    """``right`` (or half right), or how the response goes wrong."""
    return "right" if response.verdict in ("right", "half_right") else error_pattern(response.text, question)


@dataclass(slots=True)
class _Group:
    """Questions that have something in common, such as their source file."""

    num_kept: int = 0
    num_pure: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        if "sample" in outcome:
            self.num_kept += 1
            self.num_pure += not any(contradicts(row) for row in outcome["decisions"] if row["kept"])
        else:
            self.reasons[outcome["rejected"]["reason"]] += 1
        self.verdicts.update((_ROLES[row["role"]], row["verdict"]) for row in outcome["decisions"])

    def result(self) -> dict[str, Any]:
        total = self.num_kept + self.reasons.total()
        return {
            "questions": total,
            "kept": self.num_kept,
            "yield": self.num_kept / total if total else None,
            "rejected_by_reason": dict(self.reasons.most_common()),
            "purity": self.num_pure / self.num_kept if self.num_kept else None,
            **{
                f"{role}_judged": {verdict: self.verdicts[role, verdict] for verdict in get_args(RuleVerdict)}
                for role in _ROLES.values()
            },
        }


class Statistics:
    """What a build says of itself in ``stats.json``; the same for the same data, however it was built.

    A pair is *pure* if no verdict says the opposite of what its responses are kept as: the rules, and where it was
    asked a model judge, in both wordings. ``*_judged`` count the rules' verdicts on every response that was judged.
    """

    def __init__(self) -> None:
        self._all = _Group()
        self._by: dict[str, defaultdict[str, _Group]] = {name: defaultdict(_Group) for name in ("source", "kind")}
        self._origins: Counter[str] = Counter()
        self._verdicts: Counter[tuple[ModelVerdict, ModelVerdict | None]] = Counter()
        self._patterns = Counter[str](instruction_unfollowing=0, hallucination=0)
        self._lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self._sums: Counter[str] = Counter()
        self._num_dispreferred = self._num_single_critical = 0
        self._dispreferred_per_sample: int | None = None

    def add(self, outcome: Outcome, sample: PreferenceSample | None) -> None:
        """Count what became of a question; ``sample`` is the outcome's, if it has one.

        Raises:
            UserError: an earlier version wrote the outcome, without its source or kind.
        """
        for group in (self._all, *self._groups(outcome, sample)):
            group.add(outcome)
        for row in outcome["decisions"]:
            if row["model_verdict"] is not None:
                self._verdicts[row["model_verdict"], row["second_model_verdict"]] += 1
        if sample is not None:
            self._add_sample(sample)

    def _groups(self, outcome: Outcome, sample: PreferenceSample | None) -> tuple[_Group, _Group]:
        row = outcome["decisions"][0] if sample is not None else outcome["rejected"]
        try:
            source, kind = source_group(row["source"]), row["kind"] if sample is None else sample.kind
        except KeyError as error:
            raise UserError(
                f"an earlier version of this program wrote this outcome, without its {error.args[0]!r}",
                where=f"question {row['id']}",
                mend="delete work/outcomes.jsonl and run the same command again: responses are kept",
            ) from error
        return self._by["source"][source], self._by["kind"][kind]

    def _add_sample(self, sample: PreferenceSample) -> None:
        self._dispreferred_per_sample = self._dispreferred_per_sample or len(sample.rejected)
        self._origins[sample.origin] += 1
        self._lengths["prompt"][len(sample.prompt_ids)] += 1
        self._sums["answer_in_critical"] += sample.answer_in_critical
        self._num_single_critical += sum(chunk.critical for chunk in sample.chunks) == 1
        self._add_response("preferred", sample.chosen)
        for response in sample.rejected:
            self._num_dispreferred += 1
            self._add_response("dispreferred", response)
            # ``right`` are those that a judge which was switched off let through.
            self._patterns[error_kind(response, sample.question)] += 1

    def _add_response(self, which: str, response: Response) -> None:
        self._lengths[which][len(response.token_ids)] += 1
        for measure in ("ended", "word_share", "token_f1"):
            self._sums[f"{which}_{measure}"] += getattr(response, measure)

    def result(self) -> dict[str, Any]:
        """As in ``stats.json``."""
        kinds = Counter({kind: group.num_kept for kind, group in self._by["kind"].items() if group.num_kept})
        num_kept = self._all.num_kept
        return {
            **self._all.result(),
            "kept_by_kind": dict(kinds.most_common()),
            "kept_by_origin": dict(self._origins.most_common()),
            "dispreferred_per_sample": self._dispreferred_per_sample,
            "prompt_tokens": self._spread("prompt"),
            "preferred_tokens": self._spread("preferred"),
            "dispreferred_tokens": self._spread("dispreferred"),
            **{
                f"{which}_{measure}": self._mean(f"{which}_{measure}", count)
                for measure in ("ended", "word_share", "token_f1")
                for which, count in (("preferred", num_kept), ("dispreferred", self._num_dispreferred))
            },
            "dispreferred_error_patterns": dict(self._patterns),
            "answer_in_critical": self._mean("answer_in_critical", num_kept),
            "single_critical_chunk": self._num_single_critical,
            **({"model_judge": verdict_statistics(self._verdicts)} if self._verdicts else {}),
            **{
                f"by_{name}": {key: groups[key].result() for key in sorted(groups)} for name, groups in self._by.items()
            },
        }

    def _mean(self, name: str, count: int) -> float | None:
        return self._sums[name] / count if count else None

    def _spread(self, which: str) -> dict[str, int] | None:
        counts = self._lengths[which]
        if not counts:
            return None
        numbers = sorted(counts)
        upto = list(accumulate(counts[number] for number in numbers))
        return {"min": numbers[0], "median": numbers[bisect_right(upto, upto[-1] // 2)], "max": numbers[-1]}


Outcome = dict[str, Any]
"""What became of a question, as JSON: its ``id``; either ``sample`` (a :class:`PreferenceSample`) or ``rejected`` (a
row of ``rejected.jsonl``); and ``decisions`` (rows of ``decisions.jsonl``, one for each response that was judged)."""
