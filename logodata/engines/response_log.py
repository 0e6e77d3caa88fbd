"""Responses on disk by what was asked, and an engine that is asked for those that are missing.

The log makes commands resumable and is the format of a shipped cache: a response is filed under the hash of model,
prompt and sampling settings, so it can only ever be found by the request that would produce it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.common.append_log import AppendLog
from logodata.common.console import Tracker, note
from logodata.common.errors import UserError
from logodata.common.json_files import json_objects
from logodata.contract import ResponseOrigin
from logodata.engines import Engine, GenerationRequest, GenerationResult, Usage
from logodata.engines.prices import describe_servers, find_prices

if TYPE_CHECKING:
    from logodata.engines.settings import EngineSettings


def request_key(request: GenerationRequest, model: str) -> str:
    """Return the hash that identifies a request: of the model, the prompt and the length limits, and for a sampled
    response also of the sampling settings and the request's id."""
    sampling = request.sampling
    identity: list[Any] = [model, list(request.prompt_ids), sampling.max_new_tokens, list(sampling.stop_ids)]
    if sampling.temperature > 0:
        identity += [sampling.temperature, sampling.top_p, sampling.seed, request.id]
    if sampling.min_new_tokens:
        identity.append({"min_new_tokens": sampling.min_new_tokens})
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


class ResponseLog:
    """The responses of one model. They are on disk as soon as they come, and a cache that is only read stands behind
    them.

    Args:
        path: The command's own log; None keeps responses in memory, until :meth:`forget`.
        model: The fingerprint of the model that answers.
        cache: The log of an earlier build.
    """

    def __init__(self, path: Path | None, model: str, cache: Path | Literal["embedded"] | None = None) -> None:
        self._model = model
        self._log = None if path is None else AppendLog(path, key="key")
        self._memory: dict[str, dict[str, Any]] = {}
        self._cached: dict[str, dict[str, Any]] = {} if cache is None else _read_cache(cache)

    @property
    def _own(self) -> Mapping[str, dict[str, Any]]:
        return self._memory if self._log is None else self._log

    def missing(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """Return the requests without a response, of equal ones the first."""
        found: dict[str, GenerationRequest] = {}
        for request in requests:
            key = request_key(request, self._model)
            if key not in self._own and key not in self._cached:
                found.setdefault(key, request)
        return list(found.values())

    def get(self, request: GenerationRequest) -> tuple[GenerationResult, ResponseOrigin] | None:
        """Return the response to a request and where it came from; None if there is none."""
        key = request_key(request, self._model)
        origin: ResponseOrigin = "live" if key in self._own else "cache"
        record = self._own.get(key) or self._cached.get(key)
        if record is None:
            return None
        return _result(request.id, record), origin

    def add(self, request: GenerationRequest, result: GenerationResult) -> None:
        """Store a response."""
        key = request_key(request, self._model)
        record = {
            "key": key,
            "id": request.id,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
            **{name: value for name in _OF_TEXTS if (value := getattr(result, name)) is not None},
            **({"usage": [*result.usage]} if result.usage else {}),
            **({"withheld": True} if result.withheld else {}),
        }
        if self._log is None:
            self._memory[key] = record
        else:
            self._log.append(record)

    def own(self) -> Iterator[GenerationResult]:
        """Yield the responses of this log, those of the cache left out."""
        yield from (_result(key, record) for key, record in self._own.items())

    def forget(self) -> None:
        """Drop the responses that are only in memory."""
        self._memory.clear()


class CachedEngine:
    """An engine that is asked only what its log does not answer, and that is opened for the first such request. New
    responses go to the log at once."""

    def __init__(self, log: ResponseLog, open_engine: Callable[[], Engine]) -> None:
        self._log, self._open_engine = log, open_engine
        self._engine: Engine | None = None
        self._num_responses = self._num_tokens = 0
        self._seconds = 0.0

    @property
    def log(self) -> ResponseLog:
        """The log of responses."""
        return self._log

    @property
    def name(self) -> str | None:
        """The name of the engine that generated; None if it generated nothing."""
        return self._engine.name if self._engine and self._num_responses else None

    def open(self) -> Engine:
        """Return the engine, which is opened now if it is not open."""
        if self._engine is None:
            self._engine = self._open_engine()
        return self._engine

    def generate(self, requests: Sequence[GenerationRequest], tracker: Tracker, noun: str) -> None:
        """Have the engine answer the requests that the log does not answer.

        Each is asked once, however often it stands among the requests. The tracker shows, under the name ``noun``, how
        many responses were generated, and how many tokens were read and written in a second.
        """
        missing = {request.id: request for request in self._log.missing(requests)}
        if not missing:
            return
        engine = self.open()
        start, before = time.monotonic(), self._seconds
        for result in engine.generate(list(missing.values())):
            request = missing[result.id]
            self._log.add(request, result)
            self._num_responses += 1
            self._num_tokens += len(request.prompt_ids) + len(result.token_ids)
            self._seconds = before + time.monotonic() - start
            # Prompt tokens count whether or not the engine finds them in its prefix cache.
            rate = f"{self._num_tokens / max(self._seconds, 1e-9):.0f} tokens/s"
            tracker.advance(0, **{noun: f"{self._num_responses} at {rate}"})

    def answer(self, request: GenerationRequest) -> tuple[GenerationResult, ResponseOrigin]:
        """Return the response to a request that :meth:`generate` was given, and where it came from."""
        found = self._log.get(request)
        if found is None:
            raise RuntimeError(f"the engine gave no response to request {request.id}")
        return found

    def forget(self) -> None:
        """Drop the responses that are only in memory."""
        self._log.forget()


def note_usage(what: str, engine: CachedEngine, settings: EngineSettings, model: str) -> None:
    """Say what chat servers have counted and withheld of the responses in an engine's log, and what they cost."""
    if settings.kind != "chat":
        return
    for said in describe_servers(engine.log.own(), find_prices(settings, model)):
        note(f"{what}: {said}")


_OF_TEXTS = ("text", "reasoning")


def _result(request_id: str, record: dict[str, Any]) -> GenerationResult:
    usage = record.get("usage")
    texts = {name: record.get(name) for name in _OF_TEXTS}
    return GenerationResult(
        request_id,
        tuple(record["token_ids"]),
        record["finish_reason"],
        **texts,
        usage=None if usage is None else Usage(*usage),
        withheld=bool(record.get("withheld")),
    )


def _read_cache(cache: Path | Literal["embedded"]) -> dict[str, dict[str, Any]]:
    if cache == "embedded":
        cache = Path(str(resources.files("logodata.sources"))) / "embedded" / "responses.jsonl"
    if not cache.is_file():
        mend = "set generation.cache=null, or give the work/responses.jsonl of a build"
        raise UserError("no such cache of responses", where=str(cache), mend=mend)
    records: dict[str, dict[str, Any]] = {}
    for where, record in json_objects(cache, mend="delete this line"):
        key, token_ids, reason = (record.get(name) for name in ("key", "token_ids", "finish_reason"))
        if (
            not isinstance(key, str)
            or reason not in ("stop", "length")
            or not isinstance(token_ids, list)
            or not all(type(token) is int and token >= 0 for token in token_ids)
            or not all(isinstance(record.get(name), str | None) for name in _OF_TEXTS)
        ):
            raise UserError("damaged: not a response", where=where, mend="delete this line")
        texts = {name: record[name] for name in _OF_TEXTS if name in record}
        records[key] = {"token_ids": token_ids, "finish_reason": reason, **texts}
    return records
