"""Find the rows of pairs: in a file, a saved data set, a hub data set, or a folder of LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError, did_you_mean
from logodata.common.files import read_json
from logodata.common.user_files import expand_home
from logodata.dataset.samples import is_data_set
from logodata.pairs.messages import Tags
from logodata.pairs.settings import ImportRecipe
from logodata.sources.discovery import may_be_on_hub, source_fingerprint, tables_in
from logodata.sources.fields import SourceSettings
from logodata.sources.formats import open_rows
from logodata.sources.json_rows import Row

_INFO_FILE = "dataset_info.json"
_INFO_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "history": "history",
    "chosen": "chosen",
    "rejected": "rejected",
}
"""LLaMA-Factory's names of columns in ``dataset_info.json``, and our fields (its data/README.md)."""

_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
"""Its names of what stands for a role, and the roles."""


@dataclass(frozen=True, slots=True)
class PairRows:
    """Rows that can be read as often as needed, with the columns that a file beside them names. ``fingerprint`` is the
    start of a sha256 of what is read, ``path`` the file or data set itself, and ``shown`` the same with its split."""

    path: str
    shown: str
    rows: Callable[[], Iterator[Row]]
    columns: dict[str, str]
    tags: Tags | None
    fingerprint: str
    is_table: bool
    """Whether cells are text, so that lists are spelt in it."""


def open_pairs(recipe: ImportRecipe) -> PairRows:
    """Find the pairs of ``recipe.path``. Nothing is read yet but the start of a file and its fingerprint.

    Raises:
        UserError: There is nothing at the path, it holds no rows or a data set of our own, or it has several data sets
            or splits and none was named, or not the one that was.
    """
    path, name = split_name(recipe.path)
    folder, columns = expand_home(path), dict(recipe.columns)
    if not folder.exists() and not may_be_on_hub(path):
        raise UserError(
            "no such file or folder", where=path, mend="give a file or folder with pairs, or org/name on the hub"
        )
    if is_data_set(folder):
        mend = "give it to logotrain run --data, logodata inspect or logodata stats as it is"
        raise UserError("a data set already, not pairs", where=path, mend=mend)
    described, tags = _described(folder), None
    if described is not None:
        file, entry = _of_llama_factory(folder, described, name)
        path, name, columns = str(file), None, {**_columns_of(entry), **columns}
        tags = _tags_of(entry)
    settings = SourceSettings(path=path, split=name, subset=recipe.subset, encoding=recipe.encoding)
    if name is not None and folder.is_file():
        raise UserError("a file has no splits", where=path, mend=f"leave out :{name}")
    rows, container = open_rows(settings, columns, f"write {path}:")
    shown = path if name is None else f"{path}[{name}]"
    return PairRows(path, shown, rows, columns, tags, source_fingerprint(settings), container == "csv")


def are_pairs(path: str) -> bool:
    """Return whether a path is that of pairs, and not of a data set that ``logodata`` wrote: a file, a folder with
    tables, or a name on the hub. No file is opened."""
    name, _ = split_name(path)
    place = expand_home(name)
    if place.is_dir():
        return not is_data_set(place) and bool(tables_in(place))
    # A path into a folder that is there is misspelt, and no name on the hub.
    on_hub = may_be_on_hub(name) and not Path(name).parts[0].startswith(".")
    return place.is_file() or (on_hub and not place.exists() and not place.parent.is_dir())


def split_name(path: str) -> tuple[str, str | None]:
    """Return a path and the name of a split after ``:``, None if there is none. A file of that whole name comes
    first."""
    before, colon, name = path.rpartition(":")
    if not colon or not before or not name or "/" in name or expand_home(path).exists():
        return path, None
    return before, name


def _described(folder: Path) -> dict[str, Any] | None:
    """Return LLaMA-Factory's list of the data sets in a folder; None if it has none. A data set saved by
    ``save_to_disk`` has another file of the same name."""
    file = folder / _INFO_FILE
    if not file.is_file() or (folder / "state.json").is_file():
        return None
    info = read_json(file, mend="correct it, or give the file with the pairs itself")
    is_list = isinstance(info, dict) and info and all(isinstance(entry, dict) for entry in info.values())
    return info if is_list and any("file_name" in entry for entry in info.values()) else None


def _of_llama_factory(folder: Path, info: dict[str, Any], name: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the file of one of LLaMA-Factory's data sets, and what the list says of it."""
    where = str(folder / _INFO_FILE)
    ranked = [key for key, entry in info.items() if entry.get("ranking")]
    if name is not None and name not in info:
        mend = did_you_mean(name, info, f"write {folder}:NAME, one of {', '.join(list(info)[:20])}")
        raise UserError(f"no data set {name!r}", where=where, mend=mend)
    if name is None and len(ranked) != 1:
        held = f"{len(ranked)} data sets of pairs" if ranked else "no data set with ranking: true"
        mend = f"write {folder}:NAME, one of {', '.join((ranked or list(info))[:20])}"
        raise UserError(f"holds {held}", where=where, mend=mend)
    entry = info[name or ranked[0]]
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not (folder / file_name).is_file():
        mend = "give the file itself, or the hub data set's name"
        raise UserError(f"data set {name or ranked[0]!r} has no file here", where=where, mend=mend)
    return folder / file_name, entry


def _columns_of(entry: dict[str, Any]) -> dict[str, str]:
    given = _texts_in(entry, "columns")
    return {field: given[theirs] for theirs, field in _INFO_COLUMNS.items() if theirs in given}


def _tags_of(entry: dict[str, Any]) -> Tags | None:
    given = _texts_in(entry, "tags")
    if not given:
        return None
    roles = {given[theirs]: role for theirs, role in _ROLE_TAGS.items() if theirs in given}
    return Tags(given.get("role_tag", "from"), given.get("content_tag", "value"), roles)


def _texts_in(entry: dict[str, Any], key: str) -> dict[str, str]:
    given = entry.get(key)
    return {name: text for name, text in given.items() if isinstance(text, str)} if isinstance(given, dict) else {}
