"""Responses of a build: the engine generates what is missing, and the rules judge it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.build.preparing import PreparedQuestion
from logodata.contract import Question, Response, ResponseOrigin
from logodata.engines import GenerationResult
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.settings import open_engine
from logodata.judge.judged_response import Decision
from logodata.judge.rules import Measurer, preferred_fault, rejected_fault
from logodata.prompts import decode_text, encode_text
from logodata.recipe.settings import BuildRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Responses:
    """Responses of a build, with what the rules say of them.

    They are filed in ``log`` under the fingerprint of the model, or in memory only if it is None. ``turn_end`` is the
    token at the end of a response that ended by itself.
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
        """The engine of the build behind the log of its responses. The log is opened when the engine is first asked."""
        recipe = self._recipe
        log = ResponseLog(self._path, self._fingerprint, recipe.generation.cache)
        return CachedEngine(log, lambda: open_engine(recipe.engine, recipe.model))

    def preferred(self, prepared: PreparedQuestion) -> list[Decision]:
        """Return all candidates for the preferred response, with what the rules say of each."""
        strategy, question, judge = self._recipe.generation.preferred, prepared.question, self._recipe.judge
        guided = strategy == "guided"
        if strategy == "reference":
            ids = tuple(encode_text(self._tokenizer, question.answers[0]))
            found = [self._response(question, strategy, GenerationResult(question.id, ids, "stop"), "live")]
        else:
            found = [self._response(question, strategy, *self.engine.answer(request)) for request in prepared.preferred]
        faults = (preferred_fault(r, question.question, question.answers, judge, guided=guided) for r in found)
        pairs = zip(found, faults, strict=True)
        return [Decision(question, "preferred", n, response, fault) for n, (response, fault) in enumerate(pairs)]

    def rejected(self, prepared: PreparedQuestion, chosen: Response) -> list[Decision]:
        """Return the dis-preferred responses, with what the rules say of each beside the chosen one."""
        question, asked, judge = prepared.question, prepared.rejected, self._recipe.judge
        found = [self._response(question, name, *self.engine.answer(request)) for name, request in asked.items()]
        return [Decision(question, "rejected", n, r, rejected_fault(r, chosen, judge)) for n, r in enumerate(found)]

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
