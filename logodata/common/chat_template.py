"""Render chat templates, the programs that come with models and write a conversation as one text.

transformers renders them in Jinja's sandbox, which hides the machine from them. Here they also get a bound on the texts
that they make, and one on their time.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from logodata.common.errors import SettingError, UserError, did_you_mean, first_line, raised_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_ARGUMENTS: dict[str, Any] = {"strftime_now": datetime(2024, 7, 26).strftime}
"""What every chat template is rendered with. One that asks for the date gets the same on every day: parts of a build,
its continuation and evaluations must see one prompt. Llama-3's own template writes this date where it has no clock."""

TEMPLATE_SETTING = "chat_template=FILE"
"""The setting that gives another chat template, as errors write it."""

_GIVEN = frozenset(
    [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "strftime_now",
        "raise_exception",
        "namespace",
        "range",
    ]
)
"""What every template may read without its user's doing."""

_SECONDS = 10.0
_MAX_FRAME = 2**20
_MAX_TEXT = 2**28
"""Characters of a text inside a template. A document has at most as many bytes."""
_MAX_BITS = 2**16


def render_chat(tokenizer: PreTrainedTokenizerBase, user: str, assistant: str | None = None) -> str:
    """Write a conversation as ``tokenizer.apply_chat_template`` does, always on the same day. Without the assistant's
    answer the text ends where that answer begins.

    Raises:
        UserError: The template fails, takes more than ten seconds, or adds more than a million characters.
    """
    messages = [{"role": "user", "content": user}]
    if assistant is not None:
        messages.append({"role": "assistant", "content": assistant})
    return render_messages(tokenizer, messages, ask=assistant is None)


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    ask: bool,
) -> str:
    """Write messages of any roles as :func:`render_chat` does. With ``ask`` the text ends where the assistant's next
    turn begins.

    Raises:
        UserError: See :func:`render_chat`.
    """
    arguments = {"messages": list(messages), "tools": tools, "documents": None, "add_generation_prompt": ask}
    size = sum(len(message.get("content") or "") for message in messages)
    try:
        with _limited_time(_SECONDS):
            template = _compiled(tokenizer.get_chat_template(tools=tools))
            rendered = template.render(arguments, **{**tokenizer.special_tokens_map, **TEMPLATE_ARGUMENTS})
    except Exception as error:  # whatever a template may do
        reason = next(iter(str(error).splitlines()), "")
        what = f"the chat template fails: {type(error).__name__} {reason}"
        raise SettingError(what, setting=TEMPLATE_SETTING) from error
    assert isinstance(rendered, str)
    if len(rendered) > size + _MAX_FRAME:
        raise SettingError("the chat template adds more than a million characters", setting=TEMPLATE_SETTING)
    return rendered


def with_variables(template: str | dict[str, str] | None, variables: Mapping[str, object], model: str) -> Any:
    """Return a chat template, or each of several, that sets variables itself before it reads them. Whoever renders it
    then gets the same prompts, and its fingerprint tells the values.

    Raises:
        UserError: The template of ``model`` reads no variable of that name, or there is none.
    """
    texts = template if isinstance(template, dict) else {"": template or ""}
    read = set[str]().union(*map(_free_variables, texts.values()))
    for name in variables:
        if name not in read:
            known = sorted(read - _GIVEN)
            what = f"the chat template of {model} reads no variable {name!r}"
            mend = did_you_mean(name, known, f"it reads {', '.join(known)}" if known else "leave it out")
            raise UserError(what, where=f"chat_template_args.{name}", mend=mend)
    begin = "".join(f"{{%- set {name} = {_literal(value)} %}}" for name, value in variables.items())
    return {name: begin + text for name, text in texts.items()} if isinstance(template, dict) else begin + texts[""]


def _free_variables(template: str) -> set[str]:
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return meta.find_undeclared_variables(_compile_jinja_template("").environment.parse(template))
    except Exception as error:
        what = f"the chat template fails: {type(error).__name__} {first_line(error)}"
        raise SettingError(what, setting=TEMPLATE_SETTING) from error


def _literal(value: object) -> str:
    return "none" if value is None else json.dumps(value)


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let ``tokenizer.apply_chat_template`` render on the day of :data:`TEMPLATE_ARGUMENTS`, too. In transformers
    5.24 it takes no functions as arguments."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(tokenizer.get_chat_template()).environment.globals.update(TEMPLATE_ARGUMENTS)


@lru_cache
def _compiled(text: str) -> Any:
    """Compile a template in transformers' own environment, where operators look at the size of their result first."""
    # Jinja's sandbox bounds ``range`` by itself. It leaves filters and methods such as ``center`` unbounded.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    sandbox = _compile_jinja_template("").environment.overlay()
    sandbox.intercepted_binops = frozenset({"*", "**", "%"})
    sandbox.binop_table = {**sandbox.binop_table, "*": _times, "**": _power, "%": _modulo}
    sandbox.concat = _join
    return sandbox.from_string(text)


def _times(left: Any, right: Any) -> Any:
    for text, count in ((left, right), (right, left)):
        if isinstance(text, Sized) and isinstance(count, int) and len(text) * count > _MAX_TEXT:
            raise OverflowError("it repeats a text too often")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
        raise OverflowError("a number is too large")
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_BITS:
        raise OverflowError("a number is too large")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str) and re.search(r"\*|\d{7}", left):
        raise OverflowError("it formats a value too widely")
    return left % right


def _join(parts: Iterable[str]) -> str:
    """Put together the pieces of a text: of the whole conversation, a block or a macro."""
    kept, size = [], 0
    for part in parts:
        size += len(part)
        if size > _MAX_TEXT:
            raise OverflowError("it writes too long a text")
        kept.append(part)
    return "".join(kept)


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` inside the block after some seconds, on the main thread, which alone gets signals."""
    with raised_by(signal.SIGALRM, lambda: TimeoutError(f"it takes more than {seconds:g} s")) as is_main:
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            if is_main:
                signal.setitimer(signal.ITIMER_REAL, 0)
