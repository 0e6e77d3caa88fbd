"""Engines turn prompts of token ids into responses. One protocol has four implementations: transformers, vLLM
(offline), servers that take token ids, and servers that take messages.

The first three get the same token ids and the same explicit sampling settings, so that greedy answers do not depend on
the engine. A server that takes messages has a chat template and a tokenizer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from logodata.prompts import decode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. With ``temperature`` 0 decoding is greedy, and ``top_p`` and ``seed`` have no effect.

    ``stop_ids`` are token ids that end the response (the end-of-turn token). The stop token is not part of the result.
    No stop token is chosen before ``min_new_tokens`` other tokens.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    min_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to complete. ``id`` is unique within one call."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling

    @property
    def max_total_tokens(self) -> int:
        """The number of tokens of the prompt and of the longest response that it may get. They must fit the model's
        window."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens


class Usage(NamedTuple):
    """The tokens that a server counts for a response, and takes money for. Those of the response hold its reasoning."""

    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The response to the request ``id``: new tokens only, without the stop token.

    ``finish_reason`` is ``"stop"`` if the model ended the response itself, ``"length"`` if it reached
    ``max_new_tokens``. The other fields are those of servers that return text: then ``token_ids`` is ``text`` in tokens
    of the tokenizer here, and ``reasoning`` is what the server keeps apart from the text (empty if it hides it).
    ``withheld`` says that the server or its filter refused to say it, or more of it.
    """

    id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    text: str | None = None
    reasoning: str | None = None
    usage: Usage | None = None
    withheld: bool = False

    def said(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the response: the server's, or that of the tokens."""
        return decode_text(tokenizer, self.token_ids) if self.text is None else self.text


class Engine(Protocol):
    """An engine completes prompts."""

    @property
    def name(self) -> str:
        """``transformers``, ``vllm``, ``openai`` or ``chat``, with the version, for manifests."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        """Yield one result for each request, in any order, each as soon as it is there.

        Raises:
            UserError: A prompt with its response does not fit the model's window, or the server cannot be reached.
        """
        ...
