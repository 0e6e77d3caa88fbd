"""The labels of runs in a report: the user's, or as much of the folder's path as distinguishes the runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from logodata.common.errors import UserError


def parse_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """Return folders by label, from arguments ``DIR`` or ``LABEL=DIR``. An argument that is the name of a folder with a
    ``=`` is read as ``DIR``.

    Raises:
        UserError: two folders have the same label, or a folder is given twice without labels.
    """
    found = [_split(argument) for argument in arguments]
    plain = iter(_short_names([folder for label, folder in found if label is None]))
    labelled: dict[str, Path] = {}
    for label, folder in found:
        name = next(plain) if label is None else label
        if name in labelled:
            raise UserError(
                f"two runs are called {name!r}",
                where=f"{labelled[name]} and {folder}",
                mend=f"name them apart: LABEL={folder}",
            )
        labelled[name] = folder
    return labelled


def _split(argument: str) -> tuple[str | None, Path]:
    """Split an argument into label and folder, at the first ``=`` that is followed by an existing folder."""
    places = [place for place, letter in enumerate(argument) if letter == "=" and "/" not in argument[:place]]
    cuts = [(argument[:place], Path(argument[place + 1 :])) for place in places if argument[:place]]
    if not cuts or os.path.isdir(argument):
        return None, Path(argument)
    return next((cut for cut in cuts if os.path.isdir(cut[1])), cuts[0])


def label_folders(folders: Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    """Return folders by label. Folders without labels get their short names; one that is given twice raises a
    ``UserError``."""
    if isinstance(folders, Mapping):
        return dict(folders)
    return dict(zip(_short_names(folders), folders, strict=True))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many of their parents as make them different."""
    parts = [folder.resolve().parts for folder in folders]
    for number, folder in enumerate(folders):
        if parts[number] in parts[:number]:
            raise UserError("the folder is given twice", where=str(folder), mend="give folders of different runs")
    names = (["/".join(part[-count:]) for part in parts] for count in itertools.count(1))
    return next(found for found in names if len(set(found)) == len(found))
