"""The stages of a build: plan the questions of a pool, then generate, judge, and say what became of each.

A stage keeps no state that its results depend on, so any number of processes can run it over any split of the pools
(:mod:`logodata.build.ray_driver`); one process does in :func:`decide_here`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from logodata.build.answering import Responses
from logodata.build.candidates import Candidate, Fault, Planner, Pool
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
    """Planning and answering under one recipe. What is heavy (evaluator, engine, logs) is opened when it is first
    needed.

    Args:
        recipe: the build recipe.
        model_fingerprint: of its model; responses are filed under it.
        log: of responses, and beside it ``verdicts.jsonl`` of a model judge's replies; None keeps them in memory only.
    """

    def __init__(self, recipe: BuildRecipe, model_fingerprint: str, log: Path | None = None) -> None:
        self._recipe, self._fingerprint = recipe, model_fingerprint
        tokenizer = load_tokenizer(recipe.model, recipe.chat_template)
        self.planner = Planner(recipe, tokenizer, engine_window(recipe.engine, recipe.model))
        self.responses = Responses(recipe, model_fingerprint, log, tokenizer, self.planner.stop_ids[0])
        self.model_judge: ModelJudge | None = None
        if recipe.judge.model is not None:
            verdicts = None if log is None else log.with_name("verdicts.jsonl")
            self.model_judge = ModelJudge(
                recipe, recipe.judge.model, model_fingerprint, verdicts, self.responses.engine
            )
        self._evaluator: Evaluator | None = None

    @property
    def identity(self) -> BuildIdentity:
        """What a build follows from besides recipe and source: its folder is bound to it, and ``manifest.json`` says
        it.

        A chat template is a file, or comes with the tokenizer: what it renders tells two apart that have one name.
        """
        planner, judge = self.planner, self.model_judge
        identity = BuildIdentity(
            model_fingerprint=self._fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(planner.tokenizer),
            prompt_fingerprints=PromptFingerprints(
                answer=planner.answer_format.fingerprint, guided=[form.fingerprint for form in planner.guided_formats]
            ),
            window=planner.window,
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

    @property
    def evaluator(self) -> Evaluator:
        """The recipe's, opened when it is first asked for."""
        if self._evaluator is None:
            self._evaluator = open_evaluator(self._recipe.evaluator)
        return self._evaluator

    def plan(self, pool: Pool) -> Iterator[Candidate | Fault]:
        """Score a pool once for all its questions, and plan each."""
        yield from self.planner.candidates(pool, self.evaluator)

    @property
    def engine_names(self) -> dict[str, str]:
        """What answered (``engine``) and judged (``judge_engine``) by now, without those that had nothing to do."""
        judge = self.model_judge.engine_name if self.model_judge else None
        names = {"engine": self.responses.engine_name, "judge_engine": judge}
        return {key: name for key, name in names.items() if name}

    def forget(self) -> None:
        """Drop responses and replies that are in memory only."""
        self.responses.forget()
        if self.model_judge:
            self.model_judge.forget()

    def answer(self, plans: Sequence[Candidate | Fault], tracker: Tracker) -> list[QuestionOutcome]:
        """Generate and judge: what became of each question, in order."""
        responses = self.responses
        candidates = [plan for plan in plans if isinstance(plan, Candidate)]
        responses.generate([request for plan in candidates for request in plan.preferred], tracker)
        judgements = [self._judgement(plan) for plan in candidates]
        self._choose(judgements, tracker)
        # Dis-preferred responses only where there is something to prefer to them.
        worthwhile = [judgement for judgement in judgements if judgement.chosen]
        responses.generate([r for judgement in worthwhile for r in judgement.plan.rejected.values()], tracker)
        for judgement in worthwhile:
            assert judgement.chosen is not None
            judgement.rejected = responses.rejected(judgement.plan, judgement.chosen.response)
        by_the_rules = [judgement for judgement in worthwhile if not judgement.rule_against_rejected]
        self._ask([decision for judgement in by_the_rules for decision in judgement.rejected], tracker)
        judged = iter(judgements)
        return [_outcome(next(judged)) if isinstance(plan, Candidate) else _faulty(plan) for plan in plans]

    def _judgement(self, plan: Candidate) -> Judgement:
        preferred = self.responses.preferred(plan)
        bare = self._recipe.judge.keep_bare_reference
        return Judgement(plan, preferred, eligible(preferred, keep_bare_reference=bare))

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


def _faulty(plan: Fault) -> QuestionOutcome:
    return QuestionOutcome(
        id=plan.question.id,
        decisions=[],
        rejected=_rejected(plan, plan.reason, stage="contexts", detail=plan.detail),
    )


def _outcome(judgement: Judgement) -> QuestionOutcome:
    """A sample, or a row with the reason and what was generated; and all decisions."""
    plan, chosen, reason = judgement.plan, judgement.chosen, judgement.reason
    decisions = list(judgement.rows())
    if reason is None:
        assert chosen is not None
        sample = _sample(plan, chosen.response, [decision.response for decision in judgement.rejected])
        return QuestionOutcome(id=plan.question.id, decisions=decisions, sample=sample)
    rejected = _rejected(
        plan,
        reason,
        stage="judge",
        answers=plan.question.answers,
        preferred=_texts([chosen] if chosen else judgement.preferred),
        rejected=_texts(judgement.rejected) if chosen else None,
    )
    return QuestionOutcome(id=plan.question.id, decisions=decisions, rejected=rejected)


def _rejected(plan: Candidate | Fault, reason: str, **details: Any) -> RejectedQuestion:
    return RejectedQuestion(
        id=plan.question.id,
        doc_id=plan.document.doc_id,
        where=plan.document.where,
        source=plan.document.source,
        question=plan.question.question,
        kind=plan.question.kind,
        reason=reason,
        **details,
    )


def _texts(decisions: Sequence[Decision]) -> list[str]:
    return [without_reasoning(decision.response.text) for decision in decisions]


def decide_here(pipeline: Pipeline, pools: Iterable[Asked], group_size: int, tracker: Tracker) -> Generator[Decided]:
    """Plan and answer in this process, in order, ``group_size`` questions at a time."""
    plans = (plan for pool, ids in pools for plan in pipeline.plan(pool) if plan.question.id in ids)
    while group := list(islice(plans, group_size)):
        yield pipeline.answer(group, tracker), pipeline.engine_names


def _sample(plan: Candidate, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, critical = plan.pool, set(plan.contexts.critical)

    def chunks() -> Iterator[ContextChunk]:
        for index, (start, end) in zip(plan.contexts.training, plan.prompt.chunk_spans, strict=True):
            document, chunk = pool.chunks[index]
            yield ContextChunk(
                doc_id=document.doc_id,
                index=chunk.index,
                start=chunk.start,
                end=chunk.end,
                token_start=start,
                token_end=end,
                score=float(plan.scores[index]),
                critical=index in critical,
                text=pool.text(index),
            )

    return PreferenceSample(
        id=plan.question.id,
        doc_id=plan.document.doc_id,
        question_id=plan.question.id,
        kind=plan.question.kind,
        question=plan.question.question,
        answers=plan.question.answers,
        prompt_ids=list(plan.prompt.ids),
        chunks=list(chunks()),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=word_share(" ".join(pool.text(i) for i in plan.contexts.critical), plan.question.answers)
        == 1.0,
    )


@dataclass(slots=True, eq=False)
class Judgement:
    """All decisions on a question.

    ``preferred`` are the candidates for the preferred response, in the order they were tried; ``eligible`` those that
    the rules allow, in the order in which they are to be preferred; ``chosen`` the one that is; ``rejected`` the
    dis-preferred responses beside it.
    """

    plan: Candidate
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
        source, pair_kept = self.plan.document.source, self.reason is None
        for decision in self.preferred:
            yield decision.row(source, kept=pair_kept and decision is self.chosen)
        for decision in self.rejected:
            yield decision.row(source, kept=pair_kept)
