"""A filled-in prompt of a benchmark as token ids: its middle cut if it is too long, the chat template around it.

This follows the official ``pred.py`` of LongBench and LongBench v2 with two differences. Control tokens in a document
stay text, while ``pred.py`` would turn them into control tokens, or drop them. The frame of the chat template is
tokenised separately from the text inside it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from logodata.common.chat_template import render_chat
from logodata.prompts import PromptFormat, decode_text, text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatPrompts:
    """Encodes prompts for one tokenizer. Only what puts a text into the chat template needs one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def fingerprint(self) -> str:
        """A hash of the chat template around a text."""
        return self._frame.fingerprint

    def encode(self, text: str) -> list[int]:
        """Tokenise a text with the special tokens that the tokenizer adds (beginning of sequence), as ``pred.py``."""
        return list(text_tokenizer(self._tokenizer).encode(text, add_special_tokens=True, split_special_tokens=True))

    def ends(self, ids: list[int], first: int, last: int) -> str:
        """Return the text of the ``first`` tokens, and of the ``last`` ones."""
        return decode_text(self._tokenizer, ids[:first]) + decode_text(self._tokenizer, ids[len(ids) - last :])

    def ask(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a user's message, up to the beginning of the response."""
        return self._frame.encode([], question=text.strip() if self._strips else text).ids

    @cached_property
    def _frame(self) -> PromptFormat:
        return PromptFormat(self._tokenizer, "{question}")

    @cached_property
    def _strips(self) -> bool:
        """Whether the chat template strips the user's message, as Llama-3's does. The text does not go through it, so
        :meth:`ask` strips the text itself."""
        mark = " \ue000 "
        return mark not in render_chat(self._tokenizer, mark)
