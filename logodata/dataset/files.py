"""The files of a data set, written and read row by row: memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from logodata.common.errors import UserError
from logodata.common.files import read_json, replacing, write_atomic, write_json
from logodata.common.json_files import Told, json_objects, strict_dumps
from logodata.contract import PreferenceSample, write_samples
from logodata.dataset.card import dataset_card, describe
from logodata.dataset.statistics import Outcome, Statistics

DATA_FILE = Path("data") / "train-00000-of-00001.parquet"


def write_data_set(
    output: Path, outcomes: Iterable[Outcome], manifest: dict[str, Any], *, may_be_empty: bool = False
) -> dict[str, Any]:
    """All files of a data set; ``manifest.json`` last, since it says that the build is finished.

    Args:
        output: the folder.
        outcomes: of all questions, in order; read once.
        manifest: all of ``manifest.json`` but the number of samples.
        may_be_empty: whether it is right that no sample was kept, as in a part.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: no sample was kept, unless the set may be empty.
    """
    statistics = Statistics()

    def kept(rejected: BinaryIO, decisions: BinaryIO) -> Iterator[PreferenceSample]:
        """The samples; what else the outcomes hold is written on the way."""
        for outcome in outcomes:
            sample = PreferenceSample.model_validate(outcome["sample"]) if "sample" in outcome else None
            statistics.add(outcome, sample)
            for row in outcome["decisions"]:
                _write_row(decisions, row)
            if sample is None:
                _write_row(rejected, outcome["rejected"])
            else:
                yield sample

    (output / "data").mkdir(exist_ok=True)
    with replacing(output / "rejected.jsonl") as rejected, replacing(output / "decisions.jsonl") as decisions:
        count = write_samples(output / DATA_FILE, kept(rejected, decisions))
    evaluator = manifest["recipe"]["evaluator"]
    stats = {**statistics.result(), "evaluator": {key: evaluator[key] for key in ("name", "query")}}
    write_json(output / "stats.json", stats)
    if not count and not may_be_empty:
        (output / DATA_FILE).unlink()
        (output / "data").rmdir()
        raise UserError(
            f"no pair was kept: {describe(stats)}",
            where=str(output / "rejected.jsonl"),
            mend="look at the reasons there; see 'No pair was kept' in docs/build.md",
        )
    if count:
        write_atomic(output / "README.md", dataset_card(manifest, stats))
    write_json(output / "manifest.json", {**manifest, "samples": count})
    return stats


def iterate_rejected(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``rejected.jsonl``: questions of a build that gave no sample, with their reasons.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _read_rows(folder / "rejected.jsonl")


def iterate_decisions(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``decisions.jsonl``: what was decided on each response that was judged.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _read_rows(folder / "decisions.jsonl")


def _write_row(file: BinaryIO, row: dict[str, Any]) -> None:
    file.write((strict_dumps(row) + "\n").encode("utf-8"))


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    mend = "build the data set again"
    return (Told(row, where=where, mend=mend) for where, row in json_objects(path, mend=mend))


def read_stats(folder: Path) -> dict[str, Any]:
    """``stats.json`` of a build.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = folder / "stats.json"
    stats = read_json(path)
    if not isinstance(stats, dict):
        raise UserError("not statistics", where=str(path), mend="build the data set again")
    return Told(stats, where=str(path), mend="build the data set again")


PART_FILE = "shard.json"
