"""Find recipe files by their names, and resolve the paths in them.

A recipe is named by its path, or by its name if it comes with the project, with or without ``.yaml``: ``llama3-80k``,
``figure6/m1-lambda0.1-8k``. A relative path in a recipe file is looked up beside the file first, then in the current
folder. In an override it is relative to the current folder.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from pydantic import BaseModel

from logodata.common.errors import UserError
from logodata.common.user_files import expand_home

_SUFFIXES = (".yaml", ".yml")
_FOLDER = "recipes/"
"""The folder of the shipped recipes, relative to a checkout's root."""


def shipped_recipes() -> Path:
    """Return the folder of the recipes that come with the project (a checkout's, or the copy inside an installed
    wheel)."""
    packaged = Path(str(resources.files("logodata"))) / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, such as ``llama3-80k`` and ``study/cpu``."""
    folder = shipped_recipes()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def find_recipe(name: Path | str, folder: Path = Path()) -> Path | None:
    """Return the file of a recipe; None if there is none. ``name`` is a path (a relative one begins in ``folder``) or
    the name of a shipped recipe, with or without ``.yaml``."""
    given = expand_home(name)
    places = [Path(os.path.normpath(folder / given))]
    if not given.is_absolute():
        places.append(shipped_recipes() / given.as_posix().removeprefix(_FOLDER))
    files = [place.with_name(place.name + suffix) for place in places if place.name for suffix in ("", *_SUFFIXES)]
    return next((file for file in files if file.is_file()), None)


def no_recipe(name: Path | str) -> UserError:
    """Return the error for a recipe that does not exist, with the nearest names."""
    near = nearest_recipes(name)
    some = [name for name in recipe_names() if "/" not in name][:4]
    mend = f"did you mean {' or '.join(near)}?" if near else f"shipped ones: {', '.join(some)}, ..."
    return UserError("no such recipe", where=str(name), mend=f"{mend} All are in {shipped_recipes()}")


def nearest_recipes(name: Path | str) -> list[str]:
    """Return the names of shipped recipes that are most like this one, the nearest first."""
    text = Path(name).as_posix().removeprefix(_FOLDER)
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix)
    return difflib.get_close_matches(text, recipe_names(), n=2) or difflib.get_close_matches(
        text.rpartition("/")[2], recipe_names(), n=2
    )


def at_home(value: str) -> str:
    """Return a path with ``~`` expanded, because shells leave it in ``key=~/file``."""
    return str(expand_home(value)) if value.startswith("~") else value


def beside(value: str, folder: Path) -> str:
    """Resolve a relative path in a recipe file of ``folder``.

    Returns:
        The path beside the file, if anything is there; else ``value`` itself, relative to the current folder. If
        ``recipes/...`` is not there either, it is the shipped recipe's path.
    """
    if value.startswith("~"):
        return at_home(value)
    found = Path(os.path.normpath(folder / value))
    if found.exists():
        return str(found)
    shipped = shipped_recipes() / value.removeprefix(_FOLDER)
    return str(shipped) if value.startswith(_FOLDER) and not Path(value).exists() and shipped.exists() else value


def check_paths(recipe: BaseModel) -> None:
    """Refuse a recipe whose ``Path`` fields name files that do not exist, before anything is loaded for it.

    Raises:
        UserError: It names the first one.
    """
    for field, path in _paths(recipe, ""):
        if not expand_home(path).exists():
            raise UserError("no such file or folder", where=f"{field}={path}", mend="check the path")


def _paths(model: BaseModel, prefix: str) -> Iterator[tuple[str, Path]]:
    for key in type(model).model_fields:
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{key}.")
        elif isinstance(value, Path):
            yield f"{prefix}{key}", value
