"""Check the messages of a conversation: OpenAI's (``role``, ``content``) or sharegpt's (``from``, ``value``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from logodata.sources.conversations import ROLES
from logodata.sources.fields import spelt

Message = dict[str, Any]
"""A message as a chat template takes it: ``role``, ``content``, and what else the template may read."""

_ROLES = {**ROLES, "tool": "tool", "observation": "tool"}
_CALL = "function_call"
"""LLaMA-Factory's role of an assistant that calls a tool. The content is the call in JSON, or a list of several."""
_NOT_READ = ("from", "value", "weight", "loss", "role", "content")


@dataclass(frozen=True, slots=True)
class Tags:
    """The names that messages have for what they hold, where a file beside them says so (LLaMA-Factory's ``tags``): the
    keys of the role and of the content, and the role that each word stands for."""

    role: str = "from"
    content: str = "value"
    roles: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, value: Any) -> Any:
        """Return a message, a list of them, or a list of such lists with our names. Any other value stays."""
        if not isinstance(value, list):
            return self._message(value)
        return [[*map(self._message, item)] if isinstance(item, list) else self._message(item) for item in value]

    def _message(self, value: Any) -> Any:
        if not isinstance(value, dict) or self.role not in value:
            return value
        rest = {key: item for key, item in value.items() if key not in (self.role, self.content)}
        said = value[self.role]
        role = self.roles.get(said, said) if isinstance(said, str) else said
        return {**rest, "role": role, "content": value.get(self.content)}


class PairFault(Exception):
    """The reason why a pair cannot be used: a word for the statistics, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)


def check_text(value: Any, what: str) -> str:
    """Return a text that can become tokens.

    Raises:
        PairFault: It is not a text, or holds what no text holds.
    """
    if not isinstance(value, str):
        raise PairFault("not_a_text", f"{what} is {type(value).__name__}, not a text")
    if "\0" in value:
        raise PairFault("nul_character", f"{what} holds a NUL character, at {value.index(chr(0))}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{what} has an unpaired surrogate (\\u{ord(value[error.start]):04x}, at {error.start})"
        raise PairFault("unpaired_surrogate", detail) from None
    return value


def read_messages(value: Any, what: str) -> list[Message]:
    """Return the messages of a list, or of a single message.

    Raises:
        PairFault: It is no list of messages, a role is not known, or the content of a message is not text.
    """
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise PairFault("not_messages", f"{what} is {type(value).__name__}, not a list of messages")
    return [_message(item, f"{what}, message {number}") for number, item in enumerate(items, 1)]


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, Mapping):
        raise PairFault("not_messages", f"{what} is {type(value).__name__}, not an object")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role.lower() not in (*_ROLES, _CALL):
        raise PairFault("role_unknown", f"{what} has the role {role!r}; roles are {', '.join((*_ROLES, _CALL))}")
    content = value.get("content")
    content = value.get("value") if content is None else content
    if role.lower() == _CALL:
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(content, what)}
    calls = value.get("tool_calls")
    if isinstance(content, list):
        content = _text_of_parts(content, what)
    if content is None and calls:
        content = ""
    rest = {key: item for key, item in value.items() if key not in _NOT_READ and item is not None}
    for text in strings(rest):
        check_text(text, what)
    return {"role": _ROLES[role.lower()], "content": check_text(content, f"the content of {what}"), **rest}


def _tool_calls(content: Any, what: str) -> list[dict[str, Any]]:
    """Return the calls of LLaMA-Factory's ``function_call`` in the form that chat templates take."""
    text = check_text(content, f"the content of {what}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PairFault("tool_calls_not_json", f"{what} is a function call, and no JSON: {error}") from None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise PairFault("tool_calls_not_json", f"{what} is no function call with name and arguments")
    for part in strings(calls):
        check_text(part, what)
    return [{"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in calls]


def _text_of_parts(parts: Sequence[Any], what: str) -> str:
    """Return the text of a content in OpenAI's parts. Several texts are refused: nothing says what joins them."""
    kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in parts]
    others = [kind for kind in kinds if kind != "text"]
    if others:
        raise PairFault("content_is_not_text", f"{what} holds {others[0]}, and only text can be trained on")
    if len(parts) != 1:
        raise PairFault("content_in_parts", f"{what} has {len(parts)} parts of text; join them")
    return check_text(parts[0].get("text"), f"the content of {what}")


def check_prompt(messages: Sequence[Message]) -> None:
    """Refuse messages that are no prompt for an assistant's turn.

    Raises:
        PairFault: There is none, a system message is not the first, two of the assistant's follow one another, or the
            last is neither the user's nor a tool's.
    """
    if not messages:
        raise PairFault("empty_prompt", "there is no message before the responses")
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise PairFault("system_message_not_first", f"message {roles.index('system', 1) + 1} is a system message")
    for number, (role, following) in enumerate(pairwise(roles), 1):
        if role == following == "assistant":
            raise PairFault("assistant_twice_in_a_row", f"messages {number} and {number + 1} are both the assistant's")
    if roles[-1] not in ("user", "tool"):
        raise PairFault("prompt_ends_with_" + roles[-1], f"the prompt's last message is of the role {roles[-1]}")
    if not any(message["content"].strip() for message in messages):
        raise PairFault("empty_prompt", "no message of the prompt has a text")


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the tools of a conversation: a list of JSON schemas, or a text that spells one.

    Raises:
        PairFault: They are neither.
    """
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PairFault("tools_not_json", f"tools are not JSON: {error}") from None
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise PairFault("tools_not_json", "tools are no list of JSON schemas")
    for text in strings(value):
        check_text(text, "a tool")
    return value or None


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def read_history(value: Any) -> list[Message]:
    """Return the turns before the last question, in LLaMA-Factory's form: a list of (question, answer).

    Raises:
        PairFault: It is another form.
    """
    found: list[Message] = []
    turns = [] if value is None else spelt(value)
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise PairFault("history_not_pairs", "history is no list of pairs [question, answer]")
        asked, said = (check_text(text, "history") for text in turn)
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return found
