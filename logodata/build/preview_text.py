"""Show a preview in the terminal: ``logodata preview``."""

from __future__ import annotations

from collections.abc import Mapping

from logodata.build.preview import Preview, Work
from logodata.common.console import console
from logodata.common.streams import reader_left
from logodata.dataset.inspect_text import print_context, print_question

_CHUNK_CHARACTERS = 240
"""The characters that are shown of a chunk."""


def print_preview(found: Preview) -> None:
    """Print the numbers of a preview, and the contexts of some questions with critical chunks marked."""
    for question in found.shown:
        if reader_left():
            return
        title = f"{question.id}: {question.prompt_tokens:,} prompt tokens"
        print_context(title, question.context, most_characters=_CHUNK_CHARACTERS)
        print_question(question.question, question.answers)
        console.print()
    _line("documents", f"{found.documents:,}{_lengths(found)}")
    _line("", _counts("left out: ", found.left_out))
    _line("", _counts("not in their texts: ", found.lost))
    _line("chunks", f"{found.chunks:,} of {found.chunk_tokens} tokens at most, drawn from {found.pools:,} pools")
    if found.questions:
        _line("questions", f"{found.questions:,}, of which {found.usable:,} can become samples")
        _line("", _counts("others: ", found.unusable))
    else:
        _line("questions", f"none: logodata questions {found.source} --model NAME -o asked.jsonl writes some")
    if found.usable:
        _print_work(found.work)


def _lengths(found: Preview) -> str:
    tokens = found.document_tokens
    if tokens is None:
        return ""
    return f": {tokens.min:,} to {tokens.max:,} tokens, median {tokens.median:,}, {found.total_tokens:,} in all"


def _print_work(work: Work) -> None:
    if not work.asks:
        _line("prompts", "none: nothing is generated")
        return
    first = "at most " * (work.try_prompts is not None)
    preferred = f"{first}{work.preferred_prompts:,} for preferred responses ({work.preferred_prompt_tokens:,} tokens)"
    others = f"{work.dispreferred_prompts_at_most:,} for others ({work.dispreferred_prompt_tokens_at_most:,} tokens)"
    if work.try_prompts is not None and work.try_prompt_tokens is not None:
        preferred = f"{work.try_prompts:,} to see what is solved ({work.try_prompt_tokens:,} tokens), {preferred}"
    _line("prompts", f"{preferred}, and at most {others}")
    _line("", f"{work.cached:,} more are in the cache" if work.cached else "")
    most = f"at most {work.response_tokens_at_most:,} tokens, {work.max_new_tokens:,} for each"
    _line("responses", most)
    if work.judge_prompts_at_most is not None:
        text = (
            f"at most {work.judge_prompts_at_most:,} prompts to the model judge; their tokens depend on the responses"
        )
        _line("judge", text)
    if work.cost_at_most is not None:
        judge = ", without the judge" if work.judge_prompts_at_most is not None else ""
        _line("cost", f"{work.cost_at_least:,.2f} to {work.cost_at_most:,.2f} in the unit of the prices{judge}")
    else:
        _line(
            "cost",
            "not estimated: --prompt-price and --response-price, or a table engine.prices, give what a server takes",
        )
    least = f"at least {_time(work.seconds_at_least)} by the rate limits" if work.seconds_at_least is not None else ""
    if work.seconds_at_most is not None:
        _line("time", f"at most {_time(work.seconds_at_most)} at the given rate{', ' * bool(least)}{least}")
    else:
        unknown = "not estimated: nothing is measured; --tokens-per-s takes the rate that a build shows"
        _line("time", f"{least}; otherwise {unknown}" if least else unknown)


def _line(name: str, text: str) -> None:
    if text:
        console.print(f"{name:14} {text}", markup=False, soft_wrap=True)


def _counts(before: str, counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counts.items())
    return before + listed if listed else ""


def _time(seconds: float | None) -> str:
    assert seconds is not None
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
