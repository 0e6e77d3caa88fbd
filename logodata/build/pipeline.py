"""The stages of a build: prepare the questions of a pool, then generate, judge, and say what became of each.

A stage keeps no state that its results depend on, so any number of processes can run it over any split of the pools
(:mod:`logodata.build.ray_driver`); one process does in :func:`decide_here`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from logodata.build.preparing import Pool, Prepared, PreparedQuestion, QuestionPreparer, UnusableQuestion
from logodata.build.responses import Responses
from logodata.common.console import Tracker
from logodata.common.words import without_reasoning
from logodata.contexts.scores import Evaluator, open_evaluator
from logodata.contract import (
    BuildIdentity,
    ContextChunk,
    DecisionRow,
    PreferenceSample,
    PromptFingerprints,
    QuestionOutcome,
    Reason,
    RejectedQuestion,
    Response,
)
from logodata.engines.settings import engine_window
from logodata.judge.decisions import Decision, eligible
from logodata.judge.measures import word_share
from logodata.judge.model import ModelJudge
from logodata.models.facts import tokenizer_fingerprint
from logodata.models.loading import load_tokenizer
from logodata.recipe.settings import BuildRecipe

Asked = tuple[Pool, frozenset[str]]
"""A pool, and the ids of its questions that are undecided."""

Decided = tuple[Sequence[QuestionOutcome], dict[str, str]]
"""What became of some questions, and :attr:`Pipeline.engine_names`."""


class Pipeline:
    """Prepares and answers questions under one recipe. What is heavy (evaluator, engine, logs) is opened when it is
    first needed.

    Args:
        recipe: the build recipe.
        model_fingerprint: of its model; responses are filed under it.
        log: of responses, and beside it ``verdicts.jsonl`` of a model judge's replies; None keeps them in memory only.
    """

    def __init__(self, recipe: BuildRecipe, model_fingerprint: str, log: Path | None = None) -> None:
        self._recipe, self._fingerprint = recipe, model_fingerprint
        tokenizer = load_tokenizer(recipe.model, recipe.chat_template)
        self.preparer = QuestionPreparer(recipe, tokenizer, engine_window(recipe.engine, recipe.model))
        self.responses = Responses(recipe, model_fingerprint, log, tokenizer, self.preparer.stop_ids[0])
        self.model_judge: ModelJudge | None = None
        if recipe.judge.model is not None:
            verdicts = None if log is None else log.with_name("verdicts.jsonl")
            self.model_judge = ModelJudge(
                recipe, recipe.judge.model, model_fingerprint, verdicts, lambda: self.responses.engine.open()
            )

    @cached_property
    def identity(self) -> BuildIdentity:
        """What a build follows from besides recipe and source: its folder is bound to it, and ``manifest.json`` says
        it.

        A chat template is a file, or comes with the tokenizer: what it renders tells two apart that have one name.
        """
        preparer, judge = self.preparer, self.model_judge
        identity = BuildIdentity(
            model_fingerprint=self._fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(preparer.tokenizer),
            prompt_fingerprints=PromptFingerprints(
                answer=preparer.answer_format.fingerprint, guided=[form.fingerprint for form in preparer.guided_formats]
            ),
            window=preparer.window,
        )
        if judge is None:
            return identity
        judged = {
            "judge_model": judge.name,
            "judge_model_fingerprint": judge.fingerprint,
            "judge_prompt_fingerprints": [form.fingerprint for form in judge.formats.values()],
            "judge_window": judge.window,
        }
        return identity.model_copy(update=judged)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The recipe's, opened when it is first asked for."""
        return open_evaluator(self._recipe.evaluator)

    def prepare(self, pool: Pool) -> Iterator[Prepared]:
        """Score a pool once for all its questions, and prepare each."""
        yield from self.preparer.prepare_pool(pool, self.evaluator)

    @property
    def engine_names(self) -> dict[str, str]:
        """What answered (``engine``) and judged (``judge_engine``) by now, without those that had nothing to do."""
        judge = self.model_judge.engine.name if self.model_judge else None
        names = {"engine": self.responses.engine.name, "judge_engine": judge}
        return {key: name for key, name in names.items() if name}

    def forget(self) -> None:
        """Drop responses and replies that are in memory only."""
        self.responses.engine.forget()
        if self.model_judge:
            self.model_judge.engine.forget()

    def answer(self, questions: Sequence[Prepared], tracker: Tracker) -> list[QuestionOutcome]:
        """Generate and judge: what became of each question, in order."""
        responses = self.responses
        prepared = [question for question in questions if isinstance(question, PreparedQuestion)]
        responses.generate([request for question in prepared for request in question.preferred], tracker)
        judgements = [self._judgement(question) for question in prepared]
        self._choose(judgements, tracker)
        # Dis-preferred responses only where there is something to prefer to them.
        worthwhile = [judgement for judgement in judgements if judgement.chosen]
        responses.generate([r for judgement in worthwhile for r in judgement.prepared.rejected.values()], tracker)
        for judgement in worthwhile:
            assert judgement.chosen is not None
            judgement.rejected = responses.rejected(judgement.prepared, judgement.chosen.response)
        by_the_rules = [judgement for judgement in worthwhile if not judgement.rule_against_rejected]
        self._ask([decision for judgement in by_the_rules for decision in judgement.rejected], tracker)
        judged = iter(judgements)
        return [_outcome(next(judged)) if isinstance(q, PreparedQuestion) else _unusable(q) for q in questions]

    def _judgement(self, prepared: PreparedQuestion) -> Judgement:
        preferred = self.responses.preferred(prepared)
        bare = self._recipe.judge.keep_bare_reference
        return Judgement(prepared, preferred, eligible(preferred, keep_bare_reference=bare))

    def _choose(self, judgements: Sequence[Judgement], tracker: Tracker) -> None:
        """Choose for each question the first eligible response that the model judge, if there is one, finds correct.

        All first ones are judged together, then the second ones of those questions whose first was not correct, ...
        """
        for attempt in range(max((len(judgement.eligible) for judgement in judgements), default=0)):
            waiting = [j for j in judgements if j.chosen is None and attempt < len(j.eligible)]
            self._ask([judgement.eligible[attempt] for judgement in waiting], tracker)
            for judgement in waiting:
                if judgement.eligible[attempt].objection is None:
                    judgement.chosen = judgement.eligible[attempt]

    def _ask(self, decisions: Sequence[Decision], tracker: Tracker) -> None:
        if self.model_judge:
            self.model_judge.judge(decisions, tracker)


def _unusable(prepared: UnusableQuestion) -> QuestionOutcome:
    return QuestionOutcome(
        id=prepared.question.id,
        decisions=[],
        rejected=_rejected(prepared, prepared.reason, stage="contexts", detail=prepared.detail),
    )


def _outcome(judgement: Judgement) -> QuestionOutcome:
    """A sample, or a row with the reason and what was generated; and all decisions."""
    prepared, chosen, reason = judgement.prepared, judgement.chosen, judgement.reason
    decisions = list(judgement.rows())
    if reason is None:
        assert chosen is not None
        sample = _sample(prepared, chosen.response, [decision.response for decision in judgement.rejected])
        return QuestionOutcome(id=prepared.question.id, decisions=decisions, sample=sample)
    rejected = _rejected(
        prepared,
        reason,
        stage="judge",
        answers=prepared.question.answers,
        preferred=_texts([chosen] if chosen else judgement.preferred),
        rejected=_texts(judgement.rejected) if chosen else None,
    )
    return QuestionOutcome(id=prepared.question.id, decisions=decisions, rejected=rejected)


def _rejected(prepared: Prepared, reason: str, **details: Any) -> RejectedQuestion:
    return RejectedQuestion(
        id=prepared.question.id,
        doc_id=prepared.document.doc_id,
        where=prepared.document.where,
        source=prepared.document.source,
        question=prepared.question.question,
        kind=prepared.question.kind,
        reason=reason,
        **details,
    )


def _texts(decisions: Sequence[Decision]) -> list[str]:
    return [without_reasoning(decision.response.text) for decision in decisions]


def decide_here(pipeline: Pipeline, pools: Iterable[Asked], group_size: int, tracker: Tracker) -> Generator[Decided]:
    """Prepare and answer in this process, in order, ``group_size`` questions at a time."""
    prepared = (one for pool, ids in pools for one in pipeline.prepare(pool) if one.question.id in ids)
    while group := list(islice(prepared, group_size)):
        yield pipeline.answer(group, tracker), pipeline.engine_names


def _sample(prepared: PreparedQuestion, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, critical = prepared.pool, set(prepared.contexts.critical)

    def chunks() -> Iterator[ContextChunk]:
        for index, (start, end) in zip(prepared.contexts.training, prepared.prompt.chunk_spans, strict=True):
            document, chunk = pool.chunks[index]
            yield ContextChunk(
                doc_id=document.doc_id,
                index=chunk.index,
                start=chunk.start,
                end=chunk.end,
                token_start=start,
                token_end=end,
                score=float(prepared.scores[index]),
                critical=index in critical,
                text=pool.text(index),
            )

    return PreferenceSample(
        id=prepared.question.id,
        doc_id=prepared.document.doc_id,
        question_id=prepared.question.id,
        kind=prepared.question.kind,
        question=prepared.question.question,
        answers=prepared.question.answers,
        prompt_ids=list(prepared.prompt.ids),
        chunks=list(chunks()),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=word_share(
            " ".join(pool.text(i) for i in prepared.contexts.critical), prepared.question.answers
        )
        == 1.0,
    )


@dataclass(slots=True, eq=False)
class Judgement:
    """All decisions on a question.

    ``preferred`` are the candidates for the preferred response, in the order they were tried; ``eligible`` those that
    the rules allow, in the order in which they are to be preferred; ``chosen`` the one that is; ``rejected`` the
    dis-preferred responses beside it.
    """

    prepared: PreparedQuestion
    preferred: Sequence[Decision]
    eligible: Sequence[Decision]
    chosen: Decision | None = None
    rejected: Sequence[Decision] = field(default=())

    @property
    def rule_against_rejected(self) -> Reason | None:
        """The rules' first fault of a dis-preferred response."""
        return next((decision.rule for decision in self.rejected if decision.rule), None)

    @property
    def reason(self) -> Reason | None:
        """Why the pair is not kept; None if it is. Of several preferred candidates the first that came furthest is
        named."""
        if self.chosen is None:
            return self.eligible[0].objection if self.eligible else self.preferred[0].rule
        return self.rule_against_rejected or next(filter(None, (d.objection for d in self.rejected)), None)

    def rows(self) -> Iterator[DecisionRow]:
        """Rows of ``decisions.jsonl``."""
        source, pair_kept = self.prepared.document.source, self.reason is None
        for decision in self.preferred:
            yield decision.row(source, kept=pair_kept and decision is self.chosen)
        for decision in self.rejected:
            yield decision.row(source, kept=pair_kept)
