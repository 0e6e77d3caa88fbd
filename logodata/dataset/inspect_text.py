"""Samples as text in the terminal: ``logodata inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.streams import reader_left
from logodata.contract import PreferenceSample, iterate_samples
from logodata.dataset.files import iterate_rejected
from logodata.dataset.inspect_words import Row, make_up, read_decisions, read_judge, response_rows, ruling
from logodata.judge.settings import JudgeSettings


def print_samples(folder: Path, question_id: str | None, count: int) -> None:
    """Print what became of a question, or the first ``count`` samples: context with critical chunks marked, question,
    responses with the judge's verdicts.

    Raises:
        UserError: no data set there, or no such question.
    """
    if question_id is not None:
        row = next((row for row in _rejected(folder) if row["id"] == question_id), None)
        if row is not None:
            _print_unkept(row, read_decisions(folder, {question_id})[question_id], folder)
            return
    samples = iterate_samples(folder)
    if question_id is not None:
        samples = (sample for sample in samples if sample.id == question_id)
        count = 1
    shown = list(islice(samples, count))
    if question_id is not None and not shown:
        raise UserError(
            f"no question {question_id!r}", where=str(folder), mend="ids are in data/*.parquet and rejected.jsonl"
        )
    decisions, judge = read_decisions(folder, {sample.id for sample in shown}), read_judge(folder)
    for sample in shown:
        if reader_left():
            return
        _print_sample(sample, response_rows(sample, decisions[sample.id]), judge)


def _rejected(folder: Path) -> Sequence[dict[str, Any]]:
    return list(iterate_rejected(folder)) if (folder / "rejected.jsonl").is_file() else []


def _print_sample(sample: PreferenceSample, rows: Sequence[Row], judge: JudgeSettings) -> None:
    context = Text()
    for chunk in sample.chunks:
        critical = ", critical" if chunk.critical else ""
        context.append(f"[{chunk.doc_id} #{chunk.index}, score {chunk.score:g}{critical}]\n", style="dim")
        context.append(chunk.text.strip() + "\n\n", style="bold green" if chunk.critical else "")
    console.print(Panel(context, title=Text(f"{sample.id}: {len(sample.prompt_ids)} prompt tokens")))
    _print_question(sample.question, sample.answers)
    _print_responses(rows, sample.question, judge)


def _print_unkept(row: dict[str, Any], decisions: Sequence[Row], folder: Path) -> None:
    detail = f": {row['detail']}" if row.get("detail") else ""
    reason = f"not kept, {row['reason'].replace('_', ' ')}{detail}"
    console.print(f"{row['id']} ({row['where']}): {reason}", style="bold", markup=False, soft_wrap=True)
    _print_question(row["question"], row.get("answers", []))
    if decisions:
        _print_responses(decisions, row["question"], read_judge(folder))


def _print_question(question: str, answers: Sequence[str]) -> None:
    console.print(f"question       {question}", markup=False, soft_wrap=True)
    if answers:
        console.print(f"reference      {' | '.join(answers)}", markup=False, soft_wrap=True)


def _print_responses(rows: Sequence[Row], question: str, judge: JudgeSettings) -> None:
    for row in rows:
        role = "preferred" if row["role"] == "preferred" else "dis-preferred"
        console.print(f"{role:14} {row['text'].strip()}", markup=False, soft_wrap=True)
        said = f"{ruling(row, question, judge)} ({row['strategy']}, {make_up(row)})"
        console.print(f"{'':14} {said}", style="dim", markup=False, soft_wrap=True)
