"""Say in words what was decided on a response: the verdict, its measure, the rule, and the verdict of a model judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from logodata.common.errors import UserError
from logodata.contract import DecisionRow, Grades, Measures, PreferenceSample, RejectedQuestion
from logodata.dataset.files import iterate_rows
from logodata.dataset.samples import sample_files
from logodata.judge.rules import error_pattern
from logodata.judge.settings import JudgeSettings


def read_rejected(folder: Path) -> list[RejectedQuestion]:
    """Return the questions of a build that gave no sample. A folder without a build is a :class:`UserError`."""
    if not (folder / "rejected.jsonl").is_file():
        sample_files(folder)  # says what the folder is instead
    return list(iterate_rows(folder, RejectedQuestion))


def read_decisions(folder: Path, question_ids: Collection[str]) -> dict[str, list[DecisionRow]]:
    """Return the decisions on these questions, by the id of the question."""
    found: dict[str, list[DecisionRow]] = defaultdict(list)
    for row in iterate_rows(folder, DecisionRow):
        if row.id in question_ids:
            found[row.id].append(row)
    return found


def kept_responses(sample: PreferenceSample, decisions: Sequence[DecisionRow]) -> list[tuple[DecisionRow, int]]:
    """Return the decision on each response of a sample with its number of tokens, the preferred one first.

    Raises:
        UserError: The decisions keep another number of responses.
    """
    responses, kept = (sample.chosen, *sample.rejected), [row for row in decisions if row.kept]
    if len(kept) != len(responses):
        raise UserError(
            f"decisions.jsonl keeps {len(kept)} responses, the data {len(responses)}",
            where=f"question {sample.id!r}",
            mend="build the data set again",
        )
    return [(row, len(response.token_ids)) for row, response in zip(kept, responses, strict=True)]


def ruling(row: DecisionRow, question: str, judge: JudgeSettings) -> str:
    """Return the decision on a response, such as ``wrong: 20 % of the reference's words (right from 60 %);
    hallucination; no rule against it``, with the verdict of a model judge."""
    parts = ["no reference" if row.verdict is None else f"{in_words(row.verdict)}: {_grounds(row, judge)}"]
    if row.verdict == "wrong":
        parts.append(in_words(error_pattern(row.text, question)))
    parts.append(f"rule: {in_words(row.rule)}" if row.rule else "no rule against it")
    if not judge.enabled:
        parts.append("the judge was off")
    if row.model_verdict is not None:
        second = row.second_model_verdict
        again = "" if second is None else f", in another wording {in_words(second)}"
        parts.append(f"model judge: {in_words(row.model_verdict)}{again}")
    if row.grades is not None:
        parts.append(_graded(row.grades))
    return "; ".join(parts)


def _graded(grades: Grades) -> str:
    """Return the grades of a response, with the support of each fact."""

    def shown(score: float | str) -> str:
        return in_words(score) if isinstance(score, str) else f"{score:.3g}"

    each = ", ".join(f"{name} {shown(score)}" for name, score in grades.scores.items())
    whole = "no grade" if grades.grade is None else f"grade {grades.grade:.2f} of 10"
    facts = "; ".join(f"{fact.text!r} {shown(fact.support)}" for fact in grades.facts)
    return f"{whole} ({each})" + (f"; supported facts (0 to 1): {facts}" if facts else "")


def role_in_words(row: DecisionRow) -> str:
    """Return what a response was generated for."""
    return {"preferred": "preferred", "rejected": "dis-preferred", "try": "try"}[row.role]


def make_up(row: DecisionRow, num_tokens: int | None = None) -> str:
    """Return the length of a response, how it ended, and whether it came from the cache."""
    parts = [] if num_tokens is None else [f"{num_tokens} tokens"]
    parts.append("ended by itself" if row.ended else "cut at the length cap")
    parts += ["from the cache"] if row.origin == "cache" else []
    return ", ".join(parts)


def _grounds(measures: Measures, judge: JudgeSettings) -> str:
    """Return the measure that decided (:class:`logodata.judge.rules.Measurer`), its value, and its limit."""
    if measures.similarity is not None:
        limits = f"right from {judge.similar_at:g}, wrong below {judge.dissimilar_below:g}"
        return f"similarity to the reference {measures.similarity:.2f} ({limits})"
    limit = f"(right from {percent(judge.right_at)})"
    if judge.measure == "containment":
        text = "holds the reference word for word" if measures.contains_reference else "does not hold the reference"
    elif judge.measure == "token_f1":
        text = f"token F1 {percent(measures.token_f1)} {limit}"
    else:
        text = f"{percent(measures.word_share)} of the reference's words {limit}"
    if measures.verdict == "half_right" and measures.number_share is not None:
        text += f", but {percent(measures.number_share)} of its numbers"
    return text


def percent(share: float | None) -> str:
    """Return a share in percent, or a dash if it is None."""
    return "-" if share is None else f"{100 * share:.0f} %"


def in_words(name: str) -> str:
    """Return a reason or a verdict for people to read."""
    return name.replace("_", " ")
