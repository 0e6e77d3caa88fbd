"""Parts of a build (:mod:`logodata.parts`) put together: the data set that one unsharded build would have made."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.run_dir import differences, locked
from logodata.contract import PreferenceSample, iterate_samples, read_manifest
from logodata.dataset_files import write_data_set
from logodata.parts import PartRecord, read_part_record
from logodata.report import iterate_decisions, iterate_rejected

_ENGINE_NAMES = ("engine", "judge_engine")
_NOTHING_GENERATED = "none:"  # how the name of an engine begins that had nothing to do


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    record: PartRecord
    manifest: dict[str, Any]


def merge(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Put all parts of a build together in ``output``; every file equals that of the unsharded build.

    Engines may differ between parts, since they are asked the same and ``manifest.json`` names them all; the recipe's
    engine sections are then those of the first part.

    Args:
        folders: of all parts, in any order.
        output: a new folder.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: a part is missing, given twice, unfinished or of another recipe, source, model or version; ``output``
            is in use.
    """
    parts = sorted(
        (_Folder(path, read_part_record(path), read_manifest(path)) for path in folders),
        key=lambda part: part.record.number,
    )
    _check_complete(parts)
    _check_alike(parts)
    if any((output / name).exists() for name in ("manifest.json", "work")):
        raise UserError("holds a build already", where=str(output), mend="choose another -o")
    manifest = {**parts[0].manifest}
    manifest |= {key: _engines([part.manifest[key] for part in parts]) for key in _ENGINE_NAMES if key in manifest}
    # Within a part, samples and rows stand in the order of their places.
    samples = heapq.merge(*map(_samples, parts), key=lambda entry: entry[0])
    rejected = heapq.merge(*(_rows(part, iterate_rejected(part.path)) for part in parts), key=lambda entry: entry[0])
    decisions = heapq.merge(*(_rows(part, iterate_decisions(part.path)) for part in parts), key=lambda entry: entry[0])
    with locked(output):
        return write_data_set(
            output,
            (sample for _, sample in samples),
            (row for _, row in rejected),
            (row for _, row in decisions),
            manifest,
        )


def _samples(part: _Folder) -> Iterator[tuple[int, PreferenceSample]]:
    for sample in iterate_samples(part.path):
        yield _place(part.record.places, sample.id, part.path), sample


def _rows(part: _Folder, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in rows:
        yield _place(part.record.places, row["id"], part.path), row


def _check_complete(parts: Sequence[_Folder]) -> None:
    """Every part of one total is there, once."""
    first = parts[0]
    for before, part in pairwise(parts):
        if part.record.total != first.record.total:
            raise UserError(
                f"part {part.record.number}/{part.record.total} beside {first.record.number}/{first.record.total}",
                where=str(part.path),
                mend=f"merge the parts of one build: {first.path} is one of {first.record.total}",
            )
        if part.record.number == before.record.number:
            raise UserError(
                f"part {part.record.number}/{part.record.total} is in {before.path} too",
                where=str(part.path),
                mend="give each part once",
            )
    there = {part.record.number for part in parts}
    missing = [str(number) for number in range(1, first.record.total + 1) if number not in there]
    if missing:
        raise UserError(
            f"missing of {first.record.total} parts: {', '.join(missing)}",
            mend=f"build them with --shard i/{first.record.total} and name their folders too",
        )


def _check_alike(parts: Sequence[_Folder]) -> None:
    """All parts were made of the same source, by the same recipe, model and version."""
    expected = _identity(parts[0].manifest)
    for part in parts[1:]:
        for key, old, new in differences(expected, _identity(part.manifest)):
            raise UserError(
                f"{key}={new!r}, but {old!r} in {parts[0].path}",
                where=str(part.path / "manifest.json"),
                mend="build all parts with the same recipe, source, model and version",
            )


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: all but engines and counts."""
    same = {key: value for key, value in manifest.items() if key not in (*_ENGINE_NAMES, "samples")}
    recipe = {key: value for key, value in manifest["recipe"].items() if key != "engine"}
    model_judge = recipe["judge"].get("model")
    if model_judge:
        model_judge = {key: value for key, value in model_judge.items() if key != "engine"}
    return {**same, "recipe": {**recipe, "judge": {**recipe["judge"], "model": model_judge}}}


def _engines(names: Sequence[str]) -> str:
    """The engines that generated something, each once."""
    at_work = dict.fromkeys(name for name in names if not name.startswith(_NOTHING_GENERATED))
    return ", ".join(at_work) or names[0]


def _place(places: dict[str, int], question_id: str, folder: Path) -> int:
    if question_id not in places:
        raise UserError(
            f"question {question_id!r} is not in shard.json", where=str(folder), mend="build this part again"
        )
    return places[question_id]
