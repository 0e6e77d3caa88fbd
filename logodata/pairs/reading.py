"""Make a row of any form into a pair: what the model reads, and the responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from logodata.contract import PairFormat
from logodata.pairs.formats import PairRow
from logodata.pairs.messages import (
    Message,
    PairFault,
    check_prompt,
    check_text,
    read_history,
    read_messages,
    read_tools,
)

Answer = str | Message
"""A response: a text, or the assistant's message."""

_SPEAKER = "\n\nAssistant:"
"""What stands before a response in Anthropic's texts (hh-rlhf): turns of ``Human:`` and ``Assistant:``."""

_NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")
"""Columns of what a conversation shows or plays, in TRL's and LLaMA-Factory's names."""

_SCORES = ("overall_score", "score", "rating", "reward")
"""Where a completion holds its rating (UltraFeedback: ``overall_score``)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its responses. ``prompt`` is a text, or messages; then responses are messages too.

    ``document`` is the text of the document in the prompt, and ``question`` what is asked about it, where columns hold
    them. ``doc_id``, ``strategies`` and ``ended`` are known of our own export only.
    """

    id: str | None
    where: str
    prompt: str | tuple[Message, ...]
    chosen: Answer
    rejected: tuple[Answer, ...]
    tools: list[dict[str, Any]] | None = None
    document: str | None = None
    question: str | None = None
    doc_id: str | None = None
    strategies: tuple[str, ...] | None = None
    ended: tuple[bool, ...] | None = None


def read_pair(row: PairRow, form: PairFormat) -> Pair:
    """Return the pair of a row.

    Raises:
        PairFault: It cannot be used. Its reason says why.
    """
    for column in _NOT_TEXT:
        if row[column]:
            raise PairFault("content_is_not_text", f"the row has {column}, and only text can be trained on")
    prompt, chosen, rejected, known = _READERS[form](row)
    tools = read_tools(row["tools"])
    if tools is not None and isinstance(prompt, str):
        raise PairFault("tools_without_messages", "tools belong to a conversation, and the prompt is a text")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PairFault("empty_prompt", "the prompt has no text")
    else:
        check_prompt(prompt)
    if not rejected:
        raise PairFault("empty_rejected", "there is no dis-preferred response")
    _check_not_empty(chosen, "chosen")
    for answer in rejected:
        _check_not_empty(answer, "rejected")
    if chosen in rejected:
        raise PairFault("equal_responses", "a dis-preferred response is equal to the preferred one")
    _check_scores(row)
    given = row["id"]
    pair_id = check_text(str(given), "id") if isinstance(given, str | int) and not isinstance(given, bool) else None
    messages = prompt if isinstance(prompt, str) else tuple(prompt)
    return replace(Pair(pair_id, row.where, messages, chosen, tuple(rejected), tools), **known)


def has_own_system(row: PairRow) -> bool:
    """Return whether a rated completion of a row was written under a system prompt of its own (UltraFeedback)."""
    found = row["completions"]
    return isinstance(found, list) and any(isinstance(it, dict) and it.get("custom_system_prompt") for it in found)


def repeats_prompt(row: PairRow) -> bool:
    """Return whether both responses of a row of texts begin with its prompt."""
    prompt = row["prompt"]
    texts = [row["chosen"], *(found if isinstance(found := row["rejected"], list) else [found])]
    return (
        isinstance(prompt, str) and bool(prompt) and all(isinstance(it, str) and it.startswith(prompt) for it in texts)
    )


def without_prompt(pair: Pair) -> Pair:
    """Return a pair of texts whose responses repeat the prompt, without it in them.

    Raises:
        PairFault: A response does not begin with the prompt.
    """
    assert isinstance(pair.prompt, str)

    def rest(answer: Answer) -> str:
        assert isinstance(answer, str)
        assert isinstance(pair.prompt, str)
        if not answer.startswith(pair.prompt):
            detail = "most rows repeat the prompt in their responses, and a response of this one does not begin with it"
            raise PairFault("prompt_is_no_prefix", detail)
        _check_not_empty(found := answer.removeprefix(pair.prompt), "a response after the prompt")
        return found

    return replace(pair, chosen=rest(pair.chosen), rejected=tuple(map(rest, pair.rejected)))


def as_message(pair: Pair) -> Pair:
    """Return a pair of texts as a conversation: its prompt as the message of a user."""
    assert isinstance(pair.prompt, str)
    said = [{"role": "assistant", "content": answer} for answer in (pair.chosen, *pair.rejected)]
    return replace(pair, prompt=({"role": "user", "content": pair.prompt},), chosen=said[0], rejected=tuple(said[1:]))


# Each reader returns the prompt, the preferred response, the others, and what else is known of the pair.
_Read = tuple[str | list[Message], Answer, list[Answer], dict[str, Any]]


def _standard(row: PairRow) -> _Read:
    return check_text(_there(row, "prompt"), "prompt"), _text_chosen(row), _texts(row), {}


def _text_export(row: PairRow) -> _Read:
    prompt, chosen, rejected, _ = _standard(row)
    strategies, ended = row["rejected_strategies"], row["rejected_ended"]
    known: dict[str, Any] = {}
    if isinstance(strategies, list) and len(strategies) == len(rejected):
        known["strategies"] = tuple(map(str, strategies))
    if isinstance(ended, list) and len(ended) == len(rejected):
        known["ended"] = (bool(row["chosen_ended"]), *map(bool, ended))
    for field, column in [("question", "question"), ("document", "context"), ("doc_id", "doc_id")]:
        if isinstance(value := row[column], str) and value:
            known[field] = check_text(value, column)
    return prompt, chosen, rejected, known


def _standard_implicit(row: PairRow) -> _Read:
    chosen, rejected = _text_chosen(row), _texts(row)
    end = min((_num_shared(chosen, other) for other in rejected), default=0)
    shared = chosen[:end]
    if _SPEAKER in shared:
        end = shared.rindex(_SPEAKER) + len(_SPEAKER)
        if any(_SPEAKER in text[end:] for text in (chosen, *rejected)):
            detail = "the responses are of several turns; give each turn its own row"
            raise PairFault("response_of_several_turns", detail)
    else:
        # Responses that begin alike are cut at a word: the prompt would end inside of one.
        cut = max(shared.rfind(space) for space in " \n\t")
        end = cut if cut > 0 else 0
    if not chosen[:end].strip():
        raise PairFault("no_shared_prompt", "chosen and rejected do not begin with the same words")
    return chosen[:end], chosen[end:], [text[end:] for text in rejected], {}


def _conversational(row: PairRow) -> _Read:
    prompt = read_messages(_there(row, "prompt"), "prompt")
    return prompt, _answer(row["chosen"], "chosen", prompt), _answers(row["rejected"], prompt), {}


def _conversational_implicit(row: PairRow) -> _Read:
    given = row["prompt"]
    chosen = read_messages(_there(row, "chosen"), "chosen")
    rejected = [read_messages(item, "rejected") for item in _lists(_there(row, "rejected"))]
    if not rejected:
        raise PairFault("empty_rejected", "there is no dis-preferred response")
    shared = min(_num_shared(chosen, other) for other in rejected)
    # Equal conversations share their last message too, which then is the response.
    prompt = chosen[: min(shared, len(chosen) - 1, *(len(other) - 1 for other in rejected))] if chosen else []
    if isinstance(given, str):
        given = check_text(given, "prompt")
        if not prompt:
            prompt = [{"role": "user", "content": given}]
            rests = [chosen, *rejected]
            return prompt, _one(rests[0], "chosen"), [_one(rest, "rejected") for rest in rests[1:]], {}
        if not any(message["content"].strip() == given.strip() for message in prompt):
            raise PairFault("prompt_is_no_prefix", "the prompt is no message that chosen and rejected begin with")
    if not prompt:
        raise PairFault("no_shared_prompt", "chosen and rejected do not begin with the same message")
    start = len(prompt)
    return prompt, _one(chosen[start:], "chosen"), [_one(other[start:], "rejected") for other in rejected], {}


def _sharegpt(row: PairRow) -> _Read:
    messages = read_messages(_there(row, "messages"), "conversations")
    prompt = _with_system(row, messages)
    # LLaMA-Factory takes a tool as the bare schema of its function, and wraps it so for templates.
    tools = [
        tool if "function" in tool else {"type": "function", "function": tool}
        for tool in read_tools(row["tools"]) or ()
    ]
    known = {"tools": tools or None}
    return prompt, _answer(row["chosen"], "chosen", prompt), _answers(row["rejected"], prompt), known


def _alpaca(row: PairRow) -> _Read:
    asked = check_text(_there(row, "instruction"), "instruction")
    # LLaMA-Factory joins instruction and input with a line end (its data/README.md).
    given = check_text(row["input"] or "", "input")
    user = {"role": "user", "content": f"{asked}\n{given}" if given else asked}
    prompt = _with_system(row, [*read_history(row["history"]), user])
    return prompt, _answer(row["chosen"], "chosen", prompt), _answers(row["rejected"], prompt), {}


def _context(row: PairRow) -> _Read:
    document, question = check_text(row["context"], "context"), check_text(_there(row, "question"), "question")
    # As LongReward's authors prompt their models: the document, an empty line, the question.
    prompt = _with_system(row, [{"role": "user", "content": f"{document}\n\n{question}"}])
    known = {"document": document, "question": question}
    return prompt, _answer(row["chosen"], "chosen", prompt), _answers(row["rejected"], prompt), known


def _ratings(row: PairRow) -> _Read:
    asked = row["prompt"] if row["prompt"] is not None else row["instruction"]
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else read_messages(asked, "prompt")
    prompt = _with_system(row, messages)
    for message in prompt:
        check_text(message["content"], "the prompt")
    completions = _there(row, "completions")
    if not isinstance(completions, list):
        raise PairFault("not_a_list", f"completions are {type(completions).__name__}, not a list")
    rated = [_rated(item, number, row["ratings"]) for number, item in enumerate(completions)]
    if not rated:
        raise PairFault("missing_chosen", "there is no completion")
    best = max(score for _, score in rated)
    worse = sorted((item for item in rated if item[1] < best), key=lambda item: item[1])
    if not worse:
        raise PairFault("tied_scores", f"all {len(rated)} completions have the rating {best:g}")
    chosen = next(text for text, score in rated if score == best)
    said = [{"role": "assistant", "content": text} for text in (chosen, *(text for text, _ in worse))]
    return prompt, said[0], list(said[1:]), {}


_READERS: Mapping[PairFormat, Callable[[PairRow], _Read]] = {
    "standard": _standard,
    "standard-implicit": _standard_implicit,
    "conversational": _conversational,
    "conversational-implicit": _conversational_implicit,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "context": _context,
    "ratings": _ratings,
    "text": _text_export,
}


def _there(row: PairRow, field: str) -> Any:
    value = row[field]
    if value is None:
        raise PairFault(f"missing_{field}", f"{field} is absent or null; the row has {row.names}")
    return value


def _text_chosen(row: PairRow) -> str:
    chosen = _there(row, "chosen")
    if isinstance(chosen, list) and chosen:
        if len(chosen) > 1:
            raise PairFault("several_chosen", f"there are {len(chosen)} preferred responses; keep one")
        chosen = chosen[0]
    return check_text(chosen, "chosen")


def _texts(row: PairRow) -> list[Any]:
    rejected = _there(row, "rejected")
    return [check_text(item, "rejected") for item in (rejected if isinstance(rejected, list) else [rejected])]


def _answer(value: Any, what: str, prompt: Sequence[Message]) -> Message:
    """Return one response to a prompt of messages: a text, a message, or a list of one. A list may repeat the
    prompt."""
    if value is None:
        raise PairFault(f"missing_{what}", f"{what} is absent or null")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return {"role": "assistant", "content": check_text(value, what)}
    messages = read_messages(value, what)
    if len(messages) > len(prompt) and messages[: len(prompt)] == list(prompt):
        messages = messages[len(prompt) :]
    return _one(messages, what)


def _answers(value: Any, prompt: Sequence[Message]) -> list[Answer]:
    if value is None:
        raise PairFault("missing_rejected", "rejected is absent or null")
    return [_answer(item, "rejected", prompt) for item in _lists(value)]


def _lists(value: Any) -> list[Any]:
    """Return the responses in a value: one message or text, one list of messages, or a list of such."""
    if isinstance(value, list) and (not value or not isinstance(value[0], dict)):
        return value
    return [value]


def _one(messages: Sequence[Message], what: str) -> Message:
    """Return the only message of a response.

    Raises:
        PairFault: There are several or none, or it is not the assistant's.
    """
    if not messages:
        raise PairFault(f"empty_{what}", f"{what} has no message after the prompt")
    if len(messages) > 1:
        detail = f"{what} has {len(messages)} messages after the prompt, and a response is the assistant's last one"
        raise PairFault("response_of_several_turns", f"{detail}; give each turn its own row")
    if messages[0]["role"] != "assistant":
        raise PairFault("response_is_not_the_assistants", f"{what} ends with a message of the {messages[0]['role']}")
    return messages[0]


def _with_system(row: PairRow, messages: list[Message]) -> list[Message]:
    system = row["system"]
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    text = check_text(system, "system")
    if messages and messages[0]["role"] == "system":
        raise PairFault("two_system_messages", "a system column, and a system message in the conversation")
    return [{"role": "system", "content": text}, *messages]


def _rated(item: Any, number: int, ratings: Any) -> tuple[str, float]:
    """Return the text of a completion and its rating."""
    score: Any = ratings[number] if isinstance(ratings, list) and number < len(ratings) else None
    text = item
    if isinstance(item, dict):
        text = next(
            (item[key] for key in ("response", "text", "content", "completion") if item.get(key) is not None), None
        )
        score = next((item[key] for key in _SCORES if item.get(key) is not None), score)
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise PairFault("score_is_no_number", f"completion {number + 1} has the rating {score!r}") from None
    if math.isnan(value):
        raise PairFault("score_is_no_number", f"completion {number + 1} has the rating nan")
    return check_text(text, f"completion {number + 1}"), value


def _check_scores(row: PairRow) -> None:
    """Refuse a pair whose scores say that there is no preference, or the opposite one."""
    scores = [row["score_chosen"], row["score_rejected"]]
    try:
        chosen, rejected = map(float, scores)  # in a table of text they are texts
    except (TypeError, ValueError):
        return  # absent, or scores of another kind
    if math.isnan(chosen) or math.isnan(rejected):
        raise PairFault("score_is_no_number", "a score is nan")
    if chosen == rejected:
        raise PairFault("tied_scores", f"both responses have the score {chosen:g}")
    if chosen < rejected:
        detail = f"the preferred response has the score {chosen:g}, the other one {rejected:g}"
        raise PairFault("scores_say_the_opposite", detail)


def _check_not_empty(answer: Answer, what: str) -> None:
    text = answer if isinstance(answer, str) else answer["content"]
    if not text.strip() and not (isinstance(answer, dict) and answer.get("tool_calls")):
        raise PairFault("empty_chosen" if what == "chosen" else "empty_rejected", f"{what} has no text")


def _num_shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many messages, or characters, two begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
