"""The messages of the three packages, as their code spells them: what stands in ``docs/errors.md`` is checked against
it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GAP = "…"
"""Stands where a message has a name or a number of the user's."""

WORDS = re.compile(r"[A-Za-z]{3}")
"""A text with none of these is all gaps."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, with a gap for each part that is not fixed."""

    text: str
    place: str
    is_note: bool


def messages() -> list[Message]:
    """Of every ``UserError``, also those of the classes below it, every fault of a server, and every note."""
    return [
        found
        for package in ("logodata", "logotrain", "logoeval")
        for path in sorted((ROOT / package).rglob("*.py"))
        for found in _of_module(path)
    ]


def _of_module(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        for call in _own_calls(function):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            is_fault = name == "Fault"
            if (name in ("UserError", "SettingError", "Unreadable", "OtherImport", "note") or is_fault) and call.args:
                for text in _texts(call.args[0], function, tree):
                    place = f"{path.relative_to(ROOT)}:{call.lineno}"
                    yield Message(text, place, is_note=name == "note")


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """Calls of a function or module, without those of functions within it."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.Call):
            yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own_calls(child)


def _texts(node: ast.expr, function: ast.AST, tree: ast.Module, known: frozenset[str] = frozenset()) -> list[str]:
    """What an expression may say; a name in ``known`` is being looked up already."""

    def of(*nodes: ast.expr) -> list[str]:
        return [text for node in nodes for text in _texts(node, function, tree, known)]

    match node:
        case ast.Constant(value=value):
            return [str(value)]
        case ast.JoinedStr(values=parts):
            return ["".join(choice) for choice in product(*(of(part) for part in parts))]
        case ast.FormattedValue(value=ast.Name() as value):
            # Sentences that the code spells belong to the message; anything else is the user's.
            found = of(value)
            return found if all(" " in text and WORDS.search(text) for text in found) else [GAP]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return ["".join(pair) for pair in product(of(left), of(right))]
        case ast.IfExp(body=body, orelse=orelse):
            return of(body, orelse)
        case ast.BoolOp(values=values):
            return of(*values)
        case ast.Call(func=ast.Attribute(attr="join"), args=[joined]):
            return of(joined)
        case ast.GeneratorExp(elt=element):
            return of(element)
        case ast.Name(id=name) if name not in known:
            known |= {name}
            return of(*_values(name, function, tree)) or [GAP]
        case _:
            return [GAP]


def _values(name: str, function: ast.AST, tree: ast.Module) -> Iterator[ast.expr]:
    """What is assigned to a name in a function, or given to its parameter of this name in the same module."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
                yield from (value for it, value in pairs if isinstance(it, ast.Name) and it.id == name)
    if isinstance(function, ast.FunctionDef):
        names = [argument.arg for argument in function.args.args]
        if name in names:
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id == function.name:
                    yield from _argument(call, names.index(name), name)


def _argument(call: ast.Call, index: int, name: str) -> Sequence[ast.expr]:
    given = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return given or call.args[index : index + 1]
