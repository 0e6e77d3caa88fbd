"""LongBench v2's prompts: the official words, filled in and cut as the official ``pred.py`` does."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal

from logoeval.tasks.chat_prompts import ChatPrompts
from logoeval.tasks.longbench2.data import CHOICES, Question

Template = Literal["zero_shot", "cot", "cot_answer", "no_context"]


@cache
def templates() -> dict[str, str]:
    """Return the official prompts by name. NOTICE beside the file names their source."""
    text = resources.files("logoeval.tasks.longbench2").joinpath("prompts.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def fill(template: Template, question: Question, reasoning: str = "") -> str:
    """Return a prompt as text. As officially, values are put in one after the other, so a mark such as ``$Q$`` inside
    the text is filled in, too."""
    values = {
        "$DOC$": question.context.strip(),
        "$Q$": question.question.strip(),
        **{f"$C_{letter}$": choice.strip() for letter, choice in zip(CHOICES, question.choices, strict=True)},
    }
    prompt = templates()[template]
    for mark, value in values.items():
        prompt = prompt.replace(mark, value)
    return prompt.replace("$COT$", reasoning) if template == "cot_answer" else prompt


def cut(prompts: ChatPrompts, text: str, limit: int) -> tuple[str, bool]:
    """Return a prompt without its middle, if it has more than ``limit`` tokens, and whether it was cut. Of an odd limit
    the end keeps one token more."""
    ids = prompts.encode(text)
    return (prompts.ends(ids, limit // 2, limit - limit // 2), True) if len(ids) > limit else (text, False)
