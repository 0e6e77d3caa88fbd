"""Write what chat templates do into docs/models.md. ``python -m tests.templates_page``.

The templates are those that come with TRL, one for each family that it knows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from transformers import PreTrainedTokenizerBase

from logodata.common.chat_template import render_messages
from logodata.common.errors import UserError
from tests.conftest import make_tokenizer
from tests.models_page import PAGE

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
START = "<!-- written by tests/templates_page.py -->"

USER = {"role": "user", "content": "Zwei"}
SYSTEM = {"role": "system", "content": "Eins"}
ANSWER = {"role": "assistant", "content": "Drei"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "vier", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def families() -> list[str]:
    """The templates as their models bring them, without those that TRL changed for training and later versions."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not re.search(r"_training$|_v\d$", path.stem))


def template_row(family: str) -> str:
    """The line of the table."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    if "Zwei" not in _render(tokenizer, USER):
        return f"| `{family}` | loses text: it takes content in parts, as for images | | | |"
    facts = (_system(tokenizer), _tools(tokenizer), _reasoning(tokenizer, text), _end(tokenizer))
    return f"| `{family}` | {' | '.join(facts)} |"


def _render(tokenizer: PreTrainedTokenizerBase, *messages: dict[str, Any], **options: Any) -> str:
    return render_messages(tokenizer, messages, **{"ask": True, **options})


def _system(tokenizer: PreTrainedTokenizerBase) -> str:
    """What becomes of a system message, and whether there is one by itself."""
    alone = _render(tokenizer, USER)
    before = alone[: alone.index("Zwei")]
    try:
        with_system = _render(tokenizer, SYSTEM, USER)
    except UserError:
        return "refused"
    if "Eins" not in with_system:
        return "left out"
    between = with_system[with_system.index("Eins") + 4 : with_system.index("Zwei")]
    frame = before[-6:] if len(before) >= 6 else before
    place = "a turn of its own" if between.endswith(frame) else "put into the user's turn"
    own = " ".join(re.sub(r"<[^>]*>|\[/?[A-Z_]+\]", " ", before).split())
    return place + ("; writes one itself" if len(own) > 20 else "")


def _tools(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return "yes" if "vier" in _render(tokenizer, USER, tools=[TOOL]) else "no"
    except UserError:
        return "no"


def _reasoning(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Whether an answer begins with a thought, and what becomes of thoughts of earlier turns."""
    alone = _render(tokenizer, USER)
    opened = alone[alone.index("Zwei") + 4 :]
    found = []
    if "<think>" in opened:
        found.append("an empty thought is written" if "</think>" in opened else "a thought is opened")
    switches = re.findall(r"\b(enable_thinking|reasoning_effort)\b", text)
    found += [f"`{name}`" for name in dict.fromkeys(switches)]
    thought = {"role": "assistant", "content": "<think>\nFuenf\n</think>\n\nDrei"}
    try:
        if "Fuenf" not in _render(tokenizer, USER, thought, {"role": "user", "content": "Sechs"}):
            found.append("earlier thoughts are dropped")
    except UserError:
        pass
    return ", ".join(found) or "none"


def _end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What follows an answer."""
    whole = _render(tokenizer, USER, ANSWER, ask=False)
    after = whole[whole.rindex("Drei") + 4 :].split()
    return " ".join(f"`{token}`" for token in after) or "nothing"


def main() -> None:
    """Rewrite the table."""
    text = PAGE.read_text(encoding="utf-8")
    table = ["| template | system message | tools | reasoning | after an answer |", "| --- | --- | --- | --- | --- |"]
    table += [template_row(family) for family in families()]
    PAGE.write_text(f"{text.partition(START)[0]}{START}\n\n" + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
