"""Answers to questions that finished runs keep on disk, with question and references.

They are those whose question and reference are short texts that words can decide on: held-out questions (``qa``) and
pairs, and the six English tasks of LongBench's single- and multi-document question answering. Left aside are the
Chinese ones (words are single characters there, and every answer shares some with its question), triviaqa (its question
comes with a passage, so sharing words with it says nothing), summaries, classes, numbers and code (no question, or
nothing it speaks of).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.words import without_reasoning
from logoeval.compare.compare import Run
from logoeval.records import PREDICTIONS_DIR, SampleRow, TaskName, read_results
from logoeval.tasks.longbench.rules import E_SUFFIX, TASKS
from logoeval.tasks.longbench.task import FOLDER as LONGBENCH_FOLDER

ANSWERING_TASKS: tuple[TaskName, ...] = ("longbench", "qa", "pairs")

LONGBENCH_TASKS = tuple(
    name for name, task in TASKS.items() if task.language == "en" and task.category in ("single-doc QA", "multi-doc QA")
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one run. ``part`` is LongBench's task, with ``_e`` if it is LongBench-E's, ``qa`` or ``pairs``."""

    task: TaskName
    part: str
    id: str
    cluster: str
    question: str
    references: tuple[str, ...]
    response: str


def check_finished(folder: Path) -> None:
    """Refuse a folder whose answers are a part of a task: what is answered first is no fair part of it.

    Raises:
        UserError: there are answers of a task that ``results.json`` does not hold.
    """
    finished = read_results(folder, missing_ok=True).tasks
    predictions = folder / PREDICTIONS_DIR
    files = {
        "longbench": predictions.glob(f"{LONGBENCH_FOLDER}/*.jsonl"),
        "qa": predictions.glob("qa*.jsonl"),
        "pairs": predictions.glob("pairs*.jsonl"),
    }
    for task in ANSWERING_TASKS:
        if task not in finished and any(files[task]):
            raise UserError(
                f"{task} is not finished",
                where=str(folder),
                mend=f"run the same logoeval command with -o {folder} again to finish it",
            )


def missing_file(run: Run) -> Path | None:
    """A prediction file that should hold answers and is gone; None if all are there."""
    files = {_place(run, task, row)[0] for task in ANSWERING_TASKS for row in _counted(run, task)}
    return next((path for path in sorted(files) if not path.is_file()), None)


def read_answers(run: Run, task: TaskName) -> Iterator[Answer]:
    """The answers of a task, in the order of its samples.

    Raises:
        UserError: a file lacks an answer that ``results.json`` counts, or does not tell the question.
    """
    logs: dict[Path, AppendLog] = {}
    for row in _counted(run, task):
        path, record_id, part = _place(run, task, row)
        if path not in logs:
            logs[path] = AppendLog(path)
        if record_id not in logs[path]:
            raise UserError(
                f"lacks the answer to {record_id!r}, which results.json counts",
                where=str(path),
                mend="evaluate again into another folder",
            )
        record = logs[path][record_id]
        question, references, response = (record.get(key) for key in ("question", "answers", "response"))
        if not isinstance(question, str) or not isinstance(references, list) or not isinstance(response, str):
            raise UserError(
                f"the answer to {record_id!r} does not tell its question",
                where=str(path),
                mend="it was made by an earlier version: evaluate again into another folder",
            )
        yield Answer(task, part, row.id, row.cluster, question, tuple(references), without_reasoning(response))


def _counted(run: Run, task: TaskName) -> Iterator[SampleRow]:
    result = run.results.tasks.get(task)
    for row in result.samples if result else ():
        if task != "longbench" or row.facts["task"] in LONGBENCH_TASKS:
            yield row


def _place(run: Run, task: TaskName, row: SampleRow) -> tuple[Path, str, str]:
    """The file that holds a sample's answer, the id of its record there, and the part it belongs to."""
    predictions = run.folder / PREDICTIONS_DIR
    if task != "longbench":
        return predictions / f"{task}.jsonl", row.id, task
    name = str(row.facts["task"])
    part = name + (E_SUFFIX if run.results.tasks[task].settings["e"] else "")
    return predictions / LONGBENCH_FOLDER / f"{part}.jsonl", row.id.removeprefix(f"{name}/"), part
