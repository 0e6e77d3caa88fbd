"""Prompts as token ids: RULER's texts in the model's chat template, and what of a length a prompt may have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from logodata.prompts import PromptFormat, encode_text, text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateChoice = Literal["chat", "none"]


class Frame:
    """The chat template around the text of a turn, or none.

    The answer prefix begins the assistant's turn. Only the frame may hold control tokens. Without a chat template the
    whole prompt is one text, after the beginning-of-sequence token where the tokenizer writes one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateChoice) -> None:
        self._tokenizer = tokenizer
        self._format = PromptFormat(tokenizer, "{question}") if template == "chat" else None
        self._same: dict[int, int] = {}
        self.fingerprint = self._format.fingerprint if self._format else "no chat template"

    def encode(self, turns: Sequence[tuple[str, str]], *, prefix: bool = True) -> tuple[int, ...]:
        """Return the token ids of a prompt, given its turns (:class:`logoeval.tasks.ruler.sample.Sample`); ``prefix``
        says whether the answer prefix, the end of the last turn, is part of it."""
        if not prefix:
            turns = [*turns[:-1], (turns[-1][0], "")]
        if self._format is None:
            text = "".join(question + answer for question, answer in turns)
            return self._shared(text_tokenizer(self._tokenizer).encode(text, split_special_tokens=True))
        ids: list[int] = []
        for question, answer in turns:
            ids += [*self._format.encode([], question=question).ids, *encode_text(self._tokenizer, answer)]
        return self._shared(ids)

    def _shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Let equal token ids share one integer object: 500 prompts of 128K tokens take half a gigabyte then, and not
        two."""
        return tuple(self._same.setdefault(token, token) for token in ids)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text by itself."""
        return len(encode_text(self._tokenizer, text))
