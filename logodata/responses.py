"""Responses of a build: on disk by what was asked, generated where they are missing, judged by the rules.

The log makes a build resumable and is the format of a shipped cache: a response is filed under the hash of model,
prompt and sampling settings, so it can only ever be found by the request that would produce it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.candidates import Candidate
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.common.json_lines import json_objects
from logodata.common.shards import Shard
from logodata.common.words import without_reasoning
from logodata.contract import Response, ResponseOrigin
from logodata.decisions import Decision
from logodata.engines import Engine, GenerationRequest, GenerationResult
from logodata.engines.settings import open_engine
from logodata.judge import JudgedText, Measurer, Reason, preferred_fault, rejected_fault
from logodata.prompts import decode_text, encode_text
from logodata.recipe import BuildRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def request_key(request: GenerationRequest, model: str) -> str:
    """Identity of a request: greedy ones by model and prompt, sampled ones by seed and request id too."""
    sampling = request.sampling
    identity: list[Any] = [model, list(request.prompt_ids), sampling.max_new_tokens, list(sampling.stop_ids)]
    if sampling.temperature > 0:
        identity += [sampling.temperature, sampling.top_p, sampling.seed, request.id]
    if sampling.min_new_tokens:
        identity.append({"min_new_tokens": sampling.min_new_tokens})
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


class ResponseLog:
    """Responses of one build, on disk as they come, backed by an optional read-only cache.

    Args:
        path: the build's own log; None keeps responses in memory, until :meth:`forget`.
        model: fingerprint of the model that answers.
        cache: a log of an earlier build.
    """

    def __init__(self, path: Path | None, model: str, cache: Path | Literal["embedded"] | None = None) -> None:
        self._model = model
        self._shard = None if path is None else Shard(path, key="key")
        self._memory: dict[str, dict[str, Any]] = {}
        self._cached: dict[str, dict[str, Any]] = {} if cache is None else _read_cache(cache)

    def get(self, request: GenerationRequest) -> tuple[GenerationResult, ResponseOrigin] | None:
        """The response to this request and where it came from, if there is one."""
        key = request_key(request, self._model)
        own: Mapping[str, dict[str, Any]] = self._memory if self._shard is None else self._shard
        origin: ResponseOrigin = "live" if key in own else "cache"
        record = own.get(key) or self._cached.get(key)
        if record is None:
            return None
        return GenerationResult(request.id, tuple(record["token_ids"]), record["finish_reason"]), origin

    def answered(self, request: GenerationRequest) -> tuple[GenerationResult, ResponseOrigin]:
        """The same of a request that must have been answered by now."""
        found = self.get(request)
        if found is None:
            raise RuntimeError(f"the engine gave no response to request {request.id}")
        return found

    def missing(self, requests: Sequence[GenerationRequest]) -> dict[str, GenerationRequest]:
        """The requests that are not answered here, by their ids."""
        return {request.id: request for request in requests if self.get(request) is None}

    def complete(
        self, engine: Engine, missing: Mapping[str, GenerationRequest]
    ) -> Iterator[tuple[GenerationRequest, GenerationResult]]:
        """Have an engine answer; each response is kept before it is handed on."""
        for result in engine.generate(list(missing.values())):
            self.add(missing[result.id], result)
            yield missing[result.id], result

    def add(self, request: GenerationRequest, result: GenerationResult) -> None:
        """Keep a response."""
        key = request_key(request, self._model)
        record = {
            "key": key,
            "id": request.id,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
        }
        if self._shard is None:
            self._memory[key] = record
        else:
            self._shard.append(record)

    def forget(self) -> None:
        """Drop what is in memory only."""
        self._memory.clear()


class Responses:
    """Responses of a build: generated where they are missing, then judged.

    Args:
        recipe: names engine and judge.
        log: what was generated before; new responses go there at once.
        tokenizer: turns tokens into the text that is judged.
        turn_end: the token that an ended response is trained with.
    """

    def __init__(
        self, recipe: BuildRecipe, log: ResponseLog, tokenizer: PreTrainedTokenizerBase, turn_end: int
    ) -> None:
        self._recipe, self._log, self._tokenizer, self._turn_end = recipe, log, tokenizer, turn_end
        self._measurer = Measurer(recipe.judge)
        self._engine: Engine | None = None
        self._num_generated = self._num_tokens = 0
        self._seconds = 0.0

    @property
    def engine_name(self) -> str | None:
        """What generated; None if nothing had to be."""
        return self._engine.name if self._engine and self._num_generated else None

    def engine(self) -> Engine:
        """The build's engine, opened now if it is not open."""
        if self._engine is None:
            self._engine = open_engine(self._recipe.engine, self._recipe.model)
        return self._engine

    def forget(self) -> None:
        """Drop the responses that are in memory only."""
        self._log.forget()

    def generate(self, requests: Sequence[GenerationRequest], tracker: Tracker) -> None:
        """Have the engine answer the requests that the log does not answer; the engine is opened for the first."""
        missing = self._log.missing(requests)
        if not missing:
            return
        engine = self.engine()
        start, before = time.monotonic(), self._seconds
        for request, result in self._log.complete(engine, missing):
            self._num_generated += 1
            self._num_tokens += len(request.prompt_ids) + len(result.token_ids)
            self._seconds = before + time.monotonic() - start
            # Prompt tokens count whether or not the engine finds them in its prefix cache.
            rate = f"{self._num_tokens / max(self._seconds, 1e-9):.0f} tokens/s"
            tracker.advance(0, responses=f"{self._num_generated} at {rate}")

    def preferred(self, plan: Candidate) -> list[Decision]:
        """All candidates for the preferred response, with what the rules say of each."""
        strategy, question = self._recipe.generation.preferred, plan.question
        if strategy == "reference":
            ids = tuple(encode_text(self._tokenizer, question.answers[0]))
            found = [self._response(plan, strategy, GenerationResult(question.id, ids, "stop"), "live")]
        else:
            found = [self._response(plan, strategy, *self._log.answered(request)) for request in plan.preferred]
        guided = strategy == "guided"

        def fault(response: Response) -> Reason | None:
            return preferred_fault(
                _judged(response), question.question, question.answers, self._recipe.judge, guided=guided
            )

        return [Decision(question, "preferred", n, response, fault(response)) for n, response in enumerate(found)]

    def rejected(self, plan: Candidate, chosen: Response) -> list[Decision]:
        """The dis-preferred responses, with what the rules say of each beside the chosen one."""
        found = [self._response(plan, name, *self._log.answered(request)) for name, request in plan.rejected.items()]

        def fault(response: Response) -> Reason | None:
            return rejected_fault(_judged(response), _judged(chosen), self._recipe.judge)

        return [Decision(plan.question, "rejected", n, response, fault(response)) for n, response in enumerate(found)]

    def _response(self, plan: Candidate, strategy: str, result: GenerationResult, origin: ResponseOrigin) -> Response:
        ended = result.finish_reason == "stop"
        text = decode_text(self._tokenizer, result.token_ids)
        return Response(
            strategy=strategy,
            text=text,
            token_ids=[*result.token_ids, self._turn_end] if ended else list(result.token_ids),
            ended=ended,
            **self._measurer.measure(text, plan.question.answers)._asdict(),
            origin=origin,
        )


def _judged(response: Response) -> JudgedText:
    assert response.verdict is not None
    return JudgedText(without_reasoning(response.text), response.ended, response.verdict)


def _read_cache(cache: Path | Literal["embedded"]) -> dict[str, dict[str, Any]]:
    path = (
        Path(str(resources.files("logodata"))) / "embedded" / "responses.jsonl" if cache == "embedded" else Path(cache)
    )
    if not path.is_file():
        raise UserError(
            "no such cache of responses",
            where=str(path),
            mend="set generation.cache=null, or give the work/responses.jsonl of a build",
        )
    records: dict[str, dict[str, Any]] = {}
    for where, record in json_objects(path, mend="delete this line"):
        key, token_ids, reason = (record.get(name) for name in ("key", "token_ids", "finish_reason"))
        if (
            not isinstance(key, str)
            or reason not in ("stop", "length")
            or not isinstance(token_ids, list)
            or not all(type(token) is int and token >= 0 for token in token_ids)
        ):
            raise UserError("damaged: not a response", where=where, mend="delete this line")
        records[key] = {"token_ids": token_ids, "finish_reason": reason}
    return records
