"""Recipes: one YAML file an experiment, sections per command, overrides on the command line.

A recipe file may hold ``name``, ``description``, ``model``, ``seed`` and the sections ``build``, ``train`` and
``eval``. Each command reads its own section; ``model`` and ``seed`` go to every section that does not set its own. A
command-line override (``objective.beta=2.5``) is relative to the command's section.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from logodata.common.errors import UserError

Section = Literal["build", "train", "eval"]
_TOP_LEVEL = ("name", "description", "model", "seed", "build", "train", "eval")


class RecipeModel(BaseModel):
    """Base of every recipe section: unknown keys are errors, values are checked at construction, nothing changes
    after."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


RecipeT = TypeVar("RecipeT", bound=RecipeModel)


def shipped_recipes() -> Path:
    """The folder of the recipes that come with the project (a checkout's, or the copy inside an installed wheel)."""
    packaged = Path(str(resources.files("logodata"))) / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def load_recipe(cls: type[RecipeT], section: Section, path: Path | None, overrides: Sequence[str] = ()) -> RecipeT:
    """Read one section of a recipe file, apply ``key.key=value`` overrides, check it.

    Args:
        cls: the section's model.
        section: which part of the file ``cls`` describes.
        path: the YAML file; None takes the defaults of ``cls``.
        overrides: YAML values by dotted key, relative to the section.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest one is named) or a value is out of range.
    """
    lines: dict[tuple[str, ...], int] = {}
    values: dict[str, Any] = {}
    if path is not None:
        document, lines = _read_yaml(path)
        for key in document:
            if key not in _TOP_LEVEL:
                where = f"{path}:{lines.get((key,), 1)}"
                raise UserError(f"unknown key {key!r}", where=where, mend=_nearest(key, _TOP_LEVEL))
        own = document.get(section) or {}
        if not isinstance(own, dict):
            raise UserError(
                f"section {section!r} is not a mapping",
                where=f"{path}:{lines.get((section,), 1)}",
                mend="indent its keys below it",
            )
        shared: dict[str, Any] = {k: document[k] for k in ("model", "seed") if k in document and k in cls.model_fields}
        values = {**shared, **own}
    for override in overrides:
        _apply_override(values, override)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(error, cls, section, path, lines, overrides) from error


def recipe_schema(cls: type[RecipeModel]) -> str:
    """JSON schema of a section, for editors."""
    return json.dumps(cls.model_json_schema(), indent=2)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.name for p in shipped_recipes().glob("*.yaml")))
        raise UserError("no such recipe", where=str(path), mend=f"shipped ones, in recipes/: {names}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="give a UTF-8 YAML file") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(
            f"not valid YAML: {getattr(error, 'problem', error)}", where=where, mend="check indentation and quotes"
        ) from error
    if not isinstance(document, dict):
        raise UserError("a recipe is a YAML mapping", where=str(path), mend="see recipes/embedded.yaml")
    lines: dict[tuple[str, ...], int] = {}
    _collect_lines(node, (), lines)
    return document, lines


def _collect_lines(node: yaml.Node | None, prefix: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*prefix, str(key_node.value))
            lines[key] = key_node.start_mark.line + 1
            _collect_lines(value_node, key, lines)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is not an override", mend="write key.key=value, e.g. optimizer.lr=1e-5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value of {key!r} is not valid YAML", where=override, mend="quote it") from error
    *parents, leaf = key.split(".")
    target = values
    for parent in parents:
        child = target.get(parent)
        target[parent] = child = dict(child) if isinstance(child, dict) else {}
        target = child
    target[leaf] = value


def _explain(
    error: ValidationError,
    cls: type[RecipeModel],
    section: str,
    path: Path | None,
    lines: dict[tuple[str, ...], int],
    overrides: Sequence[str],
) -> UserError:
    """The first fault of a validation error, as a line with a place and a cure."""
    # Unknown keys first: a misspelt key also causes "missing" elsewhere, and is the cause.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    location = tuple(str(part) for part in fault["loc"])
    dotted = ".".join(location)
    override = next((text for text in overrides if text.partition("=")[0] == dotted), None)
    if override is not None:
        where = override
    elif path is not None:
        line = next(
            (lines[(section, *location[:n])] for n in range(len(location), 0, -1) if (section, *location[:n]) in lines),
            None,
        )
        line = line or next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None)
        where = f"{path}:{line}" if line else str(path)
    else:
        where = "command line"
    if fault["type"] == "extra_forbidden":
        return UserError(
            f"unknown key {dotted!r}", where=where, mend=_nearest(location[-1], _keys_at(cls, location[:-1]))
        )
    if fault["type"] == "missing":
        return UserError(f"{dotted!r} is missing", where=where, mend=f"set {dotted}=...")
    return UserError(
        f"{dotted!r}: {fault['msg'].lower()}, got {fault['input']!r}",
        where=where,
        mend="see the field's description with --schema",
    )


def _nearest(key: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known keys: {', '.join(known)}"


def _keys_at(cls: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Keys of the model that ``location`` leads to, through nested and optional sections."""
    current: type[BaseModel] = cls
    for part in location:
        field = current.model_fields.get(part)
        if field is None:
            continue
        options = (field.annotation, *get_args(field.annotation))
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if nested:
            current = nested[0]
    return list(current.model_fields)
