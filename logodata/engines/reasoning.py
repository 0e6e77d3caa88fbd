"""Tell the reasoning of a response from its answer, by the marker with which the model ends its reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from logodata.common.words import reasoning_markers
from logodata.engines import FinishReason, GenerationResult, Sampling
from logodata.engines.batching import first_stop
from logodata.prompts import decode_text, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_TOKENS = 8_192
LONG_THINKING_TOKENS = 32_768
LONG_WINDOW = 256_000
"""The window from which on :data:`LONG_THINKING_TOKENS` are the default budget of reasoning, in place of
:data:`THINKING_TOKENS`: the budgets of LongBench-Pro (caskcsg/longcontext, README)."""

_TAIL = 16


@dataclass(frozen=True, slots=True)
class Reply:
    """A response in two parts: the answer, which alone is scored or trained on, and the reasoning before it."""

    token_ids: tuple[int, ...]
    """The tokens of the answer, white space at its beginning left out."""
    text: str
    """The text of the answer."""
    finish_reason: FinishReason
    """``length`` where the answer, or the reasoning, reached its cap."""
    reasoning: str | None = None
    """The text of the reasoning without its end marker; None where the model did not reason."""
    num_reasoning_tokens: int = 0
    """The tokens of the reasoning, markers included."""
    cut: bool = False
    """Whether the reasoning did not end, or took more tokens than its budget. The answer is empty then."""


class Reasoning:
    """How one model reasons before it answers.

    ``opening`` and ``closing`` are its markers: those that its chat template writes or looks for, by default
    ``<think>`` and ``</think>``.

    Args:
        tokens: The budget of reasoning in tokens, markers included. None takes a default where the template itself
            opens the reasoning, and 0 elsewhere: then the model is not expected to reason.
        end: The end marker, where the template does not name it.
        window: The model's positions.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, tokens: int | None = None, end: str | None = None, window: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self.opening, self.closing = reasoning_markers(template if isinstance(template, str) else "")
        if end is not None:
            self.closing = end
        if tokens is None:
            default = LONG_THINKING_TOKENS if window >= LONG_WINDOW else THINKING_TOKENS
            tokens = default if self._template_opens() else 0
        self.budget = tokens

    def opens(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether a prompt ends with the opening marker: the response begins inside its reasoning."""
        tail = self._tokenizer.decode(list(prompt_ids[-_TAIL:]), skip_special_tokens=False)
        return str(tail).rstrip().endswith(self.opening)

    def sampling(self, answer: Sampling, turn_end: tuple[int, ...]) -> Sampling:
        """Return how a response is decoded whose answer is decoded by ``answer``: with :attr:`budget` more tokens, and
        with no other stop than ``turn_end`` in its reasoning."""
        if not self.budget:
            return answer
        whole = answer.max_new_tokens + self.budget
        return replace(answer, max_new_tokens=whole, stop_ids=turn_end, min_new_tokens=0)

    def split(self, result: GenerationResult, answer: Sampling, *, opened: bool = False) -> Reply:
        """Return the two parts of a response that was decoded by :meth:`sampling`.

        The answer is what follows the last end marker, as far as ``answer`` allows. Without an end marker the whole
        response is the answer, unless the model was still reasoning: the prompt (``opened``) or the response opened it,
        or a model that is expected to reason reached the cap. A server that returns text may keep the reasoning apart;
        its chat template opens what it opens, so the prompt tells nothing then.
        """
        if result.text is not None:
            return self._split_text(result, result.text, answer)
        ids = result.token_ids
        end = self._last(self._closing_ids, self.closing, ids)
        start, remainder = end or (0, "")
        rest = ids[start:]
        opens_again = self._last(self._opening_ids, self.opening, rest) is not None
        cut = (
            opens_again
            or (end is None and (opened or (self.budget > 0 and result.finish_reason == "length")))
            or (end is not None and 0 < self.budget < start)
        )
        if cut:
            text = decode_text(self._tokenizer, ids)
            return Reply((), "", "length", reasoning=text, num_reasoning_tokens=len(ids), cut=True)
        rest, reason = self._ended(rest, result.finish_reason, answer)
        if end is None:
            return Reply(rest, decode_text(self._tokenizer, rest), reason)
        text = (remainder + decode_text(self._tokenizer, rest)).lstrip()
        reasoning = decode_text(self._tokenizer, ids[:start])
        return Reply(
            self._tokens_of(text, rest),
            text,
            reason,
            reasoning=reasoning.removesuffix(remainder).removesuffix(self.closing),
            num_reasoning_tokens=start,
        )

    def _split_text(self, result: GenerationResult, text: str, answer: Sampling) -> Reply:
        reasoning, end = result.reasoning, text.rfind(self.closing)
        if reasoning is None and end >= 0:
            reasoning, text = text[:end], text[end + len(self.closing) :]
        if reasoning is not None:
            text = text.lstrip()
        reached = result.finish_reason == "length"
        if result.reasoning is not None:
            cut = reached and not text
        else:  # a model that reasons and reaches the cap is still at it
            cut = self.opening in text or (reached and reasoning is None and self.budget > 0)
        if cut:
            thought = (reasoning or "") + text
            return Reply((), "", "length", thought, len(encode_text(self._tokenizer, thought)), cut=True)
        ids = result.token_ids if text == result.text else tuple(encode_text(self._tokenizer, text))
        rest, reason = self._ended(ids, result.finish_reason, answer)
        said = text if rest == ids else decode_text(self._tokenizer, rest)
        count = len(encode_text(self._tokenizer, reasoning)) if reasoning else 0
        return Reply(rest, said, reason, reasoning, count)

    def _ended(
        self, ids: tuple[int, ...], reason: FinishReason, answer: Sampling
    ) -> tuple[tuple[int, ...], FinishReason]:
        """Return an answer as far as its own sampling allows, where the response had a budget more."""
        if not self.budget:
            return ids, reason
        if (stop := first_stop(ids, answer)) is not None:
            ids, reason = ids[:stop], "stop"
        if len(ids) > answer.max_new_tokens:
            ids, reason = ids[: answer.max_new_tokens], "length"
        return ids, reason

    def _tokens_of(self, text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens of an answer without the white space before it. A token may hold both, or a part of the marker:
        the text is encoded anew then."""
        for start in range(len(ids) + 1):
            said = decode_text(self._tokenizer, ids[start:])
            if said == text:
                return ids[start:]
            if len(said) < len(text):
                break
        return tuple(encode_text(self._tokenizer, text))

    def _last(self, marker_ids: tuple[int, ...] | None, marker: str, ids: Sequence[int]) -> tuple[int, str] | None:
        """Find the last place of a marker: the number of tokens up to its end, and the text of those tokens behind
        it."""
        if marker_ids is not None:
            width = len(marker_ids)
            for start in range(len(ids) - width, -1, -1):
                if tuple(ids[start : start + width]) == marker_ids:
                    return start + width, ""
            return None
        text = decode_text(self._tokenizer, ids)
        place = text.rfind(marker)
        if place < 0:
            return None
        low, high = 0, len(ids)  # the fewest tokens whose text holds the marker
        while low < high:
            middle = (low + high) // 2
            if len(decode_text(self._tokenizer, ids[:middle])) >= place + len(marker):
                high = middle
            else:
                low = middle + 1
        return low, decode_text(self._tokenizer, ids[:low])[place + len(marker) :]

    @cached_property
    def _closing_ids(self) -> tuple[int, ...] | None:
        return self._token_form(self.closing)

    @cached_property
    def _opening_ids(self) -> tuple[int, ...] | None:
        return self._token_form(self.opening)

    def _token_form(self, marker: str) -> tuple[int, ...] | None:
        """The tokens of a marker that holds a token of its own. Those of any other one depend on the
        text around it."""
        ids = tuple(self._tokenizer.encode(marker, add_special_tokens=False))
        added = self._tokenizer.added_tokens_decoder
        return ids if any(token in added for token in ids) else None

    def _template_opens(self) -> bool:
        from logodata.common.chat_template import render_chat

        return bool(self._tokenizer.chat_template) and render_chat(self._tokenizer, "?").rstrip().endswith(self.opening)
