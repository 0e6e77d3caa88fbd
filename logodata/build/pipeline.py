"""The stages of a build: prepare the questions of a pool, generate responses, judge them, and decide every question.

Results depend on no state of a stage. So any number of processes can share out the pools
(:mod:`logodata.build.ray_driver`), and :func:`decide_here` uses one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from logodata.build.judgement import Judgement, unusable
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
from logodata.contexts.scores import Evaluator, open_evaluator
from logodata.contract import BuildIdentity, PromptFingerprints, QuestionOutcome
from logodata.engines import Engine
from logodata.engines.response_log import note_usage
from logodata.engines.settings import engine_window
from logodata.judge.grader import Grader, ToGrade
from logodata.judge.grades import best_and_worst, sides
from logodata.judge.judged_response import Decision, eligible, is_solved
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
        self.preparer = QuestionPreparer(recipe, tokenizer, build_window(recipe))
        self.responses = Responses(recipe, model_fingerprint, log, self.preparer)
        verdicts = None if log is None else log.with_name("verdicts.jsonl")
        self.judge = _open_judge(recipe, model_fingerprint, verdicts, lambda: self.responses.engine.open())

    @cached_property
    def identity(self) -> BuildIdentity:
        """What decides a build besides its recipe and its source. Its folder is bound to it.

        It holds fingerprints of prompts, because chat templates of one name may differ in what they render.
        """
        preparer, judge = self.preparer, self.judge
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
        judge = self.judge.engine.name if self.judge else None
        names = {"engine": self.responses.engine.name or self.responses.rejecting_engine.name, "judge_engine": judge}
        return {key: name for key, name in names.items() if name}

    def note_usage(self) -> None:
        """Say which tokens chat servers have counted for the responses and verdicts in the logs, and what they cost."""
        recipe, judge = self._recipe, self._recipe.judge.asked
        note_usage("responses", self.responses.engine, recipe.engine, recipe.model)
        if self.judge and judge:
            note_usage("verdicts", self.judge.engine, judge_engine(recipe, judge), judge.name or recipe.model)

    def forget(self) -> None:
        """Drop the responses and replies that are in memory only."""
        self.responses.forget()
        if self.judge:
            self.judge.engine.forget()

    def answer(self, questions: Sequence[Prepared], tracker: Tracker) -> list[QuestionOutcome]:
        """Generate and judge, and return the outcome of each question, in order."""
        judgements = [Judgement(question) for question in questions if isinstance(question, PreparedQuestion)]
        self._solve(judgements, tracker)
        worth_asking = [judgement for judgement in judgements if judgement.fault is None]
        if isinstance(self.judge, Grader):
            self._grade(self.judge, worth_asking, tracker)
        else:
            self._compare_contexts(worth_asking, tracker)
        judged = iter(judgements)
        return [
            unusable(question) if isinstance(question, UnusableQuestion) else next(judged).outcome()
            for question in questions
        ]

    def _solve(self, judgements: Sequence[Judgement], tracker: Tracker) -> None:
        """Count the right answers to each question, where that decides whether it is asked."""
        settings = self._recipe.solve
        if settings is None:
            return
        least, most = settings.keep
        self.responses.engine.generate([it for one in judgements for it in one.prepared.tries], tracker, "responses")
        for judgement in judgements:
            judgement.others += self.responses.tries(judgement.prepared)
        right = [one for judgement in judgements for one in judgement.others if one.response.verdict == "right"]
        self._ask(right, tracker)
        for judgement in judgements:
            solved = sum(is_solved(attempt.response.verdict, attempt.model_verdict) for attempt in judgement.others)
            if not least <= solved <= most:
                judgement.fault = "solved_too_rarely" if solved < least else "solved_too_often"

    def _compare_contexts(self, judgements: Sequence[Judgement], tracker: Tracker) -> None:
        """Choose a response from the critical chunks, and set it beside those from other contexts."""
        responses, keep_bare = self.responses, self._recipe.judge.keep_bare_reference
        first = [request for judgement in judgements for request in judgement.prepared.preferred]
        responses.engine.generate(first, tracker, "responses")
        for judgement in judgements:
            judgement.preferred = responses.preferred(judgement.prepared)
            judgement.eligible = eligible(judgement.preferred, keep_bare_reference=keep_bare)
        self._choose(judgements, tracker)
        # Dis-preferred responses are generated only if there is something to prefer to them.
        worthwhile = [judgement for judgement in judgements if judgement.chosen]
        second = [request for judgement in worthwhile for request in judgement.prepared.rejected.values()]
        responses.rejecting_engine.generate(second, tracker, "responses")
        for judgement in worthwhile:
            assert judgement.chosen is not None
            judgement.rejected = responses.rejected(judgement.prepared, judgement.chosen, judgement.preferred)
        by_the_rules = [judgement for judgement in worthwhile if not judgement.rule_against_rejected]
        self._ask([decision for judgement in by_the_rules for decision in judgement.rejected], tracker)

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
        if isinstance(self.judge, ModelJudge):
            self.judge.judge(decisions, tracker)

    def _grade(self, grader: Grader, judgements: Sequence[Judgement], tracker: Tracker) -> None:
        """Grade answers from the training context, and set the best one beside the worst."""
        grader.load_evaluator()
        requests = [request for judgement in judgements for request in judgement.prepared.preferred]
        self.responses.engine.generate(requests, tracker, "responses")
        graded: list[tuple[Judgement, list[Decision], list[Decision]]] = []
        for judgement in judgements:
            answers = self.responses.contenders(judgement.prepared)
            judgement.preferred = [answer for answer in answers if answer.role == "preferred"]
            judgement.others += [answer for answer in answers if answer.role != "preferred"]
            found = sides(answers, self._recipe.judge)
            if isinstance(found, str):
                judgement.fault = found
            else:
                graded.append((judgement, *found))
        asked = []
        for judgement, winners, losers in graded:
            either = list({id(answer): answer for answer in (*winners, *losers)}.values())
            asked.append(ToGrade(judgement.prepared.question, judgement.prepared.context, either))
        grader.grade(asked, tracker)
        for judgement, winners, losers in graded:
            pair = best_and_worst(winners, losers, grader.settings)
            if isinstance(pair, str):
                judgement.fault = pair
            else:
                judgement.choose(*pair)


def decide_here(pipeline: Pipeline, pools: Iterable[Asked], group_size: int, tracker: Tracker) -> Generator[Decided]:
    """Prepare and answer questions in this process, in order, ``group_size`` at a time, or fewer if they hold
    :data:`GROUP_TOKENS`."""
    for group in in_groups(pipeline.prepare(pools), (lambda _: 1, group_size), (tokens_held, GROUP_TOKENS)):
        yield pipeline.answer(group, tracker), pipeline.engine_names
        del group  # before the next one is prepared


def build_window(recipe: BuildRecipe) -> int:
    """Return the most tokens of a prompt with its response, for every model that writes responses."""
    window = engine_window(recipe.engine, recipe.model, recipe.adapter)
    return min(window, engine_window(recipe.engine, recipe.model)) if recipe.uses_base else window


def _open_judge(
    recipe: BuildRecipe, fingerprint: str, log: Path | None, build_engine: Callable[[], Engine]
) -> ModelJudge | Grader | None:
    judge = recipe.judge
    if judge.grades is not None:
        return Grader(recipe, judge, judge.grades, fingerprint, log, build_engine)
    return None if judge.model is None else ModelJudge(recipe, judge.model, fingerprint, log, build_engine)
