"""Read rows of hub data sets, and of data sets in a local folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.errors import UserError, first_line, pass_on
from logodata.common.user_files import expand_home
from logodata.sources.json_rows import Row

if TYPE_CHECKING:
    from datasets import Dataset


NAME_SPLIT = "set source.split="
"""How the user of a build names a split."""


def load_hub(path: str, subset: str | None, split: str | None, name_split: str = NAME_SPLIT) -> tuple[Dataset, str]:
    """Load a hub data set, or one in a local folder (saved by ``save_to_disk``, or its plain files), memory-mapped.

    Returns:
        The data set and the name of its split.

    Raises:
        UserError: It cannot be found or read, has no such split or subset, or has several splits and none was named.
    """
    import datasets
    import httpx

    folder = expand_home(path)
    try:
        if _is_saved(folder):
            if subset is not None:
                raise UserError("a saved data set has no subsets", where=path, mend="leave subset out")
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.Dataset):
                return saved, choose_split(path, [str(saved.split or "train")], split, name_split)
            chosen = choose_split(path, list(saved), split, name_split)
            return saved[chosen], chosen
        name = str(folder) if folder.is_dir() else path
        chosen = choose_split(path, datasets.get_dataset_split_names(name, config_name=subset), split, name_split)
        return datasets.load_dataset(name, name=subset, split=chosen), chosen
    except (datasets.exceptions.DatasetsError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        pass_on(error)
        mend = "check its name, its subset and the network, or give a local folder"
        raise UserError(f"cannot load this data set: {first_line(error)}", where=path, mend=mend) from error


def hub_files(folder: Path) -> list[Path]:
    """Return the files of a folder that ``load_dataset`` reads, of all splits; none for a data set saved by
    ``save_to_disk``."""
    import datasets

    if _is_saved(folder):
        return []
    files = datasets.load_dataset_builder(str(folder)).config.data_files or {}
    return [Path(file) for names in files.values() for file in names]


def hub_rows(dataset: Dataset, shown: str, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Yield the rows of a loaded data set. Only the ``wanted`` columns are read, unless it has none of them."""
    names = [name for name in dataset.column_names if wanted(name)]
    for number, row in enumerate(dataset.select_columns(names) if names else dataset, 1):
        yield f"{shown}:row {number}", row


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


def choose_split(path: str, splits: list[str], split: str | None, name_split: str) -> str:
    """Return the split that was named, or the only one.

    Raises:
        UserError: There is no such split, or there are several and none was named.
    """
    if split is not None and split not in splits:
        raise UserError(f"no split {split!r}", where=path, mend=f"{name_split}NAME, one of {', '.join(splits)}")
    if split is None and len(splits) > 1:
        raise UserError(f"holds several splits: {', '.join(splits)}", where=path, mend=f"{name_split}NAME")
    return split or splits[0]
