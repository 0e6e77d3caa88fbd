"""Make pairs into token ids: a conversation under the model's own chat template, or a text as it is.

A conversation is rendered as transformers renders it, and tokenised as one text, so its ids are those of
``apply_chat_template``. Two things differ. Control tokens in what people wrote stay text: while the template is
rendered, marks stand for them. And a response ends with the end-of-turn token; what the template writes after it
(ChatML: a line end) is no part of the response, because the model stops there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logodata.common.chat_template import TEMPLATE_SETTING, render_chat, render_messages
from logodata.common.errors import SettingError, UserError
from logodata.common.turn_end import turn_end_ids
from logodata.pairs.messages import Message, PairFault, strings
from logodata.prompts import encode_text, is_control

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = range(0xE000, 0xF900)
"""Private-use characters, one of which stands around the number of a hidden control token."""

_QUESTION = "\ue000question\ue000"  # private-use characters: they occur in no template

_OTHER_FRAME = re.compile(r"<\|[a-z_]{2,30}\|>\s*(?:assistant\s*)?\Z")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its responses as token ids. ``text`` is the prompt's text, and ``texts`` are those of the responses
    without the token that ends them."""

    text: str
    prompt_ids: list[int]
    texts: list[str]
    response_ids: list[list[int]]


class PairEncoder:
    """Encodes conversations and texts with one tokenizer. One without a chat template, as that of a base model, encodes
    texts.

    Raises:
        UserError: No token ends a response, or the chat template fails on the plainest conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        special |= {number: token.content for number, token in added.items() if token.special}
        others = {number: token.content for number, token in added.items() if is_control(token.content)}
        self._control_ids = {*special, *others}
        controls = {*special.values(), *others.values()}
        self.has_template = bool(tokenizer.chat_template)
        if not self.has_template and tokenizer.eos_token_id is None:
            raise SettingError("the tokenizer has neither a chat template nor an eos token", setting=TEMPLATE_SETTING)
        self._end_id = turn_end_ids(tokenizer)[0] if self.has_template else int(tokenizer.eos_token_id)
        self._end = str(tokenizer.convert_ids_to_tokens(self._end_id))
        self._ends = {self._end: self._end_id}
        if tokenizer.eos_token_id is not None:
            self._ends[str(tokenizer.eos_token)] = int(tokenizer.eos_token_id)
        frame = render_chat(tokenizer, _QUESTION) if self.has_template else ""
        self._tail = frame.rpartition(_QUESTION)[2].strip()
        # A model writes some tokens itself that are not marked as special, such as <think>. They stay what they are in
        # what the assistant says, unless the template sets turns apart with them.
        own = {text for text in controls if text not in special.values() and text not in frame and text != self._end}
        self._control = _any_of(controls)
        self._own_control = _any_of(controls - own)
        self._automatic = list(tokenizer("")["input_ids"])

    # Texts ------------------------------------------------------------------------------------------------------------

    def is_rendered(self, prompt: str) -> bool:
        """Return whether a text ends as the chat template ends where the model's turn begins, with a control token in
        it."""
        return bool(self._control.search(self._tail)) and prompt.rstrip().endswith(self._tail)

    def holds_control(self, prompt: str) -> bool:
        """Return whether a text holds control tokens."""
        return self._control.search(prompt) is not None

    def has_other_frame(self, prompt: str) -> bool:
        """Return whether a text ends like the chat template of another model, with what is no control token here."""
        found = _OTHER_FRAME.search(prompt)
        return found is not None and self._control.search(found[0]) is None

    def of_text(
        self,
        prompt: str,
        responses: Sequence[str],
        ended: Sequence[bool] | None,
        *,
        rendered: bool,
        quoted: Sequence[str] = (),
    ) -> Encoded:
        """Encode a prompt of plain text. Only if it is ``rendered``, control tokens in it are recognised, but for those
        in the texts that it is known to have ``quoted``. What the tokenizer puts before every text, such as BOS, stands
        before it, once.

        Responses are text; only an end-of-turn token at their end is one. They end with it, or where the prompt is not
        rendered with the eos token, unless they have not ``ended``.
        """
        hide = _Hiding([prompt, *responses], self._control, self._own_control)
        text = prompt if rendered else hide(prompt, "user")
        for part in quoted if rendered else ():
            text = text.replace(part, hide(part, "user"), 1)
        prompt_ids = self._ids(text, hide)
        bos = self._automatic
        if prompt_ids[: len(bos)] != bos:
            prompt_ids = [*bos, *prompt_ids]
        eos_id = self._tokenizer.eos_token_id
        end_id = self._end_id if rendered or eos_id is None else int(eos_id)
        texts, ids = [], []
        for number, response in enumerate(responses):
            found = next((end for end in self._ends if response.endswith(end)), "")
            said = response.removesuffix(found)
            if not said:
                raise PairFault("empty_chosen" if number == 0 else "empty_rejected", "a response has no text")
            last = self._ends[found] if found else end_id
            does_end = bool(found) or ended is None or ended[number]
            texts.append(said)
            ids.append([*self._response_ids(text, hide(said, "assistant"), hide), *([last] if does_end else [])])
        return Encoded(prompt, prompt_ids, texts, ids)

    # Conversations ----------------------------------------------------------------------------------------------------

    def of_messages(
        self, prompt: Sequence[Message], answers: Sequence[Message], tools: list[dict[str, Any]] | None
    ) -> Encoded:
        """Encode a conversation and the responses to it, as the chat template writes them.

        Raises:
            PairFault: The template refuses or ignores a part of it, or writes a response in another way than it asks
                for it.
        """
        hide = _Hiding(strings([*prompt, *answers, *(tools or [])]), self._control, self._own_control)
        messages, hidden_tools = [hide.message(message) for message in prompt], hide.value(tools, "user")
        asked = self._render(messages, hidden_tools, ask=True)
        if tools and asked == self._render(messages, None, ask=True):
            raise PairFault("template_ignores_tools", "the chat template takes no tools")
        self._check_calls([], messages, hidden_tools, asked, ask=True)
        for message in messages:
            if message["role"] != "tool":
                self._check_said(message, asked, prompt=True)
        texts, ids = [], []
        for answer in answers:
            said = hide.message(answer)
            whole = self._render([*messages, said], hidden_tools, ask=False)
            self._check_calls(messages, [said], hidden_tools, whole, ask=False)
            if not whole.startswith(asked):
                detail = "the chat template writes a response in another way than it asks for it"
                raise PairFault("template_moves_response", f"{detail}; give another one with chat_template=FILE")
            rest = whole[len(asked) :]
            self._check_said(said, rest, prompt=False)
            response = rest.rpartition(self._end)[0] if self._end in rest else rest
            texts.append(hide.shown(response))
            ids.append([*self._response_ids(asked, response, hide), self._end_id])
        return Encoded(hide.shown(asked), self._ids(asked, hide), texts, ids)

    def _render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, ask: bool) -> str:
        try:
            return render_messages(self._tokenizer, messages, tools, ask=ask)
        except UserError as error:
            raise PairFault("template_refuses", error.what) from error

    def _check_calls(
        self,
        before: list[Message],
        said: list[Message],
        tools: list[dict[str, Any]] | None,
        rendered: str,
        *,
        ask: bool,
    ) -> None:
        """Refuse a template that writes the same whichever functions are called in what was ``said``."""
        others = _with_other_calls(said)
        if others != said and rendered == self._render([*before, *others], tools, ask=ask):
            raise PairFault("template_ignores_tool_calls", "the chat template writes no tool calls")

    def _check_said(self, message: Message, rendered: str, *, prompt: bool) -> None:
        """Refuse a template that leaves out what was said. It may trim or break lines, and it may drop the reasoning
        of earlier turns."""
        said = message["content"]
        if prompt and message["role"] == "assistant":
            return
        if "".join(said.split()) not in "".join(rendered.split()):
            who = message["role"] if prompt else "response"
            raise PairFault(f"template_changes_{who}", f"the chat template leaves out or changes the {who}'s text")

    # Token ids --------------------------------------------------------------------------------------------------------

    def _response_ids(self, asked: str, response: str, hide: _Hiding) -> list[int]:
        """Return the ids of a response as they are after the prompt. Where a token would begin in the prompt and end in
        the response, the response is tokenised apart."""
        # Control tokens cut a text before it is tokenised, so what stands before the last one changes nothing.
        last = max((match.start() for match in self._control.finditer(asked)), default=0)
        before = self._ids(asked[last:], hide)
        whole = self._ids(asked[last:] + response, hide)
        return whole[len(before) :] if whole[: len(before)] == before else self._ids(response, hide)

    def _ids(self, text: str, hide: _Hiding) -> list[int]:
        """Return the ids of a text in which control tokens are recognised, but for hidden ones.

        Raises:
            PairFault: Other control tokens come out than stand in the text.
        """
        ids: list[int] = []
        if not hide.is_used_in(text):
            ids = self._encode(text)
        else:
            waiting = ""
            for piece in self._control_split(text):
                if hide.is_used_in(piece):
                    ids += [*self._encode(waiting), *encode_text(self._tokenizer, hide.shown(piece))]
                    waiting = ""
                else:
                    waiting += piece
            ids += self._encode(waiting)
        if sum(number in self._control_ids for number in ids) != len(self._control.findall(text)):
            raise PairFault("forges_control_tokens", "a text would become control tokens")
        return ids

    def _control_split(self, text: str) -> Iterator[str]:
        """Yield the parts of a text between control tokens, and these."""
        start = 0
        for match in self._control.finditer(text):
            yield text[start : match.start()]
            yield match[0]
            start = match.end()
        yield text[start:]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def spans(self, encoded: Encoded, chunk_tokens: int, document: str | None) -> list[tuple[int, int, int, int]]:
        """Cut a prompt, or the document in it, into chunks of ``chunk_tokens`` tokens.

        Returns:
            For each chunk its tokens ``[start, end)`` in the prompt, and its characters in the prompt's text.
        """
        found = self._tokenizer(encoded.text, add_special_tokens=False, return_offsets_mapping=True)
        shift = len(encoded.prompt_ids) - len(found["input_ids"])  # BOS
        if shift < 0 or encoded.prompt_ids[shift:] != list(found["input_ids"]):
            raise PairFault("cannot_cut_chunks", "its text holds control tokens, and cannot be cut into chunks")
        offsets = found["offset_mapping"]
        start = encoded.text.find(document) if document else 0
        end = start + len(document) if document else len(encoded.text)
        if start < 0:
            raise PairFault("cannot_cut_chunks", "the chat template changes the document")
        inside = [n for n, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a]
        return [
            (group[0] + shift, group[-1] + 1 + shift, offsets[group[0]][0], offsets[group[-1]][1])
            for group in (inside[n : n + chunk_tokens] for n in range(0, len(inside), chunk_tokens))
        ]


def _with_other_calls(messages: list[Message]) -> list[Message]:
    """Return messages that call other functions than they do; equal ones if they call none."""
    return [
        {**message, "tool_calls": [_other(call) for call in calls]}
        if isinstance(calls := message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _other(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": {**function, "name": _QUESTION}}
    return {**call, "name": _QUESTION}


class _Hiding:
    """Puts marks in place of the control tokens in what people wrote, and takes them out again.

    ``control`` finds them in what anybody says, and ``own_control`` those that the assistant does not say either.
    """

    def __init__(self, texts: Iterable[str], control: re.Pattern[str], own_control: re.Pattern[str]) -> None:
        self._control, self._own_control = control, own_control
        self._held: list[str] = []
        used = {sign for text in texts for sign in _PRIVATE.findall(text)}
        mark = next(chr(code) for code in _MARKS if chr(code) not in used)
        self._mark, self._pattern = mark, re.compile(f"{mark}(\\d+){mark}")

    def __call__(self, text: str, role: str) -> str:
        """Return a text without the control tokens that are no control tokens when ``role`` says them."""
        return (self._own_control if role == "assistant" else self._control).sub(self._hold, text)

    def _hold(self, match: re.Match[str]) -> str:
        self._held.append(match[0])
        return f"{self._mark}{len(self._held) - 1}{self._mark}"

    def message(self, message: Message) -> Message:
        """Return a message with all its texts hidden, but for its role."""
        role = message["role"]
        return {key: item if key == "role" else self.value(item, role) for key, item in message.items()}

    def value(self, value: Any, role: str) -> Any:
        """Return a JSON value with all its texts hidden."""
        if isinstance(value, str):
            return self(value, role)
        if isinstance(value, Mapping):
            return {self.value(key, role): self.value(item, role) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, role) for item in value]
        return value

    def is_used_in(self, text: str) -> bool:
        """Return whether a text holds a mark."""
        return self._mark in text

    def shown(self, text: str) -> str:
        """Return a text with what the marks stand for."""
        return self._pattern.sub(lambda match: self._held[int(match[1])], text)


_PRIVATE = re.compile("[\ue000-\uf8ff]")


def _any_of(texts: set[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of some texts, the longest first; one that finds nothing if there is none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
