"""Folders and files that are whole or not there, whatever stops the process that writes them.

A folder is written beside its place, sealed with ``files.json`` (size and hash of every file) and renamed: a kill
leaves none that is half written. The seal recognises one that was damaged later, as a failing disk does; damaged ones
are put aside and made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.run_dir import read_json, sync_folder, write_json

SEAL = "files.json"


def seal(scratch: Path, target: Path) -> None:
    """Write the seal of ``scratch`` and rename it to ``target``, which must not exist.

    All is on disk before the new name is: after a power failure ``target`` is whole, or not there.
    """
    write_json(scratch / SEAL, {name: _describe(scratch / name) for name in _names(scratch)})
    move_into_place(scratch, target)


def move_into_place(scratch: Path, target: Path) -> None:
    """The same without a seal, for folders that go elsewhere."""
    for place, _, names in os.walk(scratch):
        for name in names:
            _sync_file(Path(place) / name)
        sync_folder(Path(place))
    scratch.rename(target)
    sync_folder(target.parent)


def damage(folder: Path) -> str:
    """What is not as it was sealed; empty if nothing is. Files that came later are nobody's fault."""
    try:
        expected = read_json(folder / SEAL)
    except UserError as error:
        return error.what
    if not isinstance(expected, dict):
        return f"{SEAL} is no list of files"
    there = set(_names(folder))
    for name, description in expected.items():  # a name that leads elsewhere is not opened
        if name not in there or _describe(folder / name) != description:
            return f"{name} is not as it was written"
    return ""


def put_aside(path: Path, fault: str, instead: str) -> None:
    """Rename a damaged file or folder to ``NAME.damaged``, in the place of an earlier one, and say so.

    Args:
        path: of the file or folder.
        fault: what is wrong with it.
        instead: what is done now, such as ``"it is written again"``.
    """
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir():
        shutil.rmtree(aside)
    path.rename(aside)
    note(f"{path.name} is damaged ({fault}): renamed to {aside.name}, {instead}")


def read_if_whole(path: Path) -> Any | None:
    """What a JSON file holds that says a run is finished; None if there is none, or a damaged one, which is put
    aside."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError as error:
        put_aside(path, error.what, "it is written again")
        return None


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
