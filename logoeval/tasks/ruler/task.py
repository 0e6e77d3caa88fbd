"""RULER with a model: prompts, greedy answers, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.engines import GenerationResult, Sampling
from logodata.engines.settings import EngineSettings
from logodata.models.facts import model_eos_ids
from logoeval.records import Metric, Outcome, SampleRow
from logoeval.session import Session
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import NO_PREFIX_NOTE, Completion, PromptItem, complete, with_reasoning
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.ruler.building import RulerSample, SampleBuilder, question_set
from logoeval.tasks.ruler.prompts import Frame
from logoeval.tasks.ruler.scores import any_found, clean_prediction, share_found
from logoeval.tasks.ruler.settings import RulerSettings
from logoeval.tasks.ruler.sources import check_file, fingerprint, read_essays, wonderwords_version
from logoeval.tasks.ruler.summary import RulerFacts, RulerFile, limits, metrics, scores_of, total
from logoeval.tasks.ruler.task_table import OFFICIAL_LENGTHS, Questions, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "ruler"
"""The folder of the predictions, which has a file for each task and length."""


class RulerAnswer(Completion):
    """The response to a prompt, with its score. ``pred`` and ``outputs`` are RULER's names for the response and the
    references."""

    task: str
    length: int
    num_units: int
    pred: str
    outputs: tuple[str, ...]
    score: float


def describe(settings: RulerSettings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; files by their contents, wherever they lie.

    Raises:
        UserError: a file cannot be read or has fewer questions than samples; or wonderwords is missing.
    """
    return {
        **settings.model_dump(mode="json", exclude={"tasks", "essays", "squad", "hotpot"}),
        "tasks": [task.name for task in settings.chosen],
        "left_out": [name for names in settings.left_out.values() for name in names],
        "max_model_len": engine.max_model_len,
        "wonderwords": wonderwords_version() if any(task.needs_words for task in settings.chosen) else None,
        "files": {name: file.to_json() for name, file in _files(settings)},
    }


def _files(settings: RulerSettings) -> Iterator[tuple[str, RulerFile]]:
    needed = {task.needs: task for task in settings.chosen if task.needs}
    if "essays" in needed and settings.essays is not None:
        essay = read_essays(settings.essays)
        yield "essays", RulerFile(fingerprint=fingerprint(essay), size=essay.num_words)
    for name, task in needed.items():
        if isinstance(task.kind, Questions):
            data = question_set(settings, task)
            if len(data.questions) < settings.num_samples:
                raise UserError(
                    f"holds {len(data.questions):,} questions with an answer, ruler.num_samples is "
                    f"{settings.num_samples:,}",
                    where=str(getattr(settings, name)),
                    mend="lower ruler.num_samples, or give the whole file",
                )
            yield name, RulerFile(fingerprint=fingerprint(data), size=len(data.questions))


@dataclass(frozen=True, slots=True)
class _Cell:
    """One task at one length."""

    task: Task
    length: int
    builder: SampleBuilder


def run(settings: RulerSettings, session: Session, predictions: Path) -> Outcome:
    """Answer and score all samples, those of the shortest length first."""
    lengths = find_lengths(settings, session)
    given = dict(_given(settings))
    reported = metrics(settings.chosen, lengths, {name: path.stem for name, path in given.items()})
    cells = _cells(settings, session, lengths)
    folder = predictions / FOLDER
    folder.mkdir(exist_ok=True)
    answers: list[RulerAnswer] = []
    rows: list[SampleRow] = []
    for cell in cells:
        samples = {sample.id: sample for sample in map(cell.builder.build, range(settings.num_samples))}
        made = _answer(cell, samples, settings, session, folder)
        answers += made
        rows += [_row(cell.task, answer, samples[answer.id].cluster, reported, lengths) for answer in made]
    outcome = Outcome(
        reported,
        rows,
        list(_notes(settings, session, cells)),
        {name: str(path.resolve()) for name, path in given.items()},
        {"lengths": list(lengths), "answer_prefix": not session.reasoning.budget},
    )
    return with_reasoning(outcome, session, answers)


def find_lengths(settings: RulerSettings, session: Session) -> tuple[int, ...]:
    """Return the lengths that are measured, from short to long.

    Raises:
        UserError: one of them leaves the window, or the window holds none of RULER's; or a model is to reason without a
            chat template.
    """
    budget = session.reasoning.budget
    if budget and settings.template == "none":
        raise UserError(
            f"ruler.template=none asks without a chat template, and thinking_tokens is {budget}",
            mend="set thinking_tokens=0, or leave out ruler.template",
        )
    if settings.lengths is None:
        window = session.engine_window - budget
        held = tuple(length for length in OFFICIAL_LENGTHS if length <= window)
        if not held:
            beside = f", beside thinking_tokens={budget}," if budget else ""
            raise UserError(
                f"the window of {session.engine_window} tokens{beside} holds none of RULER's lengths, which begin at "
                f"{OFFICIAL_LENGTHS[0]}",
                where=session.settings.model,
                mend="give shorter ones, such as ruler.lengths=[1024,2048]",
            )
        return held
    longest = max(settings.lengths)
    session.check_room(longest, f"ruler.lengths: the longest, {longest} tokens with the answer")
    return tuple(sorted(settings.lengths))


def _cells(settings: RulerSettings, session: Session, lengths: Sequence[int]) -> list[_Cell]:
    """Look before the first answer whether each task has room at each length."""
    frame = Frame(_tokenizer(settings, session), settings.template)
    seed, reasons = session.settings.seed, session.reasoning.budget > 0
    grid = [(length, task) for length in lengths for task in settings.chosen]
    cells = []
    with progress("ruler: how much fills each length", len(grid)) as tracker:
        for length, task in grid:
            builder = SampleBuilder(task, length, settings, frame, seed=seed, reasons=reasons)
            cells.append(_Cell(task, length, builder))
            tracker.advance()
    return cells


def _answer(
    cell: _Cell, samples: Mapping[str, RulerSample], settings: RulerSettings, session: Session, folder: Path
) -> list[RulerAnswer]:
    task, length = cell.task, cell.length
    stop_ids = _stop_ids(settings, session)
    template = cell.builder.template
    score = any_found if task.counts_any else share_found

    def record(made: Completion, _: GenerationResult) -> RulerAnswer:
        sample = samples[made.id]
        return RulerAnswer(
            **dict(made),
            task=task.name,
            length=length,
            num_units=sample.num_units,
            pred=made.response,
            outputs=sample.references,
            score=score(made.response, sample.references),
        )

    return complete(
        session,
        [
            PromptItem(sample.id, sample.prompt_ids, Sampling(sample.max_new_tokens, stop_ids), template)
            for sample in samples.values()
        ],
        RecordFile(folder / f"{task.name}-{length}.jsonl", RulerAnswer),
        record=record,
        label=f"ruler: {task.name}, {length:,} tokens",
    )


def _row(
    task: Task, answer: RulerAnswer, cluster: str, reported: Sequence[Metric], lengths: Sequence[int]
) -> SampleRow:
    is_null = not clean_prediction(answer.response)
    return SampleRow(
        id=answer.id,
        cluster=cluster,
        prompt_hash=answer.prompt_hash,
        scores=scores_of(task, answer.length, answer.score, is_null=is_null, reported=reported, lengths=lengths),
        facts=RulerFacts.of(task, answer.length).to_json(),
    )


def _tokenizer(settings: RulerSettings, session: Session) -> PreTrainedTokenizerBase:
    return session.tokenizer if settings.template == "chat" else session.bare_tokenizer


def _stop_ids(settings: RulerSettings, session: Session) -> tuple[int, ...]:
    if settings.template == "chat":
        return session.stop_ids
    ends = (session.bare_tokenizer.eos_token_id, *model_eos_ids(session.settings.model))
    return tuple(dict.fromkeys(token for token in ends if token is not None))


def _notes(settings: RulerSettings, session: Session, cells: Sequence[_Cell]) -> Iterator[str]:
    if session.reasoning.budget:
        yield NO_PREFIX_NOTE
    for name, tasks in settings.left_out.items():
        yield f"left out for want of ruler.{name}: {', '.join(tasks)}"
    if settings.essays is not None and any(task.needs == "essays" for task in settings.chosen):
        yield (
            f"the text of the essay tasks is {settings.essays.name}, {read_essays(settings.essays).num_words:,} words; "
            "RULER's is Paul Graham's essays"
        )
    for task in settings.chosen:
        long = [f"{cell.length:,}" for cell in cells if cell.task == task and cell.builder.goes_round]
        if long:
            yield f"{task.name}: its text is shorter than the prompts, and repeated, at {', '.join(long)} tokens"


def _given(settings: RulerSettings) -> Iterator[tuple[str, Path]]:
    """The user's files that the chosen tasks need, by their settings."""
    for name in dict.fromkeys(task.needs for task in settings.chosen if task.needs):
        yield name, getattr(settings, name)


def inputs(settings: RulerSettings) -> Iterator[tuple[str, Path]]:
    """Yield the user's files, which must be there."""
    for name, path in _given(settings):
        check_file(name, path)
        yield f"the file of ruler.{name}", path


EVALUATOR = Evaluator(
    settings=RulerSettings, version=1, describe=describe, run=run, inputs=inputs, limits=limits, total=total
)
