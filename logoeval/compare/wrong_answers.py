"""How answers go wrong (LOGO, Appendix C and Figure 9), counted over the answers of finished runs.

An answer is wrong when it holds too few of a reference's content words: the rule, and the threshold, by which the
training data's judge calls a response wrong. LongBench's own F1 would not do, it takes a right answer in a whole
sentence for a wrong one. What the judge calls half right (it lacks a number of the reference) is not counted as wrong,
as in the judge's own counts. A wrong answer is then a *hallucination* or *instruction unfollowing*, by the formula of
:func:`logodata.judge.rules.error_pattern`. Answers to references so long that the judge would not decide by words
either are not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from logodata.common.errors import UserError
from logodata.common.records import ABSENT, Record
from logodata.common.words import without_reasoning, words
from logodata.judge.measures import word_share
from logodata.judge.rules import error_pattern, is_long
from logodata.judge.settings import RIGHT_AT, JudgeSettings
from logoeval.compare.answers import (
    ANSWERING_TASKS,
    LONGBENCH_TASKS,
    Answer,
    check_finished,
    missing_file,
    read_answers,
)
from logoeval.compare.compare import Difference, Row, Run, RunRecord, Value, measured_rows, read_runs
from logoeval.compare.labels import label_folders
from logoeval.records import Metric, SampleRow, VersionedRecord

Outcome = Literal["right", "hallucination", "instruction_unfollowing", "empty"]

OUTCOMES: dict[Outcome, str] = {
    "right": "right",
    "hallucination": "hallucination",
    "instruction_unfollowing": "instruction unfollowing",
    "empty": "empty",
}
"""What becomes of an answer, with its name for people. ``empty`` is a kind of its own: an answer without a word shares
nothing with its question, so the formula would call it instruction unfollowing, but a model that ends at once has
another fault than one that speaks of something else."""

PATTERNS: tuple[Outcome, ...] = ("hallucination", "instruction_unfollowing")
"""Wrong answers that say something: of these there are lengths and examples."""

CAUTION = (
    "a bare wrong answer (“Paris”) shares no word with its question and counts as instruction unfollowing: beside a "
    "change of these shares read the lengths"
)

_LONGEST_REFERENCE = JudgeSettings().long_answer_words
_SEED = "How answers go wrong"  # of the order in which examples are taken


class Counts(Record):
    """The answers of one outcome. All but ``differences`` have an entry for each run, ``differences`` one for each run
    but the first; ``values`` and ``differences`` are shares. For :data:`PATTERNS` there is the median length of such
    answers in words, None where a run has none."""

    counts: list[int]
    values: list[Value]
    differences: list[Difference]
    median_words: list[int | float | None] | None = ABSENT


class Group(Record):
    """Answers that are counted together: all of a task (``part`` is None), or one part of it."""

    task: str
    part: str | None
    title: str
    num_answers: int
    num_clusters: int
    outcomes: dict[Outcome, Counts]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was counted in ``runs``, those whose answers are there. ``answers`` holds for each run the answers by
    outcome; ``notes`` say what a reader must know."""

    runs: list[Run]
    groups: list[Group]
    answers: list[dict[Outcome, list[Answer]]]
    wrong_below: float
    notes: list[str]


def classify(response: str, question: str, references: Sequence[str], wrong_below: float = RIGHT_AT) -> Outcome:
    """Return what becomes of one answer. It is ``right`` if it has at least the share ``wrong_below`` of a reference's
    content words."""
    response = without_reasoning(response)
    if word_share(response, references) >= wrong_below:
        return "right"
    if not words(response):
        return "empty"
    return error_pattern(response, question)


def describe_rule(wrong_below: float) -> str:
    """Return what is counted as what, in one sentence."""
    return (
        f"wrong: an answer with under {100 * wrong_below:g} % of a reference's content words; of the wrong ones, "
        "hallucination shares a content word with the question, instruction unfollowing shares none, empty has no "
        "word at all"
    )


def read_and_analyse(folders: Sequence[Path] | Mapping[str, Path], wrong_below: float) -> Analysis:
    """Read the results of folders and analyse them (:func:`analyse`).

    Raises:
        UserError: the threshold decides nothing, a folder has no results, a task is not finished, the runs may not be
            compared, or there are no answers to questions at all; see also :func:`analyse`.
    """
    if not 0 < wrong_below <= 1:
        raise UserError(f"--wrong-below {wrong_below:g} is no share of words", mend="give one above 0, up to 1")
    labelled = label_folders(folders)
    for folder in labelled.values():
        check_finished(folder)
    analysis = analyse(read_runs(labelled, list(ANSWERING_TASKS)), wrong_below)
    if not analysis.groups:
        raise UserError(
            "; ".join(analysis.notes) or "holds no answers to questions",
            where=", ".join(map(str, labelled.values())),
            mend=f"measure qa, pairs, or LongBench's {', '.join(LONGBENCH_TASKS)}",
        )
    return analysis


def analyse(runs: Sequence[Run], wrong_below: float = RIGHT_AT) -> Analysis:
    """Count the outcomes of all answers to questions, each with its interval, and the paired differences from the first
    run. A run whose prediction files are gone is left out, and a note says so.

    Raises:
        UserError: see :func:`logoeval.compare.answers.read_answers`.
    """
    missing = [(run, missing_file(run)) for run in runs]
    kept = [run for run, path in missing if path is None]
    notes = [
        f"{run.label} is left out: its answers are not there any more ({path})"
        for run, path in missing
        if path is not None
    ]
    groups: list[Group] = []
    answers: list[dict[Outcome, list[Answer]]] = [{outcome: [] for outcome in OUTCOMES} for _ in kept]
    for task, name in ANSWERING_TASKS.items() if kept else ():
        columns = [list(read_answers(run, task)) for run in kept]
        judged = [
            [
                (answer, classify(answer.response, answer.question, answer.references, wrong_below))
                for answer in column
                if not is_long(answer.references, _LONGEST_REFERENCE)
            ]
            for column in columns
        ]
        left_out = len(columns[0]) - len(judged[0])
        if left_out:
            notes.append(
                f"{name}: {left_out} of {len(columns[0])} answers are not counted, their references have more than "
                f"{_LONGEST_REFERENCE} content words; a right answer need not hold the same ones"
            )
        if judged[0]:
            groups += _groups(task, judged)
        for found, column in zip(answers, judged, strict=True):
            for answer, outcome in column:
                found[outcome].append(answer)
    return Analysis(kept, groups, answers, wrong_below, notes)


def _groups(task: str, judged: Sequence[Sequence[tuple[Answer, Outcome]]]) -> Iterator[Group]:
    """All answers of a task, then each of its parts if there are several."""
    parts = {answer.part for answer, _ in judged[0]}
    title = f"LongBench {next(iter(parts))}" if task == "longbench" and len(parts) == 1 else ANSWERING_TASKS[task]
    samples = [[_sample(*pair) for pair in column] for column in judged]
    metrics = [Metric.share(outcome, name, "", slice_by=["part"]) for outcome, name in OUTCOMES.items()]
    by_part: dict[str | None, list[Row]] = {}
    for row in measured_rows(task, metrics, samples):
        by_part.setdefault(str(row.slice["part"]) if row.slice else None, []).append(row)
    for part, rows in by_part.items():
        members = [[pair for pair in column if part in (None, pair[0].part)] for column in judged]
        yield Group(
            task=task,
            part=part,
            title=part or title,
            num_answers=rows[0].num_samples,
            num_clusters=rows[0].num_clusters,
            outcomes={
                outcome: Counts(
                    counts=[round(value.value * row.num_samples) for value in row.values],
                    values=row.values,
                    differences=row.differences,
                    median_words=[_median_words(column, outcome) for column in members]
                    if outcome in PATTERNS
                    else None,
                )
                for outcome, row in zip(OUTCOMES, rows, strict=True)
            },
        )


def _sample(answer: Answer, outcome: Outcome) -> SampleRow:
    return SampleRow(
        id=answer.id,
        cluster=answer.cluster,
        prompt_hash="",
        scores={name: float(name == outcome) for name in OUTCOMES},
        facts={"part": answer.part},
    )


def _median_words(judged: Sequence[tuple[Answer, Outcome]], wanted: Outcome) -> int | float | None:
    lengths = [len(words(answer.response)) for answer, outcome in judged if outcome == wanted]
    return median(lengths) if lengths else None


def draw_examples(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Return ``count`` of the answers, not chosen by hand: the first in an order that depends on ids alone, so that two
    runs that fail at the same question both show it."""

    def drawn(answer: Answer) -> bytes:
        return hashlib.sha256(f"{_SEED} {answer.task} {answer.id}".encode()).digest()

    return sorted(answers, key=drawn)[:count]


class _Of(Record):
    run: str
    outcome: Outcome


class Example(Answer, _Of):
    """An answer of a run that was counted as ``outcome``."""


class AnalysisRecord(VersionedRecord):
    """What ``logoeval errors -o FILE`` writes."""

    wrong_below: float
    rule: str
    notes: list[str]
    runs: list[RunRecord]
    groups: list[Group]
    examples: list[Example]


def record(analysis: Analysis, num_examples: int) -> AnalysisRecord:
    """Return the counts and ``num_examples`` of each kind and run, for JSON."""
    return AnalysisRecord(
        wrong_below=analysis.wrong_below,
        rule=describe_rule(analysis.wrong_below),
        notes=[*analysis.notes, CAUTION],
        runs=[
            RunRecord(
                label=run.label,
                folder=str(run.folder),
                tasks={task: result.provenance for task, result in run.results.tasks.items()},
            )
            for run in analysis.runs
        ],
        groups=analysis.groups,
        examples=[
            Example(run=run.label, outcome=pattern, **dict(answer))
            for run, answers in zip(analysis.runs, analysis.answers, strict=True)
            for pattern in PATTERNS
            for answer in draw_examples(answers[pattern], num_examples)
        ],
    )
