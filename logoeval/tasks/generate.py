"""Generation that survives a kill: one record a prompt, on disk as soon as it is there, resumed by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from logodata.common.console import progress
from logodata.common.errors import UserError
from logodata.engines import FinishReason, GenerationRequest, GenerationResult
from logodata.prompts import decode_text
from logoeval.records import hash_ids
from logoeval.session import Session
from logoeval.tasks.record_file import Prediction, RecordFile, check_kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptItem(GenerationRequest):
    """A prompt to answer. ``template`` is the fingerprint of the template that wrote it."""

    template: str
    truncated: bool = False


class Completion(Prediction):
    """What is kept of every response; a task adds its scores."""

    template: str
    truncated: bool
    num_prompt_tokens: int
    stop_ids: tuple[int, ...]
    engine: str
    response: str
    num_response_tokens: int
    finish_reason: FinishReason


CompletionT = TypeVar("CompletionT", bound=Completion)


def complete(
    session: Session,
    items: Sequence[PromptItem],
    file: RecordFile[CompletionT],
    *,
    record: Callable[[Completion, GenerationResult], CompletionT],
    label: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[CompletionT]:
    """Answer every prompt once with the engine of ``session``, and return the records in the order of ``items``, whose
    ids are unique. What is in ``file`` is not made again. ``record`` adds the fields of the task. ``tokenizer`` decodes
    responses where the model's needs no chat template.

    Raises:
        UserError: a record is of another prompt than the one that now has its id, or another engine made it.
    """
    engine = session.engine
    hashes = {item.id: hash_ids(item.prompt_ids) for item in items}
    check_kept(file, hashes)
    waiting = {item.id: item for item in items if item.id not in file}
    for item in items:
        # Results name one engine, and compare refuses two: answers of both in one task would pass as one's.
        if item.id in file and file[item.id].engine != engine.name:
            raise UserError(
                f"record {item.id!r} was made by engine {file[item.id].engine!r}, now it is {engine.name!r}",
                where=str(file.path),
                mend="continue with that engine, or choose another -o",
            )
    if waiting:
        with progress(label, len(items), len(items) - len(waiting)) as tracker:
            for result in engine.generate(list(waiting.values())):
                item = waiting[result.id]
                made = Completion(
                    id=item.id,
                    prompt_hash=hashes[item.id],
                    template=item.template,
                    truncated=item.truncated,
                    num_prompt_tokens=len(item.prompt_ids),
                    stop_ids=item.sampling.stop_ids,
                    engine=engine.name,
                    response=decode_text(tokenizer or session.tokenizer, result.token_ids),
                    num_response_tokens=len(result.token_ids),
                    finish_reason=result.finish_reason,
                )
                file.append(record(made, result))
                tracker.advance()
    return [file[item.id] for item in items]
