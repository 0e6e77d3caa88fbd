"""Remove the reasoning that a model writes before its answer, between markers of its own, and find its markers."""

from __future__ import annotations

import regex

# The markers of DeepSeek-R1, Qwen3 and most others, Seed-OSS, Magistral, Kimi, Command A, MedGemma, Gemma 4 and GPT-OSS
# (also without its special tokens).
_NAMES = (
    "think(?:ing)?|thoughts?|inner_thoughts?|reason(?:ing)?|reflection|scratchpad|antthinking|seed:think|analysis"
    "|chain_of_thought|longcat_think|reasoning_content"
)
_LESS, _MORE = "(?:<|&lt;|\N{FULLWIDTH LESS-THAN SIGN})", "(?:>|&gt;|\N{FULLWIDTH GREATER-THAN SIGN})"
_OPENING = (
    rf"{_LESS}\s*\|?(?:{_NAMES})\b[^<>|]{{0,80}}?\|?{_MORE}"
    r"|\[THINK\]|◁think▷|<\|(?:START_THINKING|begin_of_thought)\|>|<unused94>thought"
    r"|<\|channel\|>analysis(?:<\|message\|>)?|<\|channel>thought"
)
_CLOSING = (
    rf"{_LESS}\s*\|?/\s*(?:{_NAMES})\s*\|?{_MORE}"
    r"|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|end_of_thought)\|>|<unused95>|<channel\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final(?:<\|message\|>)?|assistantfinal"
)
_BLOCK = regex.compile(rf"(?:{_OPENING})(?:(?!{_OPENING}).)*?(?:{_CLOSING})", regex.DOTALL | regex.IGNORECASE)
_HEAD = regex.compile(rf"\A.*(?:{_CLOSING})", regex.DOTALL | regex.IGNORECASE)
_TAIL = regex.compile(rf"(?:{_OPENING}).*\Z", regex.DOTALL | regex.IGNORECASE)


def without_reasoning(response: str) -> str:
    """Return the answer of a response: what is left without blocks of reasoning.

    A chat template may write the opening marker into the prompt, so a response may begin inside its reasoning:
    everything up to the last closing marker is removed. A response that was cut off while reasoning holds no answer,
    and nothing is left.
    """
    answer, num_blocks = _BLOCK.subn("", response)
    answer, num_heads = _HEAD.subn("", answer)
    answer, num_tails = _TAIL.subn("", answer)
    return answer.strip() if num_blocks or num_heads or num_tails else response


_LEADS = regex.compile(rf"\s*(?:{_OPENING})", regex.IGNORECASE)
_CLOSES = regex.compile(rf"\A(?:(?!{_OPENING}).)*?(?:{_CLOSING})[^\S\n]*(?:\n|\Z)", regex.DOTALL | regex.IGNORECASE)


def holds_reasoning(response: str) -> bool:
    """Whether a response begins with reasoning: it opens some, or closes some that was opened before it, at the end of
    a line. An answer that only names a marker does not."""
    return _LEADS.match(response) is not None or _CLOSES.match(response) is not None


_PAIRS = (
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<unused94>thought", "<unused95>"),
)
"""Markers of Gemma 4, GPT-OSS, Magistral, Kimi, Command A, open thoughts and MedGemma."""

_TAG = regex.compile(rf"</({_NAMES})>")


def reasoning_markers(template: str) -> tuple[str, str]:
    """Return the markers around the reasoning of a model: those whose end its chat template (its source) writes or
    looks for. ``<think>`` and ``</think>`` where it names none."""
    for opening, closing in _PAIRS:
        if closing in template:
            return opening, closing
    tag = _TAG.search(template)
    name = tag[1] if tag else "think"
    return f"<{name}>", f"</{name}>"
