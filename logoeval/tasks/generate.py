"""Generation that survives a kill: one prediction record a sample, on disk as soon as it is there, resumed by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.append_log import AppendLog
from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.engines import Engine, GenerationRequest, GenerationResult, Sampling
from logodata.prompts import decode_text
from logoeval.records import hash_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt to answer: ``template`` is the fingerprint of the template that wrote it; ``max_new_tokens`` overrides
    the sampling's."""

    id: str
    prompt_ids: tuple[int, ...]
    template: str
    truncated: bool = False
    max_new_tokens: int | None = None


def complete(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[PromptItem],
    *,
    sampling: Sampling,
    path: Path,
    fields: Callable[[str, GenerationResult], dict[str, Any]],
    label: str,
) -> list[dict[str, Any]]:
    """Answer every prompt once and return the prediction records in the order of ``items``.

    Args:
        engine: completes the prompts.
        tokenizer: decodes the responses.
        items: ids must be unique.
        sampling: the same for all, but for ``max_new_tokens`` of an item.
        path: the JSON-lines file; records already in it are kept, not made again.
        fields: what the task adds to a record, from the response text and the result.
        label: of the progress bar.

    Raises:
        UserError: a record on disk answers another prompt than the one that now has its id, or another engine made it.
    """
    log = AppendLog(path)
    hashes = {item.id: hash_ids(item.prompt_ids) for item in items}
    for record_id, prompt_hash in hashes.items():
        if record_id in log:
            _check_kept(log[record_id], prompt_hash, engine.name, path)
    waiting = {item.id: item for item in items if item.id not in log}
    requests = [GenerationRequest(item.id, item.prompt_ids, _sampling(item, sampling)) for item in waiting.values()]
    if requests:
        with progress(label, len(items), len(items) - len(requests)) as tracker:
            for result in engine.generate(requests):
                item = waiting[result.id]
                response = decode_text(tokenizer, result.token_ids)
                record = {
                    "id": item.id,
                    "prompt_hash": hashes[item.id],
                    "template": item.template,
                    "truncated": item.truncated,
                    "num_prompt_tokens": len(item.prompt_ids),
                    "stop_ids": list(sampling.stop_ids),
                    "engine": engine.name,
                    "response": response,
                    "num_response_tokens": len(result.token_ids),
                    "finish_reason": result.finish_reason,
                    **fields(response, result),
                }
                log.append(record)
                tracker.advance()
    return [log[item.id] for item in items]


def _check_kept(record: dict[str, Any], prompt_hash: str, engine: str, path: Path) -> None:
    if record["prompt_hash"] != prompt_hash:
        raise UserError(
            f"record {record['id']!r} answers another prompt", where=str(path), mend="evaluate into another folder"
        )
    # Results name one engine, and compare refuses two: answers of both in one task would pass as one's.
    if record["engine"] != engine:
        raise UserError(
            f"record {record['id']!r} was made by engine {record['engine']!r}, now it is {engine!r}",
            where=str(path),
            mend="continue with that engine, or choose another -o",
        )


def _sampling(item: PromptItem, sampling: Sampling) -> Sampling:
    return sampling if item.max_new_tokens is None else replace(sampling, max_new_tokens=item.max_new_tokens)
