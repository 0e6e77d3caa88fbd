"""LongBench with a model: prompts, greedy answers, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.records import ABSENT
from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logoeval.records import Outcome, SampleRow, TaskResult
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import Completion, PromptItem, complete, with_reasoning
from logoeval.tasks.longbench.data import Row, fingerprint, read_rows
from logoeval.tasks.longbench.prompts import RESERVED_TOKENS, PromptBuilder
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.longbench.summary import Scored, best_score, metrics, notes, sample_rows
from logoeval.tasks.longbench.task_table import E_SUFFIX, TASKS, Task, official_rows
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.texts import text_fingerprint

FOLDER = "longbench"
"""The folder of the predictions, which has a file for each task."""


class LongBenchAnswer(Completion):
    """The response to a row, with its score. The official script can score it too, since it has ``pred``, ``answers``,
    ``all_classes`` and ``length``."""

    task: str
    score: float
    overflow: bool
    question: str
    pred: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int | None
    document: str | None = ABSENT
    """A hash of the row's document, which other rows may share."""


def describe(settings: LongBenchSettings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; rows by their contents, wherever they lie."""
    rows = read_rows(settings.data, settings.tasks, settings.e)
    return {
        "tasks": list(rows),
        "e": settings.e,
        "max_prompt_tokens": settings.max_prompt_tokens,
        "max_model_len": engine.max_model_len,
        "code_sim": settings.code_sim,
        "rows_fingerprint": fingerprint(rows),
    }


def prompt_limit(settings: LongBenchSettings, session: Session) -> int:
    """Return the most tokens of a prompt before its chat template: what is asked for, as far as the window has room."""
    room = session.engine_window - session.reasoning.budget - RESERVED_TOKENS
    return min(settings.max_prompt_tokens or room, room)


def run(settings: LongBenchSettings, session: Session, predictions: Path) -> Outcome:
    """Answer and score all rows; a sample is a row."""
    window = session.engine_window - session.reasoning.budget
    if session.reasoning.budget and window <= RESERVED_TOKENS:
        raise UserError(
            f"longbench: thinking_tokens={session.reasoning.budget} leave {window} tokens of the window",
            mend="lower thinking_tokens, or take a model with a longer window",
        )
    limit = settings.max_prompt_tokens or window - RESERVED_TOKENS
    builder = PromptBuilder(session.tokenizer, limit)
    rows = read_rows(settings.data, settings.tasks, settings.e)
    tasks = [TASKS[name] for name in rows]
    for task in tasks:
        builder.check(task)
    folder = predictions / FOLDER
    folder.mkdir(exist_ok=True)
    samples: list[Scored] = []
    answers: list[LongBenchAnswer] = []
    shortened = 0
    for task in tasks:
        sampling = _sampling(task, session)
        items = [_item(task, row, builder, window, sampling) for row in rows[task.name]]
        shortened += sum(item.sampling != sampling for item in items)
        made = _answer(task, rows[task.name], items, settings, session, folder)
        samples += map(_scored, repeat(task), rows[task.name], made)
        answers += made
    found = list(notes(samples, e=settings.e, code_sim=settings.code_sim))
    if shortened:
        found.append(f"{shortened} answers were allowed fewer tokens than officially: the window ends there")
    reported = metrics(tasks, e=settings.e, truncation=True)
    scored = sample_rows(samples, reported, e=settings.e)
    outcome = Outcome(reported, scored, found, {"data": str(settings.data.resolve())})
    return with_reasoning(outcome, session, answers)


def _item(task: Task, row: Row, builder: PromptBuilder, window: int, sampling: Sampling) -> PromptItem:
    prompt_ids, truncated = builder.build(task, row)
    room = window - len(prompt_ids)
    if room < 1:
        raise UserError(
            f"longbench: the prompt takes {len(prompt_ids)} tokens with its chat template, the window has {window}",
            where=row.where,
            mend="lower longbench.max_prompt_tokens",
        )
    sampling = replace(sampling, max_new_tokens=min(task.max_new_tokens, room))
    return PromptItem(row.id, prompt_ids, sampling, builder.template(task), truncated, reasons=task.chat)


def _answer(
    task: Task,
    rows: tuple[Row, ...],
    items: list[PromptItem],
    settings: LongBenchSettings,
    session: Session,
    folder: Path,
) -> list[LongBenchAnswer]:
    by_id = {row.id: row for row in rows}
    name = task.name + (E_SUFFIX if settings.e else "")

    def record(made: Completion, _: GenerationResult) -> LongBenchAnswer:
        row = by_id[made.id]
        score, overflow = best_score(task, made.response, row.answers, row.all_classes, settings.code_sim)
        return LongBenchAnswer(
            **dict(made),
            task=name,
            score=score,
            overflow=overflow,
            question=row.input,
            pred=made.response,
            answers=row.answers,
            all_classes=row.all_classes,
            length=row.length,
            document=text_fingerprint(row.context),
        )

    return complete(
        session,
        items,
        RecordFile(folder / f"{name}.jsonl", LongBenchAnswer),
        record=record,
        label=f"longbench: {task.name}",
    )


def _scored(task: Task, row: Row, answer: LongBenchAnswer) -> Scored:
    return Scored(
        id=row.id,
        task=task,
        cluster=f"{task.name}/{text_fingerprint(row.context)}",
        prompt_hash=answer.prompt_hash,
        score=answer.score,
        overflow=answer.overflow,
        length=row.length,
        truncated=answer.truncated,
    )


def _sampling(task: Task, session: Session) -> Sampling:
    if task.name != "samsum":
        return Sampling(task.max_new_tokens, session.stop_ids)
    # Officially for this task alone: models go on with another dialogue. At least one token comes first.
    (*_, newline) = session.tokenizer.encode("\n", add_special_tokens=False)
    return Sampling(task.max_new_tokens, (*session.stop_ids, newline), min_new_tokens=1)


def total(result: TaskResult, samples: Sequence[SampleRow], where: Mapping[str, object]) -> int | None:
    """Return how many rows LongBench, or LongBench-E, has of the tasks of these samples. It is not known for a band of
    lengths (``words``)."""
    if not samples or "words" in where:
        return None
    return official_rows((str(sample.facts["task"]) for sample in samples), e=is_e(result))


def is_e(result: TaskResult) -> bool:
    """Return whether a result is of LongBench-E."""
    return bool(result.settings["e"])


def limits(result: TaskResult) -> Iterator[str]:
    """Say whether some of the benchmark's rows are missing."""
    count, official = len(result.samples), total(result, result.samples, {})
    if official is not None and count != official:
        yield f"{count:,} of {official:,} rows: not the benchmark's score"


EVALUATOR = Evaluator(
    settings=LongBenchSettings,
    version=1,
    describe=describe,
    run=run,
    inputs=lambda settings: [("the data", settings.data)],
    limits=limits,
    total=total,
)
