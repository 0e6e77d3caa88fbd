"""Show samples as text in the terminal: ``logodata inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.panel import Panel
from rich.text import Text

from logodata.common.console import console
from logodata.common.errors import UserError
from logodata.common.streams import reader_left
from logodata.contract import ContextChunk, DecisionRow, ImportManifest, PreferenceSample, RejectedQuestion
from logodata.dataset.files import read_recipe
from logodata.dataset.inspect_words import (
    in_words,
    kept_responses,
    make_up,
    read_decisions,
    read_rejected,
    role_in_words,
    ruling,
)
from logodata.dataset.prompt_texts import PromptTexts
from logodata.dataset.samples import iterate_samples, read_manifest
from logodata.judge.settings import JudgeSettings


def print_samples(folder: Path, question_id: str | None, count: int) -> None:
    """Print one question, or the first ``count`` samples: the context with critical chunks marked, the question, and
    the responses with the judge's verdicts.

    Raises:
        UserError: The folder holds no data set, or there is no such question.
    """
    samples = iterate_samples(folder)
    if question_id is not None:
        for row in read_rejected(folder):
            if row.id == question_id:
                if row.stage == "import":
                    _print_unkept_head(row)
                else:
                    _print_unkept(row, read_decisions(folder, {question_id})[question_id], folder)
                return
        samples, count = (sample for sample in samples if sample.id == question_id), 1
    shown = list(islice(samples, count))
    if question_id is not None and not shown:
        mend = "ids are in data/*.parquet and rejected.jsonl"
        raise UserError(f"no question {question_id!r}", where=str(folder), mend=mend)
    manifest = read_manifest(folder) if shown else None
    if isinstance(manifest, ImportManifest):
        texts = PromptTexts(manifest)
        for sample in shown:
            if reader_left():
                return
            _print_imported(sample, texts.of(sample))
        return
    decisions, judge = read_decisions(folder, {sample.id for sample in shown}), read_recipe(folder).judge
    for sample in shown:
        if reader_left():
            return
        _print_sample(sample, kept_responses(sample, decisions[sample.id]), judge)


def _print_sample(sample: PreferenceSample, responses: Sequence[tuple[DecisionRow, int]], judge: JudgeSettings) -> None:
    print_context(f"{sample.id}: {len(sample.prompt_ids)} prompt tokens", sample.chunks)
    print_question(sample.question, sample.answers)
    for row, num_tokens in responses:
        _print_response(row, sample.question or "", judge, num_tokens)


def _print_imported(sample: PreferenceSample, prompt: str) -> None:
    console.print(Panel(Text(prompt), title=Text(f"{sample.id}: {len(sample.prompt_ids)} prompt tokens")))
    for role, response in [("preferred", sample.chosen), *(("dis-preferred", found) for found in sample.rejected)]:
        console.print(f"{role:14} {response.text.strip()}", markup=False, soft_wrap=True)
        said = f"{response.strategy}, {len(response.token_ids)} tokens"
        console.print(f"{'':14} {said}", style="dim", markup=False, soft_wrap=True)


def _print_unkept_head(row: RejectedQuestion) -> None:
    reason = in_words(row.reason) + (f": {row.detail}" if row.detail else "")
    console.print(f"{row.id} ({row.where}): not kept, {reason}", style="bold", markup=False, soft_wrap=True)


def print_context(title: str, chunks: Sequence[ContextChunk], most_characters: int | None = None) -> None:
    """Print a context with its critical chunks marked. Of each chunk ``most_characters`` are shown, by default all."""
    context = Text()
    for chunk in chunks:
        critical = ", critical" if chunk.critical else ""
        context.append(f"[{chunk.doc_id} #{chunk.index}, score {chunk.score or 0:g}{critical}]\n", style="dim")
        text = chunk.text.strip()
        if most_characters is not None and len(text) > most_characters:
            text = f"{text[:most_characters].rstrip()} ..."
        context.append(f"{text}\n\n", style="bold green" if chunk.critical else "")
    console.print(Panel(context, title=Text(title)))


def _print_unkept(row: RejectedQuestion, decisions: Sequence[DecisionRow], folder: Path) -> None:
    _print_unkept_head(row)
    print_question(row.question, row.answers or [])
    judge = read_recipe(folder).judge
    for decision in decisions:
        _print_response(decision, row.question or "", judge)


def print_question(question: str | None, answers: Sequence[str]) -> None:
    """Print a question with its reference answers."""
    console.print(f"question       {question}", markup=False, soft_wrap=True)
    if answers:
        console.print(f"reference      {' | '.join(answers)}", markup=False, soft_wrap=True)


def _print_response(row: DecisionRow, question: str, judge: JudgeSettings, num_tokens: int | None = None) -> None:
    console.print(f"{role_in_words(row):14} {row.text.strip()}", markup=False, soft_wrap=True)
    said = f"{ruling(row, question, judge)} ({row.strategy}, {make_up(row, num_tokens)})"
    console.print(f"{'':14} {said}", style="dim", markup=False, soft_wrap=True)
