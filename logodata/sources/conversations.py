"""Convert rows of other projects' data sets into our form: a document with questions.

Conversations and instructions hold document and question in one message, in one of a few known wordings, or in separate
turns. If no document is found in a message, the document is empty and its questions are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from logodata.common.errors import UserError
from logodata.sources.fields import ALIASES, PARTS, aliases, column_of, names_of, value_of

Shape = Literal["plain", "longalpaca", "conversations", "squad"]

TURN_FIELDS = ("conversations", "messages", "conversation")
_INSTRUCTIONS = ("instruction", "input", "file")
_COMPLETIONS = ("completion", "response", "chosen", "output", "answer", "answers")
COLUMNS = (
    *(name for field in ALIASES for name in aliases(field)),
    *(*TURN_FIELDS, *_INSTRUCTIONS, *_COMPLETIONS, "prompt", "system", "data"),
    *(*PARTS, "options", "choices", "gold_label", "choice_A", "choice_B", "choice_C", "choice_D"),
)
"""Columns that are read: those of our own fields, and of the rows that are converted."""

UNDERSTOOD = (
    'write {"messages": [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": QUESTION}, '
    '{"role": "assistant", "content": ANSWER}]}, or both in the first user turn: DOCUMENT, an empty line, QUESTION'
)
"""How to mend conversations in which no document is found."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What other projects call the roles of a conversation."""

# LongAlpaca: an opening sentence, the document, a closing sentence, the question. The last closing sentence counts.
_ALPACA = re.compile(
    r"\s*(?:Below is|There are)\b(?P<opening>[^\n]*?)\bMemorize\b[^\n]*?\bmy question after the \w+\.\s*"
    r"(?:The (?:first )?paper begins\.)?(?P<context>.*)"
    r"\bNow the (?:second paper|paper|book|material) ends\.(?P<question>.*)",
    re.DOTALL,
)
_ALPACA_TITLE = re.compile(r"paragraphs in the book, (?P<title>.+)\.\s*$")

# long-llm-data: the document between two lines of dashes, or between an opening line and the last paragraph.
_RULED = re.compile(r"\s*Context information is below:\n-{5,}\n(?P<context>.*)\n-{5,}\n(?P<question>.*)", re.DOTALL)
_OPENING = re.compile(
    r"\s*(?:(?:Story|Paper|Context):|Read the following context\.|Below presents [^\n]{1,80}\.|Here is a chapter [^\n]*"
    r"|I want you read [^\n]*|You're a (?:smart|story) [^\n]*|There is an important info[^\n]*)\s*\n"
)
_INSTRUCTION = re.compile(r"\s*Answer my question using the knowledge from the context:\s*")

# Common wordings: document and question under labels, in either order, or the document between tags.
_LABEL = re.compile(
    r"^[ \t]*(?:(?P<document>Context|Document|Passage|Article|Text|Story|Paper)|(?P<question>Question|Query|Q)):", re.M
)
_ANSWER_LABEL = re.compile(r"\n[ \t]*(?:Answer|A):\s*\Z")
_LABEL_WITHIN = 1000
"""The first label must begin within this many characters. A later label belongs to the document."""

_TAGGED = re.compile(
    r"(?P<before>.*?)<(?P<tag>document|documents|context|article|passage|text|story)>\s*(?P<context>.*)\s*</(?P=tag)>"
    r"(?P<after>.*)",
    re.DOTALL | re.IGNORECASE,
)

_LEAST_CHARACTERS = 300
"""A turn of fewer characters is not taken for a document, unless it has a known wording."""

_LONGER = 4
"""A system turn that is this many times as long as the longest user turn is the document."""

_PROSE = 100
"""A last paragraph of at least this many characters that asks nothing belongs to the document."""

_QUESTION = re.compile(
    r"[?？]|^\W*(?:please\s+)?(?:summari[sz]e|describe|explain|list|tell|write|give|name|identify|compare|discuss|find"
    r"|answer|extract|outline|translate|according|based|what|who|whose|when|where|which|why|how|is|are|was|were|did|does|do)\b",
    re.IGNORECASE,
)

# Names of long-llm-data's files tell the kind of their questions.
_KINDS = {"one_detail": "single_detail", "multi_detail": "multi_detail", "bio_": "biography", "booksum": "summary"}


def shape_of(row: Mapping[str, Any]) -> Shape:
    """Return the shape of a source's rows, judged by its first row."""

    def has(*names: str) -> bool:
        return any(column_of(row, name) is not None for name in names)

    turns = next((name for name in TURN_FIELDS if has(name)), None)
    if turns and not has(*aliases("question"), *aliases("questions")):
        return "conversations"
    if has("prompt") and has(*_COMPLETIONS) and not has("context", "document", *aliases("question")):
        return "conversations"
    if any(isinstance(parts := row.get(name), list) and _has_contexts(parts[:1]) for name in ("paragraphs", "data")):
        return "squad"
    if has(*aliases("context"), *PARTS):
        return "plain"
    return "longalpaca" if has("instruction") and has("output", "response", "answer") else "plain"


def columns_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a plain row's columns for our fields, where the lists of aliases cannot tell them. ``input`` is the
    document if another column holds the question (L-Eval, BABILong)."""
    asks = [*(name for name in aliases("question") if name != "input"), *aliases("questions")]
    has_document = any(column_of(row, name) for name in (*aliases("context"), *PARTS))
    is_asked = any(column_of(row, name) for name in asks)
    return {"context": "input"} if column_of(row, "input") and is_asked and not has_document else {}


def kind_of(path: str) -> str:
    """Return the kind of the questions in a file of long-llm-data."""
    return next((kind for part, kind in _KINDS.items() if part in PurePath(path).name), "other")


def from_longalpaca(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert a LongAlpaca row (``instruction``, ``input``, ``output``, ``file``). The document is taken from the
    instruction, else from the input. If neither holds one, it is empty."""
    instruction = _text(row, "instruction", where)
    given = _text(row, "input", where, default="")
    context, question, title, _ = split_message(instruction)
    if not context.strip() and given.strip():
        context, question = given, instruction
    output = next((name for name in ("output", "response", "answer") if column_of(row, name)), "output")
    return {
        "context": context.strip(),
        "title": title or _text(row, "file", where, default=""),
        "question": question,
        "answers": [_text(row, output, where)],
    }


def from_squad(row: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the documents in a row of SQuAD's files. Each paragraph of an article is a document with its questions
    (``qas``).

    Raises:
        UserError: An article has no list of paragraphs with a context.
    """
    for article in row["data"] if isinstance(row.get("data"), list) else [row]:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list) or not _has_contexts(paragraphs):
            raise UserError("no list of paragraphs with a context", where=where, mend="give SQuAD's files as they are")
        title = article.get("title")
        for paragraph in paragraphs:
            yield {**paragraph, "title": title if isinstance(title, str) else ""}


def from_conversation(row: Mapping[str, Any], where: str, kind: str = "other") -> dict[str, Any]:
    """Convert a conversation: turns of ``role`` and ``content`` or of ``from`` and ``value``, or ``prompt`` and
    ``completion``.

    Each user turn is a question, and the assistant's turn after it is the answer. The document is the row's ``context``
    if it has one, else a long system turn, else the first user turn or the part of it before the question. If a later
    user turn is much longer than the first, it counts as the first: the turns before it do not ask about the document.
    """
    turns = list(_turns(row, where))
    system = "\n\n".join(text for role, text in turns if role == "system").strip()
    asked: list[tuple[str, list[str]]] = []
    for role, text in turns:
        if role == "user":
            asked.append((text, []))
        elif role == "assistant" and asked:
            asked[-1][1].append(text)
    context = next((_text(row, name, where) for name in ("context", "document") if column_of(row, name)), "")
    title = ""
    if not context and asked:
        lengths = [len(text) for text, _ in asked]
        longest = lengths.index(max(lengths))
        if lengths[longest] >= max(_LEAST_CHARACTERS, _LONGER * lengths[0]) and len(system) < lengths[longest]:
            asked = asked[longest:]
        context, first, title = _document(system, [text for text, _ in asked])
        asked = [(first, asked[0][1]), *asked[1:]] if first is not None else asked[1:]
    return {
        "context": context.strip(),
        "title": title,
        "questions": [{"question": text.strip(), "answers": answers, "kind": kind} for text, answers in asked],
    }


def _document(system: str, asked: Sequence[str]) -> tuple[str, str | None, str]:
    """Return the document (or ""), the first question (None if the first user turn is the document) and the title."""
    context, question, title, is_known = split_message(asked[0])
    if is_known:
        return context, question, title
    if len(system) >= max(_LEAST_CHARACTERS, _LONGER * max(map(len, asked))):
        tagged = _TAGGED.fullmatch(system)
        return tagged["context"] if tagged else system, asked[0], ""
    context, question = _at_last_paragraph(asked[0])
    is_prose = len(question) >= _PROSE and not _QUESTION.search(question)
    if len(asked) > 1 and len(asked[0]) >= _LEAST_CHARACTERS and is_prose:
        return asked[0], None, ""  # the turns that follow ask about it
    return context, question, ""


def split_message(message: str) -> tuple[str, str, str, bool]:
    """Split a message in a known wording into document, question and title. The last value tells whether the wording is
    known; if not, the document is empty and the question is the whole message."""
    match = _ALPACA.fullmatch(message)
    if match:
        title = _ALPACA_TITLE.search(match["opening"].rstrip() + " ")
        return match["context"].strip(), match["question"].strip(), title["title"] if title else "", True
    match = _RULED.fullmatch(message)
    if match:
        return match["context"].strip(), _without_instruction(match["question"]), "", True
    if labelled := _labelled(message):
        return *labelled, "", True
    match = _TAGGED.fullmatch(message)
    if match and (match["before"].strip() or match["after"].strip()):
        question = match["after"].strip() or match["before"].strip()
        return match["context"].strip(), question, "", True
    return "", message, "", False


def _labelled(message: str) -> tuple[str, str] | None:
    """Return the document and the question that stand under labels, in either order; None if there are none."""
    labels = [(match.lastgroup, match.start(), match.end()) for match in _LABEL.finditer(message)]
    if not labels or labels[0][1] > _LABEL_WITHIN:
        return None
    first, _, begin = labels[0]
    others = [(start, end) for name, start, end in labels[1:] if name != first]
    if not others:
        return None
    start, end = others[-1 if first == "document" else 0]
    before, after = message[begin:start].strip(), _ANSWER_LABEL.sub("", message[end:]).strip()
    return ((before, after) if first == "document" else (after, before)) if before and after else None


def _at_last_paragraph(message: str) -> tuple[str, str]:
    """Split a message in no known wording into document and question.

    The split is at the last blank line, as in the code published with the paper. It is at the first blank line if a
    question stands before it and none after the last one. Without a blank line it is at the last line, if that is a
    question after a long text; otherwise the document is empty.
    """
    context, _, question = message.rstrip().rpartition("\n\n")
    first, _, rest = message.strip().partition("\n\n")
    is_question_first = first.rstrip().endswith(("?", "？")) and len(first) < _LEAST_CHARACTERS <= len(rest)
    if is_question_first and not _QUESTION.search(question):
        return rest.strip(), _without_instruction(first)
    if not context.strip():
        context, _, question = message.rstrip().rpartition("\n")
        if len(context) < _LEAST_CHARACTERS or not _QUESTION.search(question):
            return "", _without_instruction(message)
    opening = _OPENING.match(context + "\n")
    return context[opening.end() :].strip() if opening else context.strip(), _without_instruction(question)


def _turns(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Yield the role and the text of each turn."""
    turns = value_of(row, *TURN_FIELDS)
    if turns is None:
        turns = _prompted(row)
    if not isinstance(turns, list) or not turns:
        mend = "write {conversations: [{role: user, content: ...}, {role: assistant, content: ...}]}"
        raise UserError(f"no list of turns in 'conversations' (fields: {names_of(row)})", where=where, mend=mend)
    if isinstance(system := value_of(row, "system"), str):
        yield "system", system
    for turn in turns:
        if not isinstance(turn, dict):
            raise UserError(f"a turn is {type(turn).__name__}, not an object", where=where, mend="correct this row")
        role = turn.get("role") or turn.get("from")
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise UserError(f"a turn's role is {role!r}", where=where, mend=f"roles are {', '.join(ROLES)}")
        name = "value" if turn.get("content") is None and "value" in turn else "content"
        parts = turn.get(name)
        yield ROLES[role.lower()], _join_parts(parts, where) if isinstance(parts, list) else _text(turn, name, where)


def _prompted(row: Mapping[str, Any]) -> list[Any] | None:
    """Return the turns in ``prompt`` and ``completion``, each one text or several, or turns; None if one is missing."""
    turns: list[Any] = []
    for value, role in ((value_of(row, "prompt"), "user"), (value_of(row, *_COMPLETIONS), "assistant")):
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        has_turns = items is value and not all(isinstance(item, str) for item in items)
        turns += items if has_turns else [{"role": role, "content": item} for item in items]
    return turns


def _join_parts(parts: Sequence[Any], where: str) -> str:
    """Join the parts of a message in OpenAI's format."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UserError(f"a turn holds {kind}, not text", where=where, mend="leave such rows out")
    return "\n\n".join(part["text"] for part in parts)


def _has_contexts(parts: Sequence[Any]) -> bool:
    return bool(parts) and all(isinstance(part, dict) and ("qas" in part or "paragraphs" in part) for part in parts)


def _without_instruction(question: str) -> str:
    return _INSTRUCTION.sub("", question, count=1).strip()


def _text(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = value_of(row, name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "absent" if value is None else type(value).__name__
        raise UserError(f"field {name!r} is {found}, not str", where=where, mend="correct this row")
    return value
