"""Generation that survives a kill: one record a prompt, on disk as soon as it is there, resumed by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from logodata.common.console import note, progress
from logodata.common.errors import UserError
from logodata.common.records import ABSENT
from logodata.engines import FinishReason, GenerationRequest, GenerationResult, Usage
from logodata.engines.prices import describe_estimate, describe_servers, find_prices
from logodata.engines.reasoning import Reasoning, Reply
from logoeval.records import Metric, Outcome, hash_ids
from logoeval.session import Session
from logoeval.tasks.record_file import Prediction, RecordFile, check_kept


@dataclass(frozen=True, slots=True)
class PromptItem(GenerationRequest):
    """A prompt to answer. ``template`` is the fingerprint of the template that wrote it."""

    template: str
    truncated: bool = False
    reasons: bool = True
    """Whether the model may reason first. Without a chat template around it a prompt is a text to continue."""


class Completion(Prediction):
    """What is kept of every response; a task adds its scores."""

    template: str
    truncated: bool
    num_prompt_tokens: int
    stop_ids: tuple[int, ...]
    engine: str
    response: str
    """The answer, which alone is scored."""
    num_response_tokens: int
    finish_reason: FinishReason
    reasoning: str | None = ABSENT
    """What the model wrote before its answer, if it reasoned."""
    num_reasoning_tokens: int | None = ABSENT
    reasoning_cut: bool | None = ABSENT
    """Whether the reasoning did not end within its budget; the answer is empty then."""
    usage: Usage | None = ABSENT
    """The tokens of the prompt and of the response that a chat server counted."""
    withheld: bool | None = ABSENT
    """Whether a chat server refused to respond, or to say more."""


CompletionT = TypeVar("CompletionT", bound=Completion)


def complete(
    session: Session,
    items: Sequence[PromptItem],
    file: RecordFile[CompletionT],
    *,
    record: Callable[[Completion, GenerationResult], CompletionT],
    label: str,
) -> list[CompletionT]:
    """Answer every prompt once with the engine of ``session``, and return the records in the order of ``items``, whose
    ids are unique. What is in ``file`` is not made again. ``record`` adds the fields of the task.

    The sampling of an item is that of its answer. The budget of reasoning is added here, and ``record`` gets the answer
    alone, in both arguments.

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
        requests = [_request(session, item) for item in waiting.values()]
        if prices := find_prices(session.settings.engine, session.settings.model):
            note(f"{label}: {describe_estimate(requests, prices)}")
        with progress(label, len(items), len(items) - len(waiting)) as tracker:
            for whole in engine.generate(requests):
                item = waiting[whole.id]
                reply = _reply(session, item, whole)
                result = GenerationResult(whole.id, reply.token_ids, reply.finish_reason)
                made = Completion(
                    id=item.id,
                    prompt_hash=hashes[item.id],
                    template=item.template,
                    truncated=item.truncated,
                    num_prompt_tokens=len(item.prompt_ids),
                    stop_ids=item.sampling.stop_ids,
                    engine=engine.name,
                    response=reply.text,
                    num_response_tokens=len(reply.token_ids),
                    finish_reason=reply.finish_reason,
                    **_reasoned(reply),
                    usage=whole.usage,
                    withheld=whole.withheld or None,
                )
                file.append(record(made, result))
                tracker.advance()
    return [file[item.id] for item in items]


def _request(session: Session, item: PromptItem) -> GenerationRequest:
    if not (session.reasoning.budget and item.reasons):
        return item  # without asking for the end of a turn: a model without a chat template has none
    return replace(item, sampling=session.reasoning.sampling(item.sampling, session.stop_ids))


def _reply(session: Session, item: PromptItem, whole: GenerationResult) -> Reply:
    if not item.reasons:
        return Reply(whole.token_ids, whole.said(session.bare_tokenizer), whole.finish_reason)
    return session.reasoning.split(whole, item.sampling, opened=session.reasoning.opens(item.prompt_ids))


def _reasoned(reply: Reply) -> dict[str, Any]:
    if reply.reasoning is None:
        return {}
    return {
        "reasoning": reply.reasoning,
        "num_reasoning_tokens": reply.num_reasoning_tokens,
        "reasoning_cut": reply.cut,
    }


NO_PREFIX_NOTE = (
    "the model reasons first: no answer prefix was sent, answers may have its tokens more, and the lengths do not hold "
    "the reasoning"
)
"""Of tasks that begin the answer themselves: an answer cannot begin before the reasoning."""

REASONING_METRICS = [
    Metric.share(
        "reasoning_cut",
        "Cut while reasoning",
        "Share of the replies whose reasoning did not end, or not within its budget; their answers count as empty.",
        "lower",
    ),
    Metric(
        key="reasoning_tokens",
        label="Reasoning in tokens",
        explanation="Length of what the model wrote before its answer, markers included; 0 where it did not reason. "
        "Reasoning that was cut took the answer's tokens, too.",
        kind="count",
        headline=False,
    ),
]


def reasoning_note(reasoning: Reasoning, num_replies: int, num_reasoned: int, num_cut: int) -> str:
    """Return what a reader should know of replies for which the model had a budget of reasoning."""
    return (
        f"{num_reasoned:,} of {num_replies:,} replies reasoned, up to {reasoning.closing!r} and within "
        f"{reasoning.budget:,} tokens; {num_cut:,} did not come to its end, and their answers count as empty"
    )


def with_reasoning(outcome: Outcome, session: Session, answers: Sequence[Completion]) -> Outcome:
    """Add to the outcome of a task what its ``answers``, one a row, took beside their texts: the tokens that a server
    counted, and the reasoning. That is measured where the model was expected to reason, so that equal settings have
    equal measures, and else there is a note where it did."""
    outcome = _with_server(outcome, session, answers)
    budget, reasoned = session.reasoning.budget, [answer for answer in answers if answer.reasoning is not None]
    cut = sum(bool(answer.reasoning_cut) for answer in answers)
    if not budget:
        if not reasoned:
            return outcome
        said = (
            f"{len(reasoned):,} of {len(answers):,} replies reasoned without a budget for it, and {cut:,} were cut "
            "there: their answers count as empty (give thinking_tokens=8192, or turn reasoning off, such as by "
            "chat_template_args.enable_thinking=false)"
        )
        return replace(outcome, notes=[*outcome.notes, said])
    rows = [
        row.model_copy(
            update={
                "scores": {
                    **row.scores,
                    "reasoning_cut": float(bool(answer.reasoning_cut)),
                    "reasoning_tokens": float(answer.num_reasoning_tokens or 0),
                }
            }
        )
        for row, answer in zip(outcome.samples, answers, strict=True)
    ]
    said = reasoning_note(session.reasoning, len(answers), len(reasoned), cut)
    return replace(outcome, metrics=[*outcome.metrics, *REASONING_METRICS], samples=rows, notes=[*outcome.notes, said])


def _with_server(outcome: Outcome, session: Session, answers: Sequence[Completion]) -> Outcome:
    settings = session.settings
    if settings.engine.kind != "chat":
        return outcome
    said = [
        "a chat server answered: each prompt was one user's message in the server's own chat template, with the "
        "beginning of the answer at its end where the task gives one; lengths are in tokens of " + settings.model
    ]
    if not settings.engine.decodes_as_told:
        said.append("the server decoded by its own settings: the answers are not greedy, and cannot be had again")
    said += describe_servers(answers, find_prices(settings.engine, settings.model))
    return replace(outcome, notes=[*outcome.notes, *said])
