"""LongBench with a model: prompts, greedy answers, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError
from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logoeval.records import Outcome, SampleRow, TaskResult
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import PromptItem, complete
from logoeval.tasks.longbench.data import Row, fingerprint, read_rows
from logoeval.tasks.longbench.prompts import RESERVED_TOKENS, PromptBuilder
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.longbench.summary import Scored, best_score, metrics, notes, sample_rows
from logoeval.tasks.longbench.task_table import E_SUFFIX, TASKS, Task, official_rows
from logoeval.tasks.texts import text_fingerprint

if TYPE_CHECKING:
    from logoeval.session import Session

FOLDER = "longbench"
"""Of the predictions, a file a task. A line holds ``pred``, ``answers``, ``all_classes`` and ``length`` too, so the
official script can score it."""


def describe(settings: LongBenchSettings, engine: EngineSettings) -> dict[str, Any]:
    """What two comparable runs have in common; rows by their contents, wherever they lie."""
    rows = read_rows(settings.data, settings.tasks, settings.e)
    return {
        "tasks": list(rows),
        "e": settings.e,
        "max_prompt_tokens": settings.max_prompt_tokens,
        "max_model_len": engine.max_model_len,
        "code_sim": settings.code_sim,
        "rows_fingerprint": fingerprint(rows),
    }


def run(settings: LongBenchSettings, session: Session, predictions: Path) -> Outcome:
    """Answer and score all rows; a sample a row."""
    window = min(session.settings.engine.max_model_len or session.window, session.window)
    limit = settings.max_prompt_tokens or window - RESERVED_TOKENS
    builder = PromptBuilder(session.tokenizer, limit)
    rows = read_rows(settings.data, settings.tasks, settings.e)
    tasks = [TASKS[name] for name in rows]
    for task in tasks:
        builder.check(task)
    folder = predictions / FOLDER
    folder.mkdir(exist_ok=True)
    samples: list[Scored] = []
    shortened = 0
    for task in tasks:
        items = [_item(task, row, builder, window) for row in rows[task.name]]
        shortened += sum(item.max_new_tokens != task.max_new_tokens for item in items)
        samples += _answer(task, rows[task.name], items, settings, session, folder)
    found = list(notes(samples, e=settings.e, code_sim=settings.code_sim))
    if shortened:
        found.append(f"{shortened} answers were allowed fewer tokens than officially: the window ends there")
    reported = metrics(tasks, e=settings.e, truncation=True)
    scored = sample_rows(samples, reported, e=settings.e)
    return Outcome(reported, scored, found, {"data": str(settings.data.resolve())})


def _item(task: Task, row: Row, builder: PromptBuilder, window: int) -> PromptItem:
    prompt = builder.build(task, row)
    room = window - len(prompt.ids)
    if room < 1:
        raise UserError(
            f"longbench: the prompt takes {len(prompt.ids)} tokens with its chat template, the window has {window}",
            where=row.where,
            mend="lower longbench.max_prompt_tokens",
        )
    return PromptItem(row.id, prompt.ids, builder.template(task), prompt.truncated, min(task.max_new_tokens, room))


def _answer(
    task: Task,
    rows: tuple[Row, ...],
    items: list[PromptItem],
    settings: LongBenchSettings,
    session: Session,
    folder: Path,
) -> Iterator[Scored]:
    by_id = {row.id: row for row in rows}
    name = task.name + (E_SUFFIX if settings.e else "")

    def fields(response: str, result: GenerationResult) -> dict[str, Any]:
        row = by_id[result.id]
        score, overflow = best_score(task, response, row.answers, row.all_classes, settings.code_sim)
        return {
            "task": name,
            "score": score,
            "overflow": overflow,
            "question": row.input,
            "pred": response,
            "answers": list(row.answers),
            "all_classes": row.all_classes and list(row.all_classes),
            "length": row.length,
        }

    records = complete(
        session.engine,
        session.tokenizer,
        items,
        sampling=_sampling(task, session),
        path=folder / f"{name}.jsonl",
        fields=fields,
        label=f"longbench: {task.name}",
    )
    for row, record in zip(rows, records, strict=True):
        yield Scored(
            id=row.id,
            task=task,
            cluster=f"{task.name}/{text_fingerprint(row.context)}",
            prompt_hash=record["prompt_hash"],
            score=record["score"],
            overflow=record["overflow"],
            length=row.length,
            truncated=record["truncated"],
        )


def _sampling(task: Task, session: Session) -> Sampling:
    if task.name != "samsum":
        return Sampling(task.max_new_tokens, session.stop_ids)
    # Officially for this task alone: models go on with another dialogue. At least one token comes first.
    (*_, newline) = session.tokenizer.encode("\n", add_special_tokens=False)
    return Sampling(task.max_new_tokens, (*session.stop_ids, newline), min_new_tokens=1)


def total(result: TaskResult, samples: Sequence[SampleRow], where: Mapping[str, Any]) -> int | None:
    """How many rows LongBench, or LongBench-E, has of the tasks that these samples are of. Of a band of lengths
    (``words``) nobody says."""
    if not samples or "words" in where:
        return None
    return official_rows((sample.facts["task"] for sample in samples), e=result.settings["e"])


def limits(result: TaskResult) -> Iterator[str]:
    """Whether some of the benchmark's rows are missing."""
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
