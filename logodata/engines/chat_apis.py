"""The two shapes of chat servers: OpenAI's ``/v1/chat/completions`` and Anthropic's ``/v1/messages``.

Requests are those that the official Python clients send for the same arguments, and answers are read as those clients
read them (openai 3.54, anthropic 2.12). The clients themselves are not used: each brings retries, limits and an HTTP
library of its own beside those of :mod:`logodata.engines.server_engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from logodata.engines import FinishReason, GenerationRequest, Usage
from logodata.engines.batching import request_seed

ChatApiName = Literal["openai", "anthropic"]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a server says. ``is_withheld`` means that it or its filter refused to say it, or more of it."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    is_withheld: bool
    usage: Usage | None


class ChatApi(Protocol):
    """How a server of one shape is asked."""

    path: str
    """Where requests go, below the server's address."""

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the headers of every request."""
        ...

    def body(self, model: str, message: str, request: GenerationRequest) -> dict[str, Any]:
        """Return a request of one user's message."""
        ...

    def answer(self, said: Any) -> ChatAnswer:
        """Read an answer.

        Raises:
            ValueError: It has another form.
        """
        ...


class OpenAIChat:
    """OpenAI's shape, which most servers speak. ``max_tokens_field`` is the field that bounds a response."""

    path = "chat/completions"

    def __init__(self, max_tokens_field: str) -> None:
        self._max_tokens_field = max_tokens_field

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the key as a bearer token."""
        return {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def body(self, model: str, message: str, request: GenerationRequest) -> dict[str, Any]:
        """Return a request. Greedy decoding needs no seed, and some servers know none."""
        sampling = request.sampling
        sampled = {"top_p": sampling.top_p, "seed": request_seed(request)} if sampling.temperature else {}
        return {
            "model": model,
            "messages": [{"role": "user", "content": message}],
            self._max_tokens_field: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            **sampled,
        }

    def answer(self, said: Any) -> ChatAnswer:
        """Read an answer. The reasoning that a server keeps apart has two names: ``reasoning_content`` (SGLang,
        llama.cpp, DeepSeek) and ``reasoning`` (vLLM, Ollama, OpenRouter)."""
        choices = _list(said, "choices")
        if len(choices) != 1:
            raise ValueError(f"{len(choices)} choices, one was asked for")
        message, reason = _get(choices[0], "message"), _get(choices[0], "finish_reason")
        if reason not in ("stop", "length", "content_filter"):
            raise ValueError(f"the response ended with {reason!r}")
        refusal = _text(_get(message, "refusal"))
        reasoning = _text(_get(message, "reasoning_content")) or _text(_get(message, "reasoning"))
        return ChatAnswer(
            text=_text(_get(message, "content")) or refusal,
            reasoning=reasoning or None,
            finish_reason="length" if reason == "length" else "stop",
            is_withheld=reason == "content_filter" or bool(refusal),
            usage=_usage(_get(said, "usage"), ("prompt_tokens",), "completion_tokens"),
        )


class AnthropicMessages:
    """Anthropic's shape. It knows no seed, so sampled responses cannot be drawn again."""

    path = "messages"

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the key, and the version of the shape."""
        return {"anthropic-version": "2023-06-01", **({"x-api-key": api_key} if api_key else {})}

    def body(self, model: str, message: str, request: GenerationRequest) -> dict[str, Any]:
        """Return a request. ``top_p`` is left out where it changes nothing: some models refuse it beside a
        temperature."""
        sampling = request.sampling
        return {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "messages": [{"role": "user", "content": message}],
            "temperature": sampling.temperature,
            **({"top_p": sampling.top_p} if sampling.temperature and sampling.top_p < 1 else {}),
        }

    def answer(self, said: Any) -> ChatAnswer:
        """Read an answer: its text blocks are the text, and its thinking blocks the reasoning."""
        reason = _get(said, "stop_reason")
        if reason not in ("end_turn", "max_tokens", "refusal"):
            raise ValueError(f"the response ended with {reason!r}")
        blocks = _list(said, "content", may_be_empty=True)
        texts = [_text(_get(block, "text")) for block in blocks if _get(block, "type") == "text"]
        thoughts = [_text(_get(block, "thinking")) for block in blocks if _get(block, "type") == "thinking"]
        prompt = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return ChatAnswer(
            text="".join(texts),
            reasoning="".join(thoughts) if thoughts else None,
            finish_reason="length" if reason == "max_tokens" else "stop",
            is_withheld=reason == "refusal",
            usage=_usage(_get(said, "usage"), prompt, "output_tokens"),
        )


def chat_api(name: ChatApiName, max_tokens_field: str) -> ChatApi:
    """Return the shape of that name."""
    return AnthropicMessages() if name == "anthropic" else OpenAIChat(max_tokens_field)


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
