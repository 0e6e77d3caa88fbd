"""The stages of a build: prepare the questions of a pool, generate responses, judge them, and decide every question.

Results depend on no state of a stage. So any number of processes can share out the pools
(:mod:`logodata.build.ray_driver`), and :func:`decide_here` uses one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from logodata.build.preparing import (
    Pool,
    Prepared,
    PreparedQuestion,
    QuestionPreparer,
    UnusableQuestion,
    tokens_held,
)
from logodata.build.responses import Responses
from logodata.common.console import Tracker
from logodata.common.groups import in_groups
from logodata.common.words import without_reasoning
from logodata.contexts.scores import Evaluator, open_evaluator
from logodata.contract import (
    BuildIdentity,
    DecisionRow,
    PreferenceSample,
    PromptFingerprints,
    QuestionOutcome,
    Reason,
    RejectedQuestion,
    Response,
)
from logodata.engines.response_log import note_usage
from logodata.engines.settings import engine_window
from logodata.judge.judged_response import Decision, eligible
from logodata.judge.measures import word_share
from logodata.judge.model import ModelJudge
from logodata.judge.settings import judge_engine
from logodata.models.facts import tokenizer_fingerprint
from logodata.recipe.settings import BuildRecipe

Asked = tuple[Pool, frozenset[str]]
"""A pool, and the ids of its undecided questions."""

Decided = tuple[Sequence[QuestionOutcome], dict[str, str]]
"""The outcomes of some questions, and :attr:`Pipeline.engine_names`."""

GROUP_TOKENS = 2**23
"""The most tokens of questions that are answered together, and those of one question more. Each takes 8 bytes in a
prompt here and again as much in an engine. 256 questions with contexts of 8K tokens are about as many."""


class Pipeline:
    """Prepares and answers questions under one recipe. Evaluator, engine and logs are opened when they are needed.

    Responses are filed in ``log`` under the fingerprint of the model, and the replies of a model judge in
    ``verdicts.jsonl`` beside it. Without a log both are in memory only.
    """

    def __init__(self, recipe: BuildRecipe, model_fingerprint: str, log: Path | None = None) -> None:
        self._recipe, self._fingerprint = recipe, model_fingerprint
        tokenizer = recipe.load_tokenizer()
        self.preparer = QuestionPreparer(recipe, tokenizer, engine_window(recipe.engine, recipe.model, recipe.adapter))
        self.responses = Responses(recipe, model_fingerprint, log, self.preparer)
        self.model_judge: ModelJudge | None = None
        if recipe.judge.model is not None:
            verdicts = None if log is None else log.with_name("verdicts.jsonl")
            self.model_judge = ModelJudge(
                recipe, recipe.judge.model, model_fingerprint, verdicts, lambda: self.responses.engine.open()
            )

    @cached_property
    def identity(self) -> BuildIdentity:
        """What decides a build besides its recipe and its source. Its folder is bound to it.

        It holds fingerprints of prompts, because chat templates of one name may differ in what they render.
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
        """The evaluator of the recipe."""
        return open_evaluator(self._recipe.evaluator)

    def prepare(self, pools: Iterable[Asked]) -> Iterator[Prepared]:
        """Prepare the undecided questions of pools. A pool is scored once, for all its questions."""
        for pool, undecided in pools:
            prepared = self.preparer.prepare_pool(pool, self.evaluator)
            yield from (one for one in prepared if one.question.id in undecided)

    @property
    def engine_names(self) -> dict[str, str]:
        """The engines that have answered (``engine``) and judged (``judge_engine``) so far."""
        judge = self.model_judge.engine.name if self.model_judge else None
        names = {"engine": self.responses.engine.name, "judge_engine": judge}
        return {key: name for key, name in names.items() if name}

    def note_usage(self) -> None:
        """Say which tokens chat servers have counted for the responses and verdicts in the logs, and what they cost."""
        recipe, judge = self._recipe, self._recipe.judge.model
        note_usage("responses", self.responses.engine, recipe.engine, recipe.model)
        if self.model_judge and judge:
            note_usage("verdicts", self.model_judge.engine, judge_engine(recipe, judge), judge.name or recipe.model)

    def forget(self) -> None:
        """Drop the responses and replies that are in memory only."""
        self.responses.engine.forget()
        if self.model_judge:
            self.model_judge.engine.forget()

    def answer(self, questions: Sequence[Prepared], tracker: Tracker) -> list[QuestionOutcome]:
        """Generate and judge, and return the outcome of each question, in order."""
        responses, keep_bare = self.responses, self._recipe.judge.keep_bare_reference
        prepared = [question for question in questions if isinstance(question, PreparedQuestion)]
        first = [request for question in prepared for request in question.preferred]
        responses.engine.generate(first, tracker, "responses")
        judgements = []
        for question in prepared:
            preferred = responses.preferred(question)
            judgements.append(Judgement(question, preferred, eligible(preferred, keep_bare_reference=keep_bare)))
        self._choose(judgements, tracker)
        # Dis-preferred responses are generated only if there is something to prefer to them.
        worthwhile = [judgement for judgement in judgements if judgement.chosen]
        second = [request for judgement in worthwhile for request in judgement.prepared.rejected.values()]
        responses.engine.generate(second, tracker, "responses")
        for judgement in worthwhile:
            assert judgement.chosen is not None
            judgement.rejected = responses.rejected(judgement.prepared, judgement.chosen.response)
        by_the_rules = [judgement for judgement in worthwhile if not judgement.rule_against_rejected]
        self._ask([decision for judgement in by_the_rules for decision in judgement.rejected], tracker)
        judged = iter(judgements)
        return [
            _rejected(question, [], question.reason, stage="contexts", detail=question.detail)
            if isinstance(question, UnusableQuestion)
            else _outcome(next(judged))
            for question in questions
        ]

    def _choose(self, judgements: Sequence[Judgement], tracker: Tracker) -> None:
        """Choose for each question the first eligible response to which a model judge does not object."""
        # The first ones of all questions are judged together, then the second ones where the first was not chosen.
        for attempt in range(max((len(judgement.eligible) for judgement in judgements), default=0)):
            waiting = [j for j in judgements if j.chosen is None and attempt < len(j.eligible)]
            self._ask([judgement.eligible[attempt] for judgement in waiting], tracker)
            for judgement in waiting:
                if judgement.eligible[attempt].objection is None:
                    judgement.chosen = judgement.eligible[attempt]

    def _ask(self, decisions: Sequence[Decision], tracker: Tracker) -> None:
        if self.model_judge:
            self.model_judge.judge(decisions, tracker)


def _outcome(judgement: Judgement) -> QuestionOutcome:
    prepared, chosen, reason = judgement.prepared, judgement.chosen, judgement.reason
    source, is_kept = prepared.document.source, reason is None
    decisions = [decision.row(source, kept=is_kept and decision is chosen) for decision in judgement.preferred]
    decisions += [decision.row(source, kept=is_kept) for decision in judgement.rejected]
    if reason is None:
        assert chosen is not None
        sample = _sample(prepared, chosen.response, [decision.response for decision in judgement.rejected])
        return QuestionOutcome(id=prepared.question.id, decisions=decisions, sample=sample)
    return _rejected(
        prepared,
        decisions,
        reason,
        stage="judge",
        answers=prepared.question.answers,
        preferred=_texts([chosen] if chosen else judgement.preferred),
        rejected=_texts(judgement.rejected) if chosen else None,
    )


def _rejected(prepared: Prepared, decisions: list[DecisionRow], reason: str, **details: Any) -> QuestionOutcome:
    rejected = RejectedQuestion(
        id=prepared.question.id,
        doc_id=prepared.document.doc_id,
        where=prepared.document.where,
        source=prepared.document.source,
        question=prepared.question.question,
        kind=prepared.question.kind,
        reason=reason,
        **details,
    )
    return QuestionOutcome(id=rejected.id, decisions=decisions, rejected=rejected)


def _texts(decisions: Sequence[Decision]) -> list[str]:
    return [without_reasoning(decision.response.text) for decision in decisions]


def decide_here(pipeline: Pipeline, pools: Iterable[Asked], group_size: int, tracker: Tracker) -> Generator[Decided]:
    """Prepare and answer questions in this process, in order, ``group_size`` at a time, or fewer if they hold
    :data:`GROUP_TOKENS`."""
    for group in in_groups(pipeline.prepare(pools), (lambda _: 1, group_size), (tokens_held, GROUP_TOKENS)):
        yield pipeline.answer(group, tracker), pipeline.engine_names
        del group  # before the next one is prepared


def _sample(prepared: PreparedQuestion, chosen: Response, rejected: Sequence[Response]) -> PreferenceSample:
    pool, question, critical = prepared.pool, prepared.question, prepared.contexts.critical
    return PreferenceSample(
        id=question.id,
        doc_id=prepared.document.doc_id,
        question_id=question.id,
        kind=question.kind,
        question=question.question,
        answers=question.answers,
        prompt_ids=list(prepared.prompt.ids),
        chunks=prepared.training_chunks(),
        chosen=chosen,
        rejected=list(rejected),
        answer_in_critical=word_share(" ".join(map(pool.text, critical)), question.answers) == 1.0,
    )


@dataclass(slots=True, eq=False)
class Judgement:
    """All decisions on a question. ``preferred`` holds the candidates for the preferred response, as they were tried,
    and ``eligible`` those that the rules allow, as they are to be preferred. ``rejected`` holds the dis-preferred
    responses beside the ``chosen`` one."""

    prepared: PreparedQuestion
    preferred: Sequence[Decision]
    eligible: Sequence[Decision]
    chosen: Decision | None = None
    rejected: Sequence[Decision] = field(default=())

    @property
    def rule_against_rejected(self) -> Reason | None:
        """The first fault that the rules find in a dis-preferred response."""
        return next((decision.rule for decision in self.rejected if decision.rule), None)

    @property
    def reason(self) -> Reason | None:
        """The reason why the pair is not kept; None if it is. It is that of the first candidate that came furthest."""
        if self.chosen is None:
            return self.eligible[0].objection if self.eligible else self.preferred[0].rule
        return self.rule_against_rejected or next(filter(None, (d.objection for d in self.rejected)), None)
