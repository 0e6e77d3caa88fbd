"""LongBench's prompts as token ids: filled in, cut in the middle where too long, then put into the chat template.

As the official ``pred.py`` does it, but for two things: control tokens in a document stay text (there they would be
obeyed), and the frame of the chat template is tokenised apart from the text inside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from logodata.common.chat_template import render_chat
from logodata.common.errors import UserError
from logodata.prompts import PromptFormat, decode_text, text_tokenizer
from logoeval.tasks.longbench.data import Row
from logoeval.tasks.longbench.rules import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_TOKENS = 500
"""What the official settings leave of a window for the chat template and the response."""


@dataclass(frozen=True, slots=True)
class LongBenchPrompt:
    """``truncated``: its middle was left out."""

    ids: tuple[int, ...]
    truncated: bool


class PromptBuilder:
    """Prompts of one tokenizer.

    Args:
        tokenizer: with a chat template.
        max_prompt_tokens: a longer prompt loses its middle; counted before the chat template, as officially.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> None:
        self._tokenizer, self._limit = tokenizer, max_prompt_tokens

    def template(self, task: Task) -> str:
        """Fingerprint of a task's prompt and of the chat template around it."""
        frame = self._frame.fingerprint if task.chat else "no chat template"
        return hashlib.sha256(f"{frame}\n{task.prompt}".encode()).hexdigest()[:16]

    def check(self, task: Task) -> None:
        """Refuse a limit that would cut the instruction itself.

        Raises:
            UserError: it would.
        """
        fixed = len(self._encode(task.prompt.format(context="", input="")))
        if fixed > self._limit:
            raise UserError(
                f"longbench: the fixed part of {task.name}'s prompt has {fixed} tokens, {self._limit} are left for "
                f"prompts (the window less {RESERVED_TOKENS}, unless max_prompt_tokens says otherwise)",
                mend="give a larger window, or drop the task with --tasks",
            )

    def build(self, task: Task, row: Row) -> LongBenchPrompt:
        """The prompt of a row, up to where the response begins."""
        text = task.prompt.format(context=row.context, input=row.input)
        ids = self._encode(text)
        truncated = len(ids) > self._limit
        if truncated:
            half = self._limit // 2
            text = decode_text(self._tokenizer, ids[:half]) + decode_text(self._tokenizer, ids[-half:])
        if task.chat:
            return LongBenchPrompt(
                self._frame.encode([], question=text.strip() if self._strips else text).ids, truncated
            )
        return LongBenchPrompt(tuple(self._encode(text) if truncated else ids), truncated)

    def _encode(self, text: str) -> list[int]:
        """With what the tokenizer itself puts around a text (a beginning-of-sequence token), as officially."""
        return list(text_tokenizer(self._tokenizer).encode(text, add_special_tokens=True, split_special_tokens=True))

    @cached_property
    def _frame(self) -> PromptFormat:
        return PromptFormat(self._tokenizer, "{question}")

    @cached_property
    def _strips(self) -> bool:
        """Whether the chat template strips the user's message, as Llama-3's does; our text never passes through it."""
        mark = " \ue000 "
        return mark not in render_chat(self._tokenizer, mark)
