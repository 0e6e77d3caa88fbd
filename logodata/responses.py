"""Every response of a build, by what was asked: the log that makes a build resumable, and the format of a shipped
cache.

A response is filed under the hash of model, prompt and sampling settings, so it can only ever be found by the request
that would produce it again.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.common.shards import Shard
from logodata.contract import ResponseOrigin
from logodata.engines import GenerationRequest, GenerationResult


def request_key(request: GenerationRequest, model: str) -> str:
    """Identity of a request: greedy ones by model and prompt, sampled ones by seed and request id too."""
    sampling = request.sampling
    identity: list[Any] = [model, list(request.prompt_ids), sampling.max_new_tokens, list(sampling.stop_ids)]
    if sampling.temperature > 0:
        identity += [sampling.temperature, sampling.top_p, sampling.seed, request.id]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


class ResponseLog:
    """Responses of one build, on disk as they come, backed by an optional read-only cache.

    Args:
        path: the build's own log.
        model: fingerprint of the model that answers.
        cache: a log of an earlier build.
    """

    def __init__(self, path: Path, model: str, cache: Path | Literal["embedded"] | None = None) -> None:
        self._model = model
        self._own = Shard(path, key="key")
        self._cached: dict[str, dict[str, Any]] = {} if cache is None else _read_cache(cache)

    def get(self, request: GenerationRequest) -> tuple[GenerationResult, ResponseOrigin] | None:
        """The response to this request and where it came from, if there is one."""
        key = request_key(request, self._model)
        origin: ResponseOrigin = "live" if key in self._own.records else "cache"
        record = self._own.records.get(key) or self._cached.get(key)
        if record is None:
            return None
        return GenerationResult(request.id, tuple(record["token_ids"]), record["finish_reason"]), origin

    def add(self, request: GenerationRequest, result: GenerationResult) -> None:
        """Keep a response."""
        record = {
            "key": request_key(request, self._model),
            "id": request.id,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
        }
        self._own.append(record)


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
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                records[record["key"]] = {"token_ids": record["token_ids"], "finish_reason": record["finish_reason"]}
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError("damaged cache record", where=f"{path}:{number}", mend="delete this line") from error
    return records
