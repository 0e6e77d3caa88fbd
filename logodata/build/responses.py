"""Responses of a build: the engine generates what is missing, and the rules judge it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from logodata.build.preparing import TRAINING, PreparedQuestion, QuestionPreparer
from logodata.common.words import holds_reasoning
from logodata.contract import Question, Reason, Response, ResponseOrigin
from logodata.engines import GenerationRequest
from logodata.engines.reasoning import Reply
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.settings import asked_fingerprint, open_engine
from logodata.judge.judged_response import Decision
from logodata.judge.rules import Measurer, preferred_fault, rejected_fault
from logodata.prompts import encode_text, gives_back
from logodata.recipe.settings import BuildRecipe


class Responses:
    """Responses of a build, with what the rules say of them.

    They are filed in ``log`` under the fingerprint of the model, or in memory only if it is None. ``preparer`` asks for
    them.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        model_fingerprint: str,
        log: Path | None,
        preparer: QuestionPreparer,
    ) -> None:
        self._recipe, self._fingerprint, self._path, self._preparer = recipe, model_fingerprint, log, preparer
        self._tokenizer = preparer.tokenizer
        self._measurer = Measurer(recipe.judge)

    @cached_property
    def engine(self) -> CachedEngine:
        """The engine of the build behind the log of its responses. The log is opened when the engine is first asked."""
        recipe = self._recipe
        log = ResponseLog(self._path, self._fingerprint, recipe.generation.cache)
        return CachedEngine(log, lambda: open_engine(recipe.engine, recipe.model, self._tokenizer, recipe.adapter))

    @cached_property
    def rejecting_engine(self) -> CachedEngine:
        """The engine that writes dis-preferred responses: that of the build, or one without its adapter."""
        recipe = self._recipe
        if not recipe.uses_base:
            return self.engine
        path = None if self._path is None else self._path.with_name("base-responses.jsonl")
        log = ResponseLog(path, asked_fingerprint(recipe.engine, recipe.model), recipe.generation.cache)
        engine = recipe.engine.model_copy(update={"served_model": None})  # that is the adapter's name
        return CachedEngine(log, lambda: open_engine(engine, recipe.model, self._tokenizer))

    def forget(self) -> None:
        """Drop the responses that are in memory only."""
        self.engine.forget()
        self.rejecting_engine.forget()

    def preferred(self, prepared: PreparedQuestion) -> list[Decision]:
        """Return all candidates for the preferred response, with what the rules say of each."""
        strategy, question, judge = self._recipe.generation.preferred, prepared.question, self._recipe.judge
        guided = strategy == "guided"
        if strategy == "reference":
            reference = question.answers[0]
            ids = tuple(encode_text(self._tokenizer, reference))
            found = [self._measured(question, strategy, Reply(ids, reference, "stop"), "live")]
        else:
            found = [self._response(question, strategy, request) for request in prepared.preferred]
        faults = (
            self._text_fault(r) or preferred_fault(r, question.question, question.answers, judge, guided=guided)
            for r in found
        )
        pairs = zip(found, faults, strict=True)
        return [Decision(question, "preferred", n, response, fault) for n, (response, fault) in enumerate(pairs)]

    def rejected(self, prepared: PreparedQuestion, chosen: Decision, candidates: Sequence[Decision]) -> list[Decision]:
        """Return the dis-preferred responses, with what the rules say of each beside the chosen one.

        ``candidates`` for the preferred response give one where ``generation.rejected`` asks for a wrong one of them:
        the first that the rules allow, else the first.
        """
        question, asked, judge = prepared.question, prepared.rejected, self._recipe.judge
        found = [self._response(question, name, request, self.rejecting_engine) for name, request in asked.items()]
        if self._recipe.generation.rejected == "critical_wrong":
            found = [candidate.response for candidate in candidates if candidate is not chosen]
        faults = (self._text_fault(r) or rejected_fault(r, chosen.response, judge) for r in found)
        decisions = [
            Decision(question, "rejected", n, r, fault) for n, (r, fault) in enumerate(zip(found, faults, strict=True))
        ]
        if self._recipe.generation.rejected == "critical_wrong":
            return [next((decision for decision in decisions if decision.rule is None), decisions[0])]
        return decisions

    def tries(self, prepared: PreparedQuestion) -> list[Decision]:
        """Return the answers by which a question is solved or not, with what the rules say of each."""
        found = [self._response(prepared.question, TRAINING, request) for request in prepared.tries]
        return [Decision(prepared.question, "try", n, response, None) for n, response in enumerate(found)]

    def contenders(self, prepared: PreparedQuestion) -> list[Decision]:
        """Return the answers that are to be graded. One that the rules find wrong is to be dis-preferred, and every
        other one to be preferred; each has the fault that keeps it from its role."""
        question, judge = prepared.question, self._recipe.judge
        decisions = []
        for n, request in enumerate(prepared.preferred):
            response = self._response(question, TRAINING, request)
            is_wrong = judge.enabled and response.verdict == "wrong"
            fault = self._text_fault(response) or (
                rejected_fault(response, None, judge)
                if is_wrong
                else preferred_fault(response, question.question, question.answers, judge, guided=False)
            )
            decisions.append(Decision(question, "rejected" if is_wrong else "preferred", n, response, fault))
        return decisions

    def _text_fault(self, response: Response) -> Reason | None:
        """Return the fault of a response that cannot be trained on. It holds reasoning between markers that are not the
        model's, which the judge leaves out and training would not. Or its tokens do not say its text: texts of servers
        and references are tokenised here, by a tokenizer that may change them (Unicode forms, spaces)."""
        is_kept = self._recipe.generation.keep_reasoning or response.strategy == "reference"
        if not is_kept and holds_reasoning(response.text):
            return "holds_reasoning"
        ids = response.token_ids[:-1] if response.ended else response.token_ids
        return None if gives_back(self._tokenizer, ids, response.text) else "tokens_lose_text"

    def _response(
        self, question: Question, strategy: str, request: GenerationRequest, engine: CachedEngine | None = None
    ) -> Response:
        result, origin = (engine or self.engine).answer(request)
        if self._recipe.generation.keep_reasoning:
            whole = result.said(self._tokenizer)
            return self._measured(question, strategy, Reply(result.token_ids, whole, result.finish_reason), origin)
        return self._measured(question, strategy, self._preparer.reply(request, result), origin)

    def _measured(self, question: Question, strategy: str, reply: Reply, origin: ResponseOrigin) -> Response:
        ended = reply.finish_reason == "stop"
        return Response(
            strategy=strategy,
            text=reply.text,
            token_ids=[*reply.token_ids, self._preparer.stop_ids[0]] if ended else list(reply.token_ids),
            ended=ended,
            **dict(self._measurer.measure(reply.text, question.answers)),
            origin=origin,
        )
