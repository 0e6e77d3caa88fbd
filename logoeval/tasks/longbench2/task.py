"""LongBench v2 with a model: prompts, replies, the letters that they choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from logodata.common.errors import UserError
from logodata.engines import GenerationResult, Sampling, Usage
from logodata.engines.settings import EngineSettings
from logoeval.records import Outcome, SampleRow, TaskResult
from logoeval.session import Session
from logoeval.tasks.chat_prompts import ChatPrompts
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.generate import Completion, PromptItem, complete, with_reasoning
from logoeval.tasks.longbench2.data import (
    NUM_QUESTIONS,
    Question,
    data_path,
    fingerprint,
    notes_of_count,
    read_questions,
)
from logoeval.tasks.longbench2.prompts import Template, cut, fill, templates
from logoeval.tasks.longbench2.scores import METRICS, extract_answer, scores
from logoeval.tasks.longbench2.settings import NEW_TOKENS, LongBench2Settings
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.texts import text_fingerprint

OFFICIAL_PROMPT_TOKENS = 120_000
"""The limit of a prompt for most models (``config/model2maxlen.json``)."""

RESERVED_TOKENS = 372
"""Tokens of a window that are left for the chat template and for what a cut text has more when it is tokenised again;
with the 128 new ones they are the 500 of LongBench."""


class LongBench2Answer(Completion):
    """The reply to a question, with what the official ``result.py`` reads: ``difficulty``, ``length``, ``pred`` and
    ``judge``. ``response_cot`` is the reasoning of the mode ``cot``."""

    difficulty: str
    length: str
    answer: str
    pred: str | None
    judge: bool
    response_cot: str | None = None


def describe(settings: LongBench2Settings, engine: EngineSettings) -> dict[str, object]:
    """Return what two comparable runs have in common; questions by their contents, wherever they lie."""
    return {
        **settings.model_dump(mode="json", exclude={"data"}),
        "max_model_len": engine.max_model_len,
        "questions_fingerprint": fingerprint(read_questions(settings.data, settings.max_samples)),
    }


def run(settings: LongBench2Settings, session: Session, predictions: Path) -> Outcome:
    """Ask all questions; a row is a question."""
    questions = read_questions(settings.data, settings.max_samples)
    asker = _Asker(settings, session, predictions)
    reasoning = dict.fromkeys((question.id for question in questions), "")
    truncated = dict.fromkeys(reasoning, False)
    if settings.mode == "cot":
        first = asker.ask("cot", questions, reasoning)
        reasoning = {reply.id: reply.response.strip() for reply in first}
        truncated = {reply.id: reply.truncated for reply in first}
        replies = [
            _with_first(reply, before)
            for reply, before in zip(asker.ask("cot_answer", questions, reasoning), first, strict=True)
        ]
    else:
        replies = asker.ask(settings.mode, questions, reasoning)
    rows = [
        SampleRow(
            id=question.id,
            cluster=text_fingerprint(question.context),
            prompt_hash=reply.prompt_hash,
            scores={
                **scores(reply.pred, question.answer),
                "truncated": float(truncated[question.id] or reply.truncated),
            },
            facts=question.facts,
        )
        for question, reply in zip(questions, replies, strict=True)
    ]
    outcome = Outcome(METRICS, rows, list(_notes(settings, rows)), {"data": _source(settings)})
    return with_reasoning(outcome, session, replies)


def _with_first(reply: LongBench2Answer, first: LongBench2Answer) -> LongBench2Answer:
    """The second reply, with what was reasoned before either, and what a server counted for both."""
    if first.usage and reply.usage:
        usage = Usage(*(before + now for before, now in zip(first.usage, reply.usage, strict=True)))
        reply = reply.model_copy(update={"usage": usage})
    if first.reasoning is None:
        return reply
    tokens = first.num_reasoning_tokens or 0
    return reply.model_copy(
        update={
            "reasoning": first.reasoning,
            "num_reasoning_tokens": tokens + (reply.num_reasoning_tokens or 0),
            "reasoning_cut": bool(first.reasoning_cut or reply.reasoning_cut),
        }
    )


class _Asker:
    """Asks questions by one of the official prompts."""

    def __init__(self, settings: LongBench2Settings, session: Session, predictions: Path) -> None:
        self._settings, self._session, self._folder = settings, session, predictions
        self._prompts = ChatPrompts(session.tokenizer)

    def ask(
        self, template: Template, questions: Sequence[Question], reasoning: Mapping[str, str]
    ) -> list[LongBench2Answer]:
        """Return the replies to all questions, in order. ``reasoning``, by id, is what an earlier reply said."""
        call = -1 if template == "cot_answer" else 0
        new_tokens = NEW_TOKENS[self._settings.mode][call]
        sampling = Sampling(
            new_tokens,
            self._session.stop_ids,
            temperature=self._settings.temperature,
            seed=self._session.settings.seed,
        )
        limit = prompt_limits(self._settings, self._session)[call]
        asked = {question.id: question for question in questions}
        name = text_fingerprint(f"{self._prompts.fingerprint}\n{templates()[template]}")

        def item(question: Question) -> PromptItem:
            text, truncated = cut(self._prompts, fill(template, question, reasoning[question.id]), limit)
            return PromptItem(question.id, self._prompts.ask(text), sampling, name, truncated)

        def record(made: Completion, _: GenerationResult) -> LongBench2Answer:
            question, said = asked[made.id], reasoning[made.id]
            # Officially such a question is left out of the mean; here it counts as wrong.
            without_reason = template == "cot_answer" and not said
            pred = None if without_reason or template == "cot" else extract_answer(made.response.strip())
            return LongBench2Answer(
                **dict(made),
                difficulty=question.difficulty,
                length=question.length,
                answer=question.answer,
                pred=pred,
                judge=pred == question.answer,
                response_cot=said or None,
            )

        # The same questions in another mode are other prompts; the name of the task tells which files are its own.
        file = self._folder / ("longbench2-cot.jsonl" if template == "cot" else "longbench2.jsonl")
        return complete(
            self._session,
            [item(question) for question in questions],
            RecordFile(file, LongBench2Answer),
            record=record,
            label="longbench2: reasoning" if template == "cot" else "longbench2",
        )


def prompt_limits(settings: LongBench2Settings, session: Session) -> list[int]:
    """Return the most tokens of a prompt's text, for each call of the mode.

    Raises:
        UserError: the window leaves none.
    """
    window = session.engine_window - session.reasoning.budget
    rooms = [window - new_tokens - RESERVED_TOKENS for new_tokens in NEW_TOKENS[settings.mode]]
    if min(rooms) < 2:
        what = f"longbench2: {window} tokens of the window leave no room for a prompt"
        mend = "take a model with a longer window, or lower thinking_tokens"
        raise UserError(what, where=session.settings.model, mend=mend)
    return [min(settings.max_prompt_tokens or OFFICIAL_PROMPT_TOKENS, room) for room in rooms]


def _source(settings: LongBench2Settings) -> str:
    path = data_path(settings.data)
    return settings.data if path is None else str(path.resolve())


def _notes(settings: LongBench2Settings, rows: Sequence[SampleRow]) -> Iterator[str]:
    yield from notes_of_count(len(rows))
    cut_prompts = sum(row.scores["truncated"] for row in rows)
    yield f"{cut_prompts:,.0f} of {len(rows):,} prompts were cut in the middle ({100 * cut_prompts / len(rows):.1f} %)"
    if not settings.temperature:
        yield "decoded greedily; officially at temperature 0.1"


def total(_: TaskResult, samples: Sequence[SampleRow], where: Mapping[str, object]) -> int | None:
    """Return how many questions LongBench v2 has of all lengths and difficulties; it is not known of a part."""
    return NUM_QUESTIONS if samples and not where else None


def limits(result: TaskResult) -> Iterator[str]:
    """Say whether some of the benchmark's questions are missing."""
    if len(result.samples) != NUM_QUESTIONS:
        yield f"{len(result.samples):,} of {NUM_QUESTIONS} questions: not the benchmark's score"


def inputs(settings: LongBench2Settings) -> Iterator[tuple[str, Path]]:
    """Yield the path of the questions, which must be there unless they are on the hub."""
    path = data_path(settings.data)
    if path is not None:
        yield "the data", path


EVALUATOR = Evaluator(
    settings=LongBench2Settings, version=1, describe=describe, run=run, inputs=inputs, limits=limits, total=total
)
