"""Inspect the fields of recipe sections: nested models, and variants that a mapping's ``name`` selects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

from logodata.common.recipes.types import OrPath, is_path

Values = dict[str, Any]


class Place(NamedTuple):
    """The place that an error's location leads to."""

    keys: tuple[str, ...]
    """The location as a recipe's author writes it, without the parts that pydantic adds for unions."""
    model: type[BaseModel]
    """The innermost model on the way. The last key may be one of its fields."""
    variants: tuple[str, ...]
    """Names to choose from, if the location ends at a field whose mapping is selected by its ``name``."""


def nested_models(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the models that a field may hold, by their names in a union of variants, or by ``""`` if there is only
    one."""
    return {
        next((mark.tag for mark in reversed(metadata) if isinstance(mark, Tag)), ""): option
        for option, metadata in _options(field.annotation, ())
        if isinstance(option, type) and issubclass(option, BaseModel)
    }


def variant(field: FieldInfo, values: Values) -> str | None:
    """Return the name of the variant that a mapping stands for; None if the field has no variants."""
    for part in (*field.metadata, field.discriminator):
        if isinstance(part, Discriminator) and callable(part.discriminator):
            return str(part.discriminator(values))
    return None


def follow(cls: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Walk from a section's model along the location of one of its errors, and return where it leads."""
    keys: list[str] = []
    model = cls
    variants: dict[str, type[BaseModel]] = {}  # of the field just passed: its variant's name comes next
    below_models = holds_keys = False
    for part in location:
        if variants:
            model, variants = variants[str(part)], {}
        elif below_models:
            # Text here is a type that pydantic tried, unless the field is itself a mapping.
            if isinstance(part, int) or holds_keys:
                keys.append(str(part))
        else:
            keys.append(str(part))
            field = model.model_fields.get(str(part))
            nested = nested_models(field) if field else {}
            if "" in nested:
                model = nested[""]
            elif nested:
                variants = nested
            else:
                below_models = True
                holds_keys = field is not None and get_origin(field.annotation) is dict
    return Place(tuple(keys), model, tuple(variants))


def merge(base: Values, layer: Values, model: type[BaseModel] | None) -> Values:
    """Return ``base`` with ``layer`` over it. Mappings merge at every depth; anything else is replaced.

    A mapping that gives another ``name`` replaces the one below it whole: beta of another loss means something else.
    Where the ``model`` that the mappings describe is not known, no variants are told apart.
    """
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        field = model.model_fields.get(key) if model else None
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, dict):
            name = variant(field, {**old, **value}) if field else None
            if field is None or name == variant(field, old):
                merged[key] = merge(old, value, nested_models(field).get(name or "") if field else None)
    return merged


def takes_list(field: FieldInfo) -> bool:
    """Whether a field holds a list and cannot hold a single text or number."""
    options = [option for option, _ in _options(field.annotation, ())]
    lists = [option for option in options if get_origin(option) in (tuple, list)]
    return bool(lists) and all(option is type(None) or option in lists for option in options)


def leaves(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Yield the keys of all fields of a section that are not sections themselves, those of every variant included."""
    for key, field in model.model_fields.items():
        nested = nested_models(field)
        if not nested:
            yield (key,)
        for below in nested.values():
            yield from ((key, *keys) for keys in leaves(below))


def places_of(model: type[BaseModel], key: str) -> list[str]:
    """Return the places in a section where a field or section of this name stands, dotted. Of several, the least deep
    ones."""
    found = dict.fromkeys(keys[: keys.index(key) + 1] for keys in leaves(model) if key in keys)
    depth = min(map(len, found), default=0)
    return [".".join(keys) for keys in found if len(keys) == depth]


def move_paths(values: Values, model: type[BaseModel], move: Callable[[str], str]) -> Values:
    """Return ``values`` of a section with ``move`` applied to every relative path in them. Other values stay."""
    moved = dict(values)
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        words = _words_beside_paths(field)
        if isinstance(value, dict):
            below = nested_models(field)
            inner = below.get(variant(field, value) or "") or below.get("")
            moved[key] = move_paths(value, inner, move) if inner else value
        elif words is not None and isinstance(value, str):
            moved[key] = move(value) if is_path(value, words) else value
        elif words is not None and isinstance(value, list):
            moved[key] = [move(text) if isinstance(text, str) and is_path(text, words) else text for text in value]
    return moved


def _words_beside_paths(field: FieldInfo) -> tuple[str, ...] | None:
    """Return the words that a field takes besides paths; None for a field that takes no path."""
    options = list(_options(field.annotation, tuple(field.metadata)))
    marks = [mark for _, metadata in options for mark in metadata if isinstance(mark, OrPath)]
    if not marks and Path not in [option for option, _ in options]:
        return None
    words = [word for mark in marks for word in mark.words]
    return (*words, *(word for option, _ in options if get_origin(option) is Literal for word in get_args(option)))


def _options(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the types of a union, each with the metadata around it."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from _options(inner, (*metadata, *more))
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option, metadata)
    else:
        yield annotation, metadata
