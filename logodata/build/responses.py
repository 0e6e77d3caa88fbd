"""Responses of a build: generated where they are missing, and judged by the rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.build.preparing import PreparedQuestion
from logodata.common.console import Tracker
from logodata.contract import Question, Reason, Response, ResponseOrigin
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.settings import open_engine
from logodata.judge.decisions import Decision
from logodata.judge.rules import Measurer, preferred_fault, rejected_fault
from logodata.prompts import decode_text, encode_text
from logodata.recipe.settings import BuildRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Responses:
    """Responses of a build: generated where they are missing, then judged.

    Args:
        recipe: names engine and judge.
        model_fingerprint: of the recipe's model; responses are filed under it.
        log: what was generated before; new responses go there at once. None keeps them in memory only.
        tokenizer: turns tokens into the text that is judged.
        turn_end: the token that an ended response is trained with.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        model_fingerprint: str,
        log: Path | None,
        tokenizer: PreTrainedTokenizerBase,
        turn_end: int,
    ) -> None:
        self._recipe, self._fingerprint, self._path = recipe, model_fingerprint, log
        self._tokenizer, self._turn_end = tokenizer, turn_end
        self._measurer = Measurer(recipe.judge)

    @cached_property
    def engine(self) -> CachedEngine:
        """The build's engine behind its log of responses; the log is opened when the engine is first asked."""
        recipe = self._recipe
        log = ResponseLog(self._path, self._fingerprint, recipe.generation.cache)
        return CachedEngine(log, lambda: open_engine(recipe.engine, recipe.model))

    def generate(self, requests: Sequence[GenerationRequest], tracker: Tracker) -> None:
        """Have the engine answer the requests that the log does not answer; the engine is opened for the first."""
        self.engine.generate(requests, tracker, "responses")

    def preferred(self, prepared: PreparedQuestion) -> list[Decision]:
        """All candidates for the preferred response, with what the rules say of each."""
        strategy, question, judge = self._recipe.generation.preferred, prepared.question, self._recipe.judge
        if strategy == "reference":
            ids = tuple(encode_text(self._tokenizer, question.answers[0]))
            found = [self._response(question, strategy, GenerationResult(question.id, ids, "stop"), "live")]
        else:
            found = [self._response(question, strategy, *self.engine.answer(request)) for request in prepared.preferred]

        def fault(response: Response) -> Reason | None:
            guided = strategy == "guided"
            return preferred_fault(response, question.question, question.answers, judge, guided=guided)

        return [Decision(question, "preferred", n, response, fault(response)) for n, response in enumerate(found)]

    def rejected(self, prepared: PreparedQuestion, chosen: Response) -> list[Decision]:
        """The dis-preferred responses, with what the rules say of each beside the chosen one."""
        question, asked = prepared.question, prepared.rejected
        found = [self._response(question, name, *self.engine.answer(request)) for name, request in asked.items()]

        def fault(response: Response) -> Reason | None:
            return rejected_fault(response, chosen, self._recipe.judge)

        return [Decision(question, "rejected", n, response, fault(response)) for n, response in enumerate(found)]

    def _response(
        self, question: Question, strategy: str, result: GenerationResult, origin: ResponseOrigin
    ) -> Response:
        ended = result.finish_reason == "stop"
        text = decode_text(self._tokenizer, result.token_ids)
        return Response(
            strategy=strategy,
            text=text,
            token_ids=[*result.token_ids, self._turn_end] if ended else list(result.token_ids),
            ended=ended,
            **dict(self._measurer.measure(text, question.answers)),
            origin=origin,
        )
