"""Read recipes: one YAML file per experiment, one section per command, overrides on the command line.

A recipe file may hold ``name``, ``description``, ``model``, ``seed`` and the sections ``build``, ``train`` and
``eval``. Each command reads its own section; ``model`` and ``seed`` go to every section that does not set its own.

``extends: other.yaml`` (relative to the file, or a shipped recipe's name) puts a recipe over another one, which may
extend a third. Command-line overrides (``objective.beta=2.5``, relative to the command's section) are the topmost
layer. The same rules hold for all layers:

- mappings merge at every depth; lists and values replace; an empty section changes nothing;
- a mapping that gives another ``name`` (``objective.name=simpo`` over a LOGO recipe) replaces the one below it whole,
  since its fields mean something else under the new name; a note says what an override drops this way;
- each file has its own ``name`` and ``description``;
- relative paths in a file are looked up beside it first (:mod:`logodata.common.recipes.files`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from logodata.common.errors import UserError, did_you_mean
from logodata.common.printable import encodable, without_passwords
from logodata.common.recipes.fields import (
    Values,
    follow,
    merge,
    move_paths,
    nested_models,
    places_of,
    takes_list,
    variant,
)
from logodata.common.recipes.files import at_home, beside, find_recipe, no_recipe
from logodata.common.recipes.files import shipped_recipes as shipped_recipes
from logodata.common.recipes.foreign import answer
from logodata.common.recipes.types import as_list
from logodata.common.user_files import read_text

Section = Literal["build", "train", "eval"]
_SECTIONS = ("build", "train", "eval")
_MAX_RECIPE_BYTES = 2**20
_MAX_RECIPE_VALUES = 10_000
_MAX_DEPTH = 20
_SECRETS = ("api_key_env",)
"""Fields into which some people write the secret itself. Messages do not repeat their values."""

_EMBEDDED = "embedded"
"""The model of recipes that only show how things work."""
_SHOWN_SETTINGS = 3

_ESCAPE = re.compile(r"(?P<pair>\\ud[89ab]..\\ud[c-f]..)|\\.")

_SHOWN_KEYS = 5
_TOP_LEVEL = ("extends", "name", "description", "model", "seed", *_SECTIONS)

Places = dict[tuple[str, ...], str]
"""The place of each key, as ``file:line``."""


class RecipeModel(BaseModel):
    """Base of every recipe section. Unknown keys are errors. Values are checked at construction (numbers are finite),
    and nothing changes after it. One value stands for a list of it, and ``a,b`` for a list of several."""

    foreign_names: ClassVar[Mapping[str, str]] = {}
    """Answers to other programs' names of the section's fields (:mod:`logodata.common.recipes.foreign`)."""
    foreign_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Answers to other programs' values, by dotted field."""
    own_model: ClassVar[str] = ""
    """What to do for another model, where a recipe's settings are those of the embedded model."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a secret, and -v shows what an error came of
    )

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = {key for key, field in cls.model_fields.items() if takes_list(field)}
        return {key: as_list(value) if key in lists else value for key, value in values.items()}


RecipeT = TypeVar("RecipeT", bound=RecipeModel)


def as_today(cls: type[RecipeT], values: object) -> RecipeT | None:
    """Return a recipe that an earlier program wrote as JSON: fields that it did not know have their defaults. None if
    it cannot be read any more."""
    try:
        return cls.model_validate(values)
    except ValidationError:
        return None


def load_recipe(cls: type[RecipeT], section: Section, path: Path | None, overrides: Sequence[str] = ()) -> RecipeT:
    """Read one section of a recipe file, apply ``key.key=value`` overrides, and check the result.

    ``path`` is a YAML file or the name of a shipped recipe; None takes the defaults of ``cls``. The values of overrides
    are YAML, and their dotted keys begin in the section.

    Raises:
        UserError: A file cannot be read, a key is unknown (the nearest one is named), or a value is out of range.
    """
    places: Places = {}
    values: Values = {}
    models: list[Any] = []
    if path is not None:
        path = find_recipe(path) or path
        document, places = _read_layers(path, section, cls, (), models)
        shared: Values = {k: document[k] for k in ("model", "seed") if k in document and k in cls.model_fields}
        values = {**shared, **(document.get(section) or {})}
    merged = merge(values, move_paths(_overlay(overrides), cls, at_home), cls)
    try:
        recipe = cls.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, cls, section, path, places, overrides) from error
    _note_dropped(cls, values, merged)
    if _EMBEDDED in models and getattr(recipe, "model", _EMBEDDED) != _EMBEDDED:
        _warn_of_embedded_settings(cls, path, values, merged)
    return recipe


def as_overrides(fields: Mapping[str, object]) -> list[str]:
    """Return what options say of fields, by dotted key, as overrides; None says nothing."""
    return [f"{key}={_as_yaml(value)}" for key, value in fields.items() if value is not None]


def _as_yaml(value: object) -> str:
    """Return a value as JSON that YAML reads the same: what is beyond U+FFFF has two escapes in JSON, in YAML one."""

    def escape(found: re.Match[str]) -> str:
        if not found["pair"]:
            return found[0]
        character: str = json.loads(f'"{found[0]}"')
        return f"\\U{ord(character):08x}"

    return _ESCAPE.sub(escape, json.dumps(value, default=str))


def _read_layers(
    path: Path, section: Section, cls: type[BaseModel], above: tuple[Path, ...], models: list[Any]
) -> tuple[Values, Places]:
    """Read a recipe over those that it extends. ``above`` are the files that led here, ``models`` gets their models."""
    document, places = _read_file(path, section, cls)
    models += [document.get("model"), (document.get(section) or {}).get("model")]
    if "extends" not in document:
        return document, places
    where, name = places["extends",], document.pop("extends")
    if not isinstance(name, str):
        raise UserError("'extends' is not a file name", where=where, mend="write extends: other.yaml")
    base_path = find_recipe(name, path.parent)
    if base_path is None:
        mend = "give a path relative to this file"
        raise UserError(f"extends {path.parent / name}: no such recipe", where=where, mend=mend)
    chain = (*above, path.resolve())
    if base_path.resolve() in chain:
        files = " -> ".join(file.name for file in (*chain, base_path))
        raise UserError(f"recipes extend one another: {files}", where=where, mend="remove one 'extends'")
    base, base_places = _read_layers(base_path, section, cls, chain, models)
    own = {key: value for key, value in document.items() if key not in _SECTIONS or value is not None}
    merged = {key: value for key, value in base.items() if key not in ("name", "description")} | own
    for key in _SECTIONS:
        if base.get(key) is not None and key in own:
            merged[key] = merge(base[key], own[key], cls if key == section else None)
    everywhere = {**base_places, **places}
    return merged, {keys: place for keys, place in everywhere.items() if _holds(merged, keys)}


def _holds(values: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _read_file(path: Path, section: Section, cls: type[BaseModel]) -> tuple[Values, Places]:
    """Read one file, check that its keys are known and its sections are mappings, and resolve paths in ``section``."""
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise UserError("too large for a recipe", where=str(path), mend="is this file a recipe?")
        text = read_text(path, most_bytes=_MAX_RECIPE_BYTES, mend="give a UTF-8 YAML file")
    except FileNotFoundError as error:
        raise no_recipe(path) from error
    except OSError as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="give a UTF-8 YAML file") from error
    try:
        node, document = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        mend = "check indentation and quotes"
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where, mend=mend) from error
    if not isinstance(document, dict):
        raise UserError("a recipe is a YAML mapping", where=str(path), mend="see recipes/embedded.yaml")
    places: Places = {}
    _collect_places(node, (), path, places)
    unknown: list[_Unknown] = []
    for key, value in document.items():
        where = places.get((str(key),), str(path))
        if key not in _TOP_LEVEL:
            mend = _hint_for_key(str(key), cls, f"{section}.") or _nearest(str(key), _TOP_LEVEL)
            unknown.append(_Unknown(str(key), where, mend))
        if key in _SECTIONS and not isinstance(value, dict | None):
            raise UserError(f"section {key!r} is not a mapping", where=where, mend="indent its keys below it")
    if unknown:
        raise _unknown(unknown)
    move = partial(beside, folder=path.parent)
    document = move_paths(document, cls, move)  # resolves the model, which stands above the sections
    if document.get(section):
        document[section] = move_paths(document[section], cls, move)
    return document, places


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the node and the value of a YAML text. The only error is ``YAMLError``, also where it holds too much."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        if _num_values(node, {}) > _MAX_RECIPE_VALUES:
            # A few lines of aliases of aliases can stand for more values than memory holds.
            raise yaml.YAMLError(f"it stands for more than {_MAX_RECIPE_VALUES} values")
        return node, loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError, OverflowError) as error:
        # PyYAML's constructors of numbers, dates and tagged values raise these.
        raise yaml.YAMLError(f"a value is not what it looks like: {error}") from error
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values that a node stands for, every alias written out. ``known`` has the counts of nodes by id."""
    if id(node) not in known:
        known[id(node)] = _MAX_RECIPE_VALUES + 1  # holds for a node that contains itself
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_num_values(part, known) for part in below)
    return known[id(node)]


def _collect_places(node: yaml.Node | None, prefix: tuple[str, ...], path: Path, places: Places) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*prefix, str(key_node.value))
            where = f"{path}:{key_node.start_mark.line + 1}"
            if key in places:  # YAML would silently take the last
                raise UserError(f"{'.'.join(key)!r} stands at {places[key]} too", where=where, mend="keep one of them")
            places[key] = where
            _collect_places(value_node, key, path, places)


def _overlay(overrides: Sequence[str]) -> Values:
    """Return overrides as one mapping; of two for the same key the later one counts."""
    values: Values = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"{override!r} is not an override", mend="write key.key=value, e.g. optimizer.lr=1e-5")
        try:
            _, value = _parse(text)
        except yaml.YAMLError as error:
            if encodable(override) != override:
                raise UserError(f"{key!r} is not UTF-8", where=override, mend="rename the file or folder") from error
            raise UserError(f"the value of {key!r} is not valid YAML", where=override, mend="quote it") from error
        *parents, leaf = key.split(".")
        if len(parents) > _MAX_DEPTH:
            raise UserError("the key is too deep", where=f"{override[:80]}...", mend="see the fields with --schema")
        target = values
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[leaf] = value
    return values


def _note_dropped(cls: type[BaseModel], values: Values, merged: Values, above: str = "") -> None:
    from logodata.common.console import note

    for name, field in cls.model_fields.items():
        old, new, key = values.get(name), merged.get(name), above + name
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        chosen, models = variant(field, new), nested_models(field)
        if variant(field, old) == chosen:
            if (chosen or "") in models:
                _note_dropped(models[chosen or ""], old, new, f"{key}.")
            continue
        dropped = [f"{key}.{inner}={value}" for inner, value in old.items() if inner not in new]
        if dropped:
            note(f"{key}.name={chosen} starts from its own defaults, dropped: {' '.join(dropped)}")


def _warn_of_embedded_settings(cls: type[RecipeModel], path: Path | None, values: Values, merged: Values) -> None:
    """Print which settings of the embedded model another model gets: what suits 135M weights seldom suits others."""
    from logodata.common.console import note

    kept = [
        f"{key}={'null' if value is None else value}"
        for key, value in _flat(values)
        if key.partition(".")[0] not in ("model", "seed", "source", "data") and (key, value) in _flat(merged)
    ]
    if kept:
        more = f" and {len(kept) - _SHOWN_SETTINGS} more" if len(kept) > _SHOWN_SETTINGS else ""
        what = f"{path} has settings of the embedded 135M model, {', '.join(kept[:_SHOWN_SETTINGS])}{more}"
        note(f"warning: {what}: {merged['model']} gets them too; {cls.own_model}")


def _flat(values: Values, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every value that is not a mapping, with its dotted key."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _explain(
    error: ValidationError,
    cls: type[RecipeModel],
    section: str,
    path: Path | None,
    places: Places,
    overrides: Sequence[str],
) -> UserError:
    """Return the first fault of a validation error, or all unknown keys, as a line with a place and how to mend it."""
    faults = error.errors()
    # Unknown keys first: a misspelt key also causes "missing" elsewhere, and is the cause.
    unknown: dict[str, _Unknown] = {}
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            keys, model, _ = follow(cls, fault["loc"])
            dotted = ".".join(keys)
            where = _where(keys, section, path, places, () if keys[-1] in _SECRETS else overrides)
            mend = _hint_for_key(keys[-1], cls, but=dotted) or _nearest(keys[-1], tuple(model.model_fields))
            typed = next((override for override in overrides if override.startswith(f"{keys[0]}.")), None)
            if keys[0] in _SECTIONS and typed is not None:
                where, mend = typed, f"write {typed.partition('.')[2]}: names begin inside the section"
            unknown.setdefault(dotted, _Unknown(dotted, where, mend))
    if unknown:
        return _unknown(list(unknown.values()))
    fault = faults[0]
    kind, value = fault["type"], fault["input"]
    keys, _, variants = follow(cls, fault["loc"])
    is_unknown_name = kind.startswith("union_tag") and isinstance(value, dict)
    if is_unknown_name:
        keys, value = (*keys, "name"), value["name"]
    dotted = ".".join(keys)
    secret = bool(keys) and keys[-1] in _SECRETS
    where = _where(keys, section, path, places, () if secret else overrides)
    if kind == "string_unicode":
        return UserError(f"{dotted!r} is not UTF-8", where=where, mend="rename the file or folder")
    if kind == "missing":
        near = [override for override in overrides if len(keys) > 1 and _key(override)[:-1] == keys[:-1]]
        return UserError(
            f"{dotted!r} is missing", where=without_passwords(near[-1]) if near else where, mend=f"set {dotted}=..."
        )
    if kind == "value_error" and isinstance(value, dict):
        # A rule between fields: those that it names were typed, or stand in the recipe.
        rule = fault["msg"].removeprefix("Value error, ")
        named = [override for override in overrides if re.search(rf"\b{re.escape(_key(override)[-1])}\b", rule)]
        where = without_passwords(named[-1]) if named else where
        return UserError(rule, where=where, mend="see the fields' descriptions with --schema")
    if is_unknown_name:
        what, mend = f"{dotted!r}: there is no {value!r}", f"known: {', '.join(variants)}"
    elif kind.startswith("union_tag"):
        what, mend = f"{dotted!r} is not a mapping", f"set {dotted}.name, one of {', '.join(variants)}"
    elif kind == "model_type":
        inside = ", ".join(follow(cls, (*fault["loc"], "")).model.model_fields)
        what, mend = f"{dotted!r} is not a mapping", f"set {dotted}.KEY=..., one of {inside}"
    else:
        # For a union of types pydantic reports one fault for each.
        messages = dict.fromkeys(other["msg"] for other in faults if follow(cls, other["loc"]).keys == keys)
        reasons = " or ".join(message[:1].lower() + message[1:] for message in messages)
        # The content of a whole section does not show what is wrong in it.
        got = "" if secret or isinstance(value, dict) else f", got {_shown(value)}"
        what, mend = f"{dotted!r}: {reasons}{got}", "see the field's description with --schema"
    return UserError(what, where=where, mend=_hint_for_value(dotted, value, cls) or mend)


class _Unknown(NamedTuple):
    """A key that a section does not have."""

    key: str
    where: str
    mend: str


def _unknown(found: Sequence[_Unknown]) -> UserError:
    """Return the error for all of them, or for the first few: a file of another program has dozens."""
    shown = found[:_SHOWN_KEYS]
    where = ", ".join(dict.fromkeys(key.where for key in shown))
    if len(found) == 1:
        return UserError(f"unknown key {shown[0].key!r}", where=where, mend=shown[0].mend)
    names = [repr(key.key) for key in shown]
    if len(found) > len(shown):
        names.append(f"and {len(found) - len(shown)} more")
    mend = "; ".join(f"{key.key}: {key.mend}" for key in shown)
    return UserError(f"unknown keys {', '.join(names)}", where=where, mend=mend)


def _hint_for_key(key: str, cls: type[BaseModel], prefix: str = "", but: str = "") -> str:
    """Return where a key of another program, or of another place than ``but``, belongs; empty if that is not known."""
    found = answer(key, cls.foreign_names) if issubclass(cls, RecipeModel) else None
    if found is not None:
        return str(found._replace(fields=tuple(prefix + field for field in found.fields)))
    places = [place for place in places_of(cls, key) if place != but]
    return f"it stands at {' or '.join(prefix + place for place in places)}" if places else ""


def _hint_for_value(dotted: str, value: Any, cls: type[RecipeModel]) -> str:
    """Return what a value of another program is called here; empty if that is not known."""
    fields = (dotted, f"{dotted}.name")  # also for a section that is given as one word
    found = next((table for field, table in cls.foreign_values.items() if any(f.endswith(field) for f in fields)), {})
    ours = found.get(str(value), found.get(str(value).lower()))
    if ours and ours.startswith(":"):
        return f"there is none here: {ours[1:].strip()}"
    return f"here it is {ours}" if ours else ""


def _shown(value: Any) -> str:
    """Return a value for an error line: shortened, and without the password of an address."""
    text = without_passwords(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _key(override: str) -> tuple[str, ...]:
    return tuple(override.partition("=")[0].split("."))


def _where(keys: tuple[str, ...], section: str, path: Path | None, places: Places, overrides: Sequence[str]) -> str:
    """Return the override that set a key, else the place of the key or of the nearest one above it."""
    for override in reversed(overrides):
        parts = _key(override)
        if parts == keys[: len(parts)] or parts[: len(keys)] == keys:
            return without_passwords(override)
    if path is None:
        return "command line"
    inside = [(section, *keys[:n]) for n in range(len(keys), 0, -1)]
    shared = [keys[:n] for n in range(len(keys), 0, -1)]  # model and seed, above the sections
    return next((places[place] for place in (*inside, *shared, (section,)) if place in places), str(path))


def _nearest(key: str, known: Sequence[str]) -> str:
    return did_you_mean(key, known, f"known keys: {', '.join(known)}", cutoff=0.5)
