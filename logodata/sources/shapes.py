"""Rows of other projects' data sets, turned into ours: a document with questions.

Both hold document and question in one message, in a few known wordings. A message in none of them has no document, and
its questions are rejected as such.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.sources.settings import ALIASES

Shape = Literal["plain", "longalpaca", "conversations"]

TURN_FIELDS = ("conversations", "messages")
ALPACA_FIELDS = ("instruction", "input", "output", "file")

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}

# LongAlpaca: an opening sentence, the document, a closing sentence, the question. The last closing sentence counts.
_ALPACA = re.compile(
    r"\s*(?:Below is|There are)\b(?P<opening>[^\n]*?)\bMemorize\b[^\n]*?\bmy question after the \w+\.\s*"
    r"(?:The (?:first )?paper begins\.)?(?P<context>.*)"
    r"\bNow the (?:second paper|paper|book|material) ends\.(?P<question>.*)",
    re.DOTALL,
)
_ALPACA_TITLE = re.compile(r"paragraphs in the book, (?P<title>.+)\.\s*$")

# long-llm-data: rules around the document, or the document between an opening and the last paragraph.
_RULED = re.compile(r"\s*Context information is below:\n-{5,}\n(?P<context>.*)\n-{5,}\n(?P<question>.*)", re.DOTALL)
_OPENING = re.compile(
    r"\s*(?:(?:Story|Paper|Context):|Read the following context\.|Below presents [^\n]{1,80}\.|Here is a chapter [^\n]*"
    r"|I want you read [^\n]*|You're a (?:smart|story) [^\n]*|There is an important info[^\n]*)\s*\n"
)
_ASKING = re.compile(r"\s*Answer my question using the knowledge from the context:\s*")

# Files of long-llm-data say in their name what their questions are.
_KINDS = {"one_detail": "single_detail", "multi_detail": "multi_detail", "bio_": "biography", "booksum": "summary"}


def shape_of(columns: Collection[str]) -> Shape:
    """What the rows of a source are, by the names of their columns."""
    if any(name in columns for name in ALIASES["context"]):
        return "plain"
    if any(name in columns for name in TURN_FIELDS):
        return "conversations"
    return "longalpaca" if "instruction" in columns and "output" in columns else "plain"


def kind_of(path: str) -> str:
    """Kind of the questions in a file of long-llm-data."""
    return next((kind for part, kind in _KINDS.items() if part in PurePath(path).name), "other")


def from_longalpaca(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A LongAlpaca row (instruction, input, output, file): the document stands in the instruction, else in the input;
    without either it is empty."""
    instruction = _text(row, "instruction", where)
    given = _text(row, "input", where, default="")
    context, question, title = split_message(instruction, plain=False)
    if not context.strip() and given.strip():
        context, question = given, instruction
    return {
        "context": context.strip(),
        "title": title or _text(row, "file", where, default=""),
        "question": question,
        "answers": [_text(row, "output", where)],
    }


def from_conversation(row: Mapping[str, Any], where: str, kind: str = "other") -> dict[str, Any]:
    """A conversation (turns of role and content, or of from and value): the document stands in the user's first turn,
    every user turn asks, the assistant's turn after it answers."""
    field = next((name for name in TURN_FIELDS if row.get(name) is not None), None)
    turns = row[field] if field else None
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"no list of turns in 'conversations' (fields: {', '.join(row) or 'none'})",
            where=where,
            mend="write {conversations: [{role: user, content: ...}, {role: assistant, content: ...}]}",
        )
    questions: list[dict[str, Any]] = []
    context = title = ""
    for turn in turns:
        if not isinstance(turn, dict):
            raise UserError(f"a turn is {type(turn).__name__}, not an object", where=where, mend="correct this row")
        role = turn.get("role") or turn.get("from")
        if role not in _ROLES:
            raise UserError(f"a turn's role is {role!r}", where=where, mend=f"roles are {', '.join(_ROLES)}")
        text = _text(turn, "content" if "content" in turn else "value", where)
        if _ROLES[role] == "user":
            if not questions:
                context, text, title = split_message(text, plain=True)
            questions.append({"question": text, "answers": [], "kind": kind})
        elif _ROLES[role] == "assistant" and questions:
            questions[-1]["answers"].append(text)
    return {"context": context.strip(), "title": title, "questions": questions}


def split_message(message: str, *, plain: bool) -> tuple[str, str, str]:
    """Document, question and title of a message that holds both; the document is empty where none is found.

    Args:
        message: the user's.
        plain: whether a message in no known wording is document and question too, split at its last blank line, as the
            code published with the paper does.
    """
    match = _ALPACA.fullmatch(message)
    if match:
        title = _ALPACA_TITLE.search(match["opening"].rstrip() + " ")
        return match["context"].strip(), match["question"].strip(), title["title"] if title else ""
    match = _RULED.fullmatch(message)
    if match:
        return match["context"].strip(), _ask(match["question"]), ""
    if not plain:
        return "", message, ""
    context, _, question = message.rstrip().rpartition("\n\n")
    opening = _OPENING.match(context + "\n")
    return context[opening.end() :].strip() if opening else context.strip(), _ask(question), ""


def _ask(question: str) -> str:
    return _ASKING.sub("", question, count=1).strip()


def _text(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "absent" if value is None else type(value).__name__
        raise UserError(f"field {name!r} is {found}, not str", where=where, mend="correct this row")
    return value
