"""Read the answers of finished runs from disk, with their questions and references.

Only answers are read whose questions and references are short texts that can be compared by words: held-out questions
(``qa``), pairs, and the six English tasks of LongBench's single- and multi-document question answering. Other tasks of
LongBench are not read. In Chinese tasks the words are single characters, and every answer shares some with its
question. The question of triviaqa holds a passage, so shared words say nothing. Summaries, classes, numbers and code
have no such question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from logodata.common.errors import UserError
from logodata.common.records import Record
from logodata.common.words import without_reasoning
from logoeval.compare.compare import Run
from logoeval.records import PREDICTIONS_DIR, Excerpt, SampleRow, has_predictions, read_results
from logoeval.tasks.longbench.task import FOLDER as LONGBENCH_FOLDER
from logoeval.tasks.longbench.task import is_e
from logoeval.tasks.longbench.task_table import E_SUFFIX
from logoeval.tasks.longbench.task_table import TASKS as LONGBENCH
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.table import TASKS

ANSWERING_TASKS = {task.name: task.answers for task in TASKS if task.answers}
"""The tasks whose answers are read, with the names of their answers."""

LONGBENCH_TASKS = tuple(
    name
    for name, task in LONGBENCH.items()
    if task.language == "en" and task.category in ("single-doc QA", "multi-doc QA")
)


class Answer(Record):
    """One answer of one run. ``part`` is ``qa``, ``pairs``, or LongBench's task, with ``_e`` for LongBench-E."""

    task: str
    part: str
    id: str
    cluster: str = Field(exclude=True)
    question: str
    references: tuple[str, ...]
    response: str


class _Prediction(Excerpt):
    """What the prediction records of all answering tasks have in common."""

    question: str
    answers: tuple[str, ...]
    response: str


def check_finished(folder: Path) -> None:
    """Raise a ``UserError`` if a folder holds answers to a task that is not finished, because the first answers of a
    task are not a fair sample of it."""
    finished = read_results(folder, missing_ok=True).tasks
    for task in ANSWERING_TASKS:
        if task not in finished and has_predictions(folder / PREDICTIONS_DIR, task):
            mend = f"run the same logoeval command with -o {folder} again to finish it"
            raise UserError(f"{task} is not finished", where=str(folder), mend=mend)


def missing_file(run: Run) -> Path | None:
    """Return a prediction file that should hold answers but is missing, or None if all files exist."""
    files = {_place(run, task, row)[0] for task in ANSWERING_TASKS for row in _counted(run, task)}
    return next((path for path in sorted(files) if not path.is_file()), None)


def read_answers(run: Run, task: str) -> Iterator[Answer]:
    """Yield the answers of a task, in the order of its samples.

    Raises:
        UserError: a file lacks an answer that ``results.json`` counts, or an answer is damaged.
    """
    files: dict[Path, RecordFile[_Prediction]] = {}
    for row in _counted(run, task):
        path, record_id, part = _place(run, task, row)
        if path not in files:
            files[path] = RecordFile(path, _Prediction)
        if record_id not in files[path]:
            raise UserError(
                f"lacks the answer to {record_id!r}, which results.json counts",
                where=str(path),
                mend="evaluate again into another folder",
            )
        found = files[path][record_id]
        if not found.answers:
            continue  # imported pairs have no references
        yield Answer(
            task=task,
            part=part,
            id=row.id,
            cluster=row.cluster,
            question=found.question,
            references=found.answers,
            response=without_reasoning(found.response),
        )


def _counted(run: Run, task: str) -> Iterator[SampleRow]:
    result = run.results.tasks.get(task)
    for row in result.samples if result else ():
        if task != "longbench" or row.facts["task"] in LONGBENCH_TASKS:
            yield row


def _place(run: Run, task: str, row: SampleRow) -> tuple[Path, str, str]:
    """Return the file that holds the answer of a sample, the id of its record there, and its part (:class:`Answer`)."""
    predictions = run.folder / PREDICTIONS_DIR
    if task != "longbench":
        return predictions / f"{task}.jsonl", row.id, task
    name = str(row.facts["task"])
    part = name + (E_SUFFIX if is_e(run.results.tasks[task]) else "")
    return predictions / LONGBENCH_FOLDER / f"{part}.jsonl", row.id.removeprefix(f"{name}/"), part
