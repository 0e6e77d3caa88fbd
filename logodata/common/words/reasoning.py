"""Remove the reasoning that a model writes before its answer, between markers of its own."""

from __future__ import annotations

import regex

# The markers of DeepSeek-R1, Qwen3 and most others, Seed-OSS, Magistral, Kimi, Command A, MedGemma and GPT-OSS (also
# without its special tokens).
_NAMES = (
    "think(?:ing)?|thoughts?|inner_thoughts?|reason(?:ing)?|reflection|scratchpad|antthinking|seed:think|analysis"
    "|chain_of_thought|longcat_think|reasoning_content"
)
_LESS, _MORE = "(?:<|&lt;|\N{FULLWIDTH LESS-THAN SIGN})", "(?:>|&gt;|\N{FULLWIDTH GREATER-THAN SIGN})"
_OPENING = (
    rf"{_LESS}\s*\|?(?:{_NAMES})\b[^<>|]{{0,80}}?\|?{_MORE}"
    r"|\[THINK\]|◁think▷|<\|(?:START_THINKING|begin_of_thought)\|>|<unused94>thought"
    r"|<\|channel\|>analysis(?:<\|message\|>)?"
)
_CLOSING = (
    rf"{_LESS}\s*\|?/\s*(?:{_NAMES})\s*\|?{_MORE}"
    r"|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|end_of_thought)\|>|<unused95>"
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
