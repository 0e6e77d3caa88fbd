"""Read the answers of finished runs from disk, with their questions and references.

Only answers are read whose questions and references are short texts that can be compared by words: held-out questions
(``qa``), pairs, and the six English tasks of LongBench's single- and multi-document question answering. Other tasks of
LongBench are not read. In Chinese tasks the words are single characters, and every answer shares some with its
question. The question of triviaqa holds a passage, so shared words say nothing. Summaries, classes, numbers and code
have no such question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.words import without_reasoning
from logoeval.compare.compare import Run
from logoeval.records import PREDICTIONS_DIR, SampleRow, read_results
from logoeval.tasks.longbench.task import FOLDER as LONGBENCH_FOLDER
from logoeval.tasks.longbench.task_table import E_SUFFIX, TASKS

ANSWERING_TASKS: tuple[str, ...] = ("longbench", "qa", "pairs")

LONGBENCH_TASKS = tuple(
    name for name, task in TASKS.items() if task.language == "en" and task.category in ("single-doc QA", "multi-doc QA")
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one run. ``part`` is ``qa``, ``pairs``, or LongBench's task, with ``_e`` for LongBench-E."""

    task: str
    part: str
    id: str
    cluster: str
    question: str
    references: tuple[str, ...]
    response: str


def check_finished(folder: Path) -> None:
    """Refuse a folder with an unfinished task, because the first answers of a task are not a fair sample of it.

    Raises:
        UserError: there are answers to a task that is not in ``results.json``.
    """
    finished = read_results(folder, missing_ok=True).tasks
    predictions = folder / PREDICTIONS_DIR
    files = {
        "longbench": predictions.glob(f"{LONGBENCH_FOLDER}/*.jsonl"),
        "qa": predictions.glob("qa*.jsonl"),
        "pairs": predictions.glob("pairs*.jsonl"),
    }
    for task, found in files.items():
        if task not in finished and any(found):
            mend = f"run the same logoeval command with -o {folder} again to finish it"
            raise UserError(f"{task} is not finished", where=str(folder), mend=mend)


def missing_file(run: Run) -> Path | None:
    """Return a prediction file that should hold answers but is missing, or None if all files exist."""
    files = {_place(run, task, row)[0] for task in ANSWERING_TASKS for row in _counted(run, task)}
    return next((path for path in sorted(files) if not path.is_file()), None)


def read_answers(run: Run, task: str) -> Iterator[Answer]:
    """Yield the answers of a task, in the order of its samples.

    Raises:
        UserError: a file lacks an answer that ``results.json`` counts, or lacks the question of an answer.
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
                f"the answer to {record_id!r} lacks its question",
                where=str(path),
                mend="it was made by an earlier version: evaluate again into another folder",
            )
        yield Answer(task, part, row.id, row.cluster, question, tuple(references), without_reasoning(response))


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
    part = name + (E_SUFFIX if run.results.tasks[task].settings["e"] else "")
    return predictions / LONGBENCH_FOLDER / f"{part}.jsonl", row.id.removeprefix(f"{name}/"), part
