"""Write and read the files of a data set row by row, so that memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.common.files import read_json, replacing, write_atomic, write_json
from logodata.common.json_files import json_objects, strict_dumps
from logodata.common.records import Record
from logodata.contract import (
    AnyManifest,
    DecisionRow,
    EvaluatorChoice,
    ImportManifest,
    Manifest,
    PreferenceSample,
    QuestionOutcome,
    RejectedQuestion,
    Stats,
)
from logodata.dataset.card import dataset_card, describe, import_card
from logodata.dataset.samples import write_samples
from logodata.dataset.statistics import Statistics
from logodata.recipe.settings import BuildRecipe

DATA_FILE = Path("data") / "train-00000-of-00001.parquet"
SHARD_FILE = "shard.json"
_MEND = "build the data set again"


def write_data_set(
    output: Path,
    outcomes: Iterable[QuestionOutcome],
    manifest: Manifest,
    recipe: BuildRecipe,
    *,
    may_be_empty: bool = False,
) -> Stats:
    """Write all files of a build, and ``manifest.json`` last, because it says that the build is finished.

    ``outcomes`` are read once, in the order of the questions. Their samples are counted for the manifest.

    Raises:
        UserError: No sample was kept, and the set may not be empty.
    """
    evaluator = EvaluatorChoice(name=recipe.evaluator.name, query=recipe.evaluator.query)
    stats = _write_outcomes(output, outcomes, Statistics(evaluator))
    if not stats.kept and not may_be_empty:
        raise _nothing_kept(output, stats, "look at the reasons there; see 'No pair was kept' in docs/build.md")
    _finish(output, manifest, stats, dataset_card(manifest, recipe, stats) if stats.kept else None)
    return stats


def write_import(output: Path, outcomes: Iterable[QuestionOutcome], manifest: ImportManifest) -> Stats:
    """Write all files of imported pairs, as :func:`write_data_set` writes those of a build. Nothing was judged, so
    there is no ``decisions.jsonl``.

    Raises:
        UserError: No pair was kept. It says of the first one why.
    """
    stats = _write_outcomes(output, outcomes, Statistics(None))
    (output / "decisions.jsonl").unlink()
    if not stats.kept:
        first = next(iterate_rows(output, RejectedQuestion), None)
        detail = f"; {first.where}: {first.detail or first.reason.replace('_', ' ')}" if first else ""
        raise _nothing_kept(output, stats, f"look at the reasons there{detail}")
    _finish(output, manifest, stats, import_card(manifest, stats))
    return stats


def _nothing_kept(output: Path, stats: Stats, mend: str) -> UserError:
    (output / DATA_FILE).unlink()
    (output / "data").rmdir()
    return UserError(f"no pair was kept: {describe(stats)}", where=str(output / "rejected.jsonl"), mend=mend)


def _finish(output: Path, manifest: AnyManifest, stats: Stats, card: str | None) -> None:
    if card is not None:
        write_atomic(output / "README.md", card)
    write_json(output / "manifest.json", manifest.model_copy(update={"samples": stats.kept}).to_json())


def _write_outcomes(output: Path, outcomes: Iterable[QuestionOutcome], statistics: Statistics) -> Stats:
    """Write the samples, what else the outcomes hold, and their statistics."""

    def kept(rejected: BinaryIO, decisions: BinaryIO) -> Iterator[PreferenceSample]:
        """Yield the samples. The rest is written on the way."""
        for outcome in outcomes:
            statistics.add(outcome)
            for row in outcome.decisions:
                _write_row(decisions, row)
            if outcome.rejected is not None:
                _write_row(rejected, outcome.rejected)
            if outcome.sample is not None:
                yield outcome.sample

    (output / "data").mkdir(exist_ok=True)
    with replacing(output / "rejected.jsonl") as rejected, replacing(output / "decisions.jsonl") as decisions:
        write_samples(output / DATA_FILE, kept(rejected, decisions))
    stats = statistics.result()
    write_json(output / "stats.json", stats.to_json())
    return stats


def _write_row(file: BinaryIO, row: Record) -> None:
    file.write((strict_dumps(row.to_json()) + "\n").encode("utf-8"))


RowT = TypeVar("RowT", RejectedQuestion, DecisionRow)


def iterate_rows(folder: Path, record: type[RowT]) -> Iterator[RowT]:
    """Yield the rows of ``rejected.jsonl`` or ``decisions.jsonl`` of a build, whichever file holds such records. A file
    that is missing or damaged is a :class:`UserError`."""
    name = "rejected.jsonl" if record is RejectedQuestion else "decisions.jsonl"
    for where, row in json_objects(folder / name, mend=_MEND):
        yield record.from_json(row, where=where, mend=_MEND)


def read_stats(folder: Path) -> Stats:
    """Read ``stats.json`` of a build. A file that is missing or damaged is a :class:`UserError`."""
    path = folder / "stats.json"
    return Stats.from_json(read_json(path), where=str(path), mend=_MEND)


def read_recipe(folder: Path) -> BuildRecipe:
    """Read the recipe of a build. A build in which no pair was kept does not tell its engine. A folder without a recipe
    is a :class:`UserError`."""
    path = folder / "manifest.json"
    path = path if path.is_file() else folder / "work" / "settings.json"
    try:
        return BuildRecipe.model_validate(read_json(path)["recipe"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError("holds no recipe that this version knows", where=str(path), mend=_MEND) from error
