"""Join the shards of a build (:mod:`logodata.build.shards`) into the data set that an unsharded build would make."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from logodata.build.shards import read_shard_record
from logodata.common.errors import UserError
from logodata.common.files import check_apart, differences, locked
from logodata.contract import (
    DecisionRow,
    Manifest,
    PreferenceSample,
    QuestionOutcome,
    RejectedQuestion,
    ShardRecord,
    Stats,
)
from logodata.dataset.files import iterate_rows, read_recipe, write_data_set
from logodata.dataset.samples import iterate_samples, read_build_manifest
from logodata.recipe.settings import ENGINES

_NOTHING_GENERATED = "none:"
"""The beginning of the name of an engine that had nothing to do."""
_MAY_DIFFER: Any = {
    "engine": True,
    "judge_engine": True,
    "samples": True,
    "recipe": ENGINES,
}
"""Fields of manifests that may differ between shards."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    record: ShardRecord
    manifest: Manifest


def merge(folders: Sequence[Path], output: Path) -> Stats:
    """Join all shards of a build in the new folder ``output``. Every file equals that of the unsharded build.

    Engines may differ between shards, because all are asked the same. ``manifest.json`` names them all, and its recipe
    has the engine sections of the first shard.

    Raises:
        UserError: A shard is missing, given twice, unfinished, or of another recipe, source, model or version; or
            ``output`` is in use.
    """
    check_apart(output, *(("a shard", folder) for folder in folders))
    shards = sorted(
        (_Folder(path, read_shard_record(path), read_build_manifest(path, "shards")) for path in folders),
        key=lambda shard: shard.record.number,
    )
    _check_complete(shards)
    _check_alike(shards)
    if any((output / name).exists() for name in ("manifest.json", "work")):
        raise UserError("holds a build already", where=str(output), mend="choose another -o")
    first = shards[0]
    names = {"engine": _engines([shard.manifest.engine for shard in shards])}
    if first.manifest.judge_engine is not None:
        names["judge_engine"] = _engines([str(shard.manifest.judge_engine) for shard in shards])
    manifest, recipe = first.manifest.model_copy(update=names), read_recipe(first.path)
    with locked(output):
        return write_data_set(output, _outcomes(shards), manifest, recipe)


_Row = PreferenceSample | RejectedQuestion | DecisionRow


def _outcomes(shards: Sequence[_Folder]) -> Iterator[QuestionOutcome]:
    """Yield the outcome of each question in the order of their places, which is that of the rows in each file."""
    found = heapq.merge(*(rows for shard in shards for rows in _placed(shard)), key=lambda entry: entry[0])
    for _, entries in groupby(found, key=lambda entry: entry[0]):
        rows = [row for _, row in entries]
        samples = [row for row in rows if isinstance(row, PreferenceSample)]
        rejected = [row for row in rows if isinstance(row, RejectedQuestion)]
        mend = "build the shards again, each into a folder of its own"
        if len(samples) > 1 or len(rejected) > 1:
            raise UserError(f"question {rows[0].id!r} is in two shards", mend=mend)
        outcome = {
            "id": rows[0].id,
            "decisions": [row for row in rows if isinstance(row, DecisionRow)],
            "sample": next(iter(samples), None),
            "rejected": next(iter(rejected), None),
        }
        yield QuestionOutcome.from_json(outcome, where=f"question {rows[0].id!r}", mend=mend)


def _placed(shard: _Folder) -> Iterator[Iterator[tuple[tuple[bool, int], _Row]]]:
    """Yield the rows of each file of a shard, each row after its place."""
    folder = shard.path

    def order(row: _Row) -> tuple[bool, int]:
        place = shard.record.places.get(row.id)
        if place is None:
            what = f"question {row.id!r} is not in shard.json"
            raise UserError(what, where=str(folder), mend="build this shard again")
        # Rejected rows of the source come first: the id of such a document may be that of a question.
        return not (isinstance(row, RejectedQuestion) and row.stage == "source"), place

    for rows in (iterate_samples(folder), iterate_rows(folder, RejectedQuestion), iterate_rows(folder, DecisionRow)):
        yield ((order(row), row) for row in rows)


def _check_complete(shards: Sequence[_Folder]) -> None:
    """Refuse shards of several builds, a shard that is given twice, and one that is missing."""
    first = shards[0]
    for before, shard in pairwise(shards):
        if (shard.record.total, shard.record.in_turn) != (first.record.total, first.record.in_turn):
            raise UserError(
                f"shard {shard.record} beside {first.record}",
                where=str(shard.path),
                mend=f"merge the shards of one build: {first.path} is one of {first.record.total}",
            )
        if shard.record.number in before.record.numbers:
            what = f"shard {shard.record} is in {before.path} too"
            raise UserError(what, where=str(shard.path), mend="give each shard once")
    there = {number for shard in shards for number in shard.record.numbers}
    missing = [str(number) for number in range(1, first.record.total + 1) if number not in there]
    if missing:
        raise UserError(
            f"missing of {first.record.total} shards: {', '.join(missing)}",
            mend=f"build them with --shard i/{first.record.total} and name their folders too",
        )


def _check_alike(shards: Sequence[_Folder]) -> None:
    """Refuse shards of another source, recipe, model or version than the first one's."""
    expected, *others = (shard.manifest.model_dump(mode="json", exclude=_MAY_DIFFER) for shard in shards)
    for shard, found in zip(shards[1:], others, strict=True):
        for key, old, new in differences(expected, found):
            raise UserError(
                f"{key}={new!r}, but {old!r} in {shards[0].path}",
                where=str(shard.path / "manifest.json"),
                mend="build all shards with the same recipe, source, model and version",
            )


def _engines(names: Sequence[str]) -> str:
    """Return the engines that generated something, each once."""
    at_work = dict.fromkeys(name for name in names if not name.startswith(_NOTHING_GENERATED))
    return ", ".join(at_work) or names[0]
