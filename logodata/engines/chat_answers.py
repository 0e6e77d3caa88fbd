"""Read the answers of chat servers: OpenAI's shape, which most servers speak, and Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logodata.engines import FinishReason, Usage
from logodata.engines.server_answers import Fault


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a server says. ``reasoning`` is what it keeps apart from the text, and empty where it hides it.
    ``is_withheld`` means that it or its filter refused to say it, or more of it."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    is_withheld: bool
    usage: Usage | None


def read_openai(said: Any) -> ChatAnswer:
    """Read an answer of ``/v1/chat/completions``. The reasoning that a server keeps apart has two names:
    ``reasoning_content`` (SGLang, llama.cpp, DeepSeek) and ``reasoning`` (vLLM, Ollama, OpenRouter).

    Raises:
        ValueError: It has another form.
        Fault: The server met a fault, which it tells in the answer.
    """
    _check_error(said)
    choices = _list(said, "choices")
    if len(choices) != 1:
        raise ValueError(f"{len(choices)} choices, one was asked for")
    message, reason = _get(choices[0], "message"), _get(choices[0], "finish_reason")
    if reason in ("error", "insufficient_system_resource"):
        raise Fault(f"the response ended with {reason!r}")
    if reason not in ("stop", "length", "content_filter"):
        raise ValueError(f"the response ended with {reason!r}")
    refusal = _text(_get(message, "refusal"))
    reasoning = _text(_get(message, "reasoning_content")) or _text(_get(message, "reasoning"))
    return ChatAnswer(
        text=_text(_get(message, "content")) or refusal,
        reasoning=reasoning or ("" if _hidden_tokens(said) else None),
        finish_reason="length" if reason == "length" else "stop",
        is_withheld=reason == "content_filter" or bool(refusal),
        usage=_usage(_get(said, "usage"), ("prompt_tokens",), "completion_tokens"),
    )


def read_anthropic(said: Any) -> ChatAnswer:
    """Read an answer of ``/v1/messages``: its text blocks are the text, and its thinking blocks the reasoning.

    Raises:
        ValueError: It has another form.
        Fault: The server met a fault, which it tells in the answer.
    """
    _check_error(said)
    reason = _get(said, "stop_reason")
    if reason not in ("end_turn", "max_tokens", "model_context_window_exceeded", "refusal"):
        raise ValueError(f"the response ended with {reason!r}")
    blocks = _list(said, "content", may_be_empty=True)
    texts = [_text(_get(block, "text")) for block in blocks if _get(block, "type") == "text"]
    thoughts = [_text(_get(block, "thinking")) for block in blocks if _get(block, "type") == "thinking"]
    prompt = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return ChatAnswer(
        text="".join(texts),
        reasoning="".join(thoughts) if thoughts else None,
        finish_reason="stop" if reason in ("end_turn", "refusal") else "length",
        is_withheld=reason == "refusal",
        usage=_usage(_get(said, "usage"), prompt, "output_tokens"),
    )


def _check_error(said: Any) -> None:
    """Raise what a server's answer tells of a fault: proxies give those of others with status 200."""
    error = said.get("error") if isinstance(said, Mapping) else None
    if error:
        raise Fault(f"the answer is an error: {error.get('message', error) if isinstance(error, Mapping) else error}")


def _hidden_tokens(said: Any) -> int:
    """Return how many tokens a model reasoned that its server does not show."""
    details = _get(_get(said, "usage") or {}, "completion_tokens_details")
    count = _get(details, "reasoning_tokens") if details is not None else 0
    return count if isinstance(count, int) else 0


def _get(found: Any, name: str) -> Any:
    if not isinstance(found, Mapping):
        raise ValueError(f"no object where {name} should stand")
    return found.get(name)


def _list(found: Any, name: str, *, may_be_empty: bool = False) -> list[Any]:
    value = _get(found, name)
    if not isinstance(value, list) or not (value or may_be_empty):
        raise ValueError(f"the answer holds no {name}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"a text is {type(value).__name__}")
    return value or ""


def _usage(found: Any, prompt_names: tuple[str, ...], response_name: str) -> Usage | None:
    """Return what was counted; None where a server counts nothing."""
    if found is None:
        return None
    counts = [_get(found, name) or 0 for name in (*prompt_names, response_name)]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("usage is not counts of tokens")
    return Usage(sum(counts[:-1]), counts[-1])
