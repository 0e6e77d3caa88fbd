"""Build LongBench's prompts: fill in the template, cut the middle if too long, apply the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logodata.common.errors import UserError
from logoeval.tasks.chat_prompts import ChatPrompts
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
        self._prompts, self._limit = ChatPrompts(tokenizer), max_prompt_tokens

    def template(self, task: Task) -> str:
        """Return a fingerprint of the prompt of a task and of the chat template around it."""
        frame = self._prompts.fingerprint if task.chat else "no chat template"
        return text_fingerprint(f"{frame}\n{task.prompt}")

    def check(self, task: Task) -> None:
        """Raise a ``UserError`` if the limit is smaller than the prompt without context and input."""
        fixed = len(self._prompts.encode(task.prompt.format(context="", input="")))
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
        ids = self._prompts.encode(text)
        truncated = len(ids) > self._limit
        if truncated:  # of an odd limit one token less is kept
            text = self._prompts.ends(ids, self._limit // 2, self._limit // 2)
        if task.chat:
            return self._prompts.ask(text), truncated
        return tuple(self._prompts.encode(text) if truncated else ids), truncated
