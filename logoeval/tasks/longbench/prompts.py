"""Build LongBench's prompts as token ids: fill in the template, cut the middle if too long, apply the chat template.

This follows the official ``pred.py`` with two differences. Control tokens in a document stay text, while ``pred.py``
would turn them into control tokens. The frame of the chat template is tokenised separately from the text inside it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from logodata.common.chat_template import render_chat
from logodata.common.errors import UserError
from logodata.prompts import PromptFormat, decode_text, text_tokenizer
from logoeval.tasks.longbench.data import Row
from logoeval.tasks.longbench.task_table import Task
from logoeval.tasks.texts import text_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_TOKENS = 500
"""The tokens of a window that the official settings reserve for the chat template and the response."""


class PromptBuilder:
    """Builds prompts for one tokenizer, which has a chat template. The middle of a prompt of more than
    ``max_prompt_tokens`` is cut out; they are counted without the chat template, as in ``pred.py``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> None:
        self._tokenizer, self._limit = tokenizer, max_prompt_tokens

    def template(self, task: Task) -> str:
        """Return a fingerprint of the prompt of a task and of the chat template around it."""
        frame = self._frame.fingerprint if task.chat else "no chat template"
        return text_fingerprint(f"{frame}\n{task.prompt}")

    def check(self, task: Task) -> None:
        """Raise a ``UserError`` if the limit is smaller than the prompt without context and input."""
        fixed = len(self._encode(task.prompt.format(context="", input="")))
        if fixed > self._limit:
            raise UserError(
                f"longbench: the fixed part of {task.name}'s prompt has {fixed} tokens, {self._limit} are left for "
                f"prompts (the window less {RESERVED_TOKENS}, unless max_prompt_tokens says otherwise)",
                mend="give a larger window, or drop the task with --tasks",
            )

    def build(self, task: Task, row: Row) -> tuple[tuple[int, ...], bool]:
        """Return the token ids of the prompt of a row, up to the beginning of the response, and whether its middle was
        cut out."""
        text = task.prompt.format(context=row.context, input=row.input)
        ids = self._encode(text)
        truncated = len(ids) > self._limit
        if truncated:
            half = self._limit // 2
            text = decode_text(self._tokenizer, ids[:half]) + decode_text(self._tokenizer, ids[-half:])
        if task.chat:
            return self._frame.encode([], question=text.strip() if self._strips else text).ids, truncated
        return tuple(self._encode(text) if truncated else ids), truncated

    def _encode(self, text: str) -> list[int]:
        """Tokenise a text with the special tokens that the tokenizer adds (beginning of sequence), as ``pred.py``."""
        return list(text_tokenizer(self._tokenizer).encode(text, add_special_tokens=True, split_special_tokens=True))

    @cached_property
    def _frame(self) -> PromptFormat:
        return PromptFormat(self._tokenizer, "{question}")

    @cached_property
    def _strips(self) -> bool:
        """Whether the chat template strips the user's message, as Llama-3's does. The text does not go through it, so
        :meth:`build` strips the text itself."""
        mark = " \ue000 "
        return mark not in render_chat(self._tokenizer, mark)
