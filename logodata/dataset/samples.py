"""The samples of a data set and its manifest, which the trainer and the evaluator read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import read_json, replacing
from logodata.common.groups import in_groups
from logodata.common.parquet import parquet_rows
from logodata.common.records import arrow_schema
from logodata.common.user_files import visible_files
from logodata.contract import READABLE_VERSIONS, AnyManifest, ImportManifest, Manifest, PreferenceSample

_ROWS_PER_GROUP = 256
_TOKENS_PER_GROUP = 2**22
"""The most prompt tokens of a row group, and those of one row more: 256 rows have fewer at contexts of 16K."""
_MEND = "build the data set again"


def write_samples(path: Path, samples: Iterable[PreferenceSample]) -> int:
    """Write samples to a parquet file, atomically, and return their number. Equal samples give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = arrow_schema(PreferenceSample), 0
    # A table of one row takes a fifth of what its sample takes.
    tables = ((pa.Table.from_pylist([it.model_dump()], schema=schema), len(it.prompt_ids)) for it in samples)
    limits = (lambda _: 1, _ROWS_PER_GROUP), (lambda row: row[1], _TOKENS_PER_GROUP)
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in in_groups(tables, *limits):
            writer.write_table(pa.concat_tables([table for table, _ in group]).combine_chunks())
            count += len(group)
    return count


def read_samples(folder: Path) -> list[PreferenceSample]:
    """Return all samples of a data set, as :func:`iterate_samples` reads them."""
    return list(iterate_samples(folder))


def iterate_samples(folder: Path) -> Iterator[PreferenceSample]:
    """Yield the samples of a data set in file order, a few in memory at a time.

    Ids are unique, because positions, reference log-probabilities and answers are filed under them.

    Raises:
        UserError: The folder holds no finished build, another schema version, a damaged row, or an id twice.
    """
    places: dict[str, str] = {}
    for file in sample_files(folder):
        for where, row in parquet_rows(file, str(file), mend=_MEND):
            if (found := row.get("schema_version")) not in READABLE_VERSIONS:
                what = f"schema version {found}, this program reads {' and '.join(map(str, READABLE_VERSIONS))}"
                raise UserError(what, where=str(file), mend=_MEND)
            sample = PreferenceSample.from_json(row, where=where, mend=_MEND)
            if sample.id in places:
                raise UserError(
                    f"sample id {sample.id!r} stands at {places[sample.id]} too",
                    where=where,
                    mend="give each sample its own id; shards of one build are put together by logodata merge",
                )
            places[sample.id] = where
            yield sample


def check_pairs(samples: Iterable[PreferenceSample], where: str, *, mend: str) -> None:
    """Refuse samples without a dis-preferred response, which a build with ``generation.rejected=none`` writes.

    Raises:
        UserError: There is one; ``mend`` says what to do.
    """
    bare = next((sample for sample in samples if not sample.rejected), None)
    if bare is not None:
        raise UserError(f"sample {bare.id} has no dis-preferred response", where=where, mend=mend)


def sample_files(folder: Path) -> list[Path]:
    """Return the parquet files of a data set, in order, without opening them.

    Raises:
        UserError: The folder does not exist, or holds no finished build.
    """
    files = sorted(visible_files(folder / "data", (".parquet",), below=False))
    if not files:
        if (folder / "rejected.jsonl").is_file():
            mend = f"logodata stats {folder} counts the reasons, logodata inspect {folder} --html FILE shows answers"
            raise UserError("the build kept no pair", where=str(folder), mend=mend)
        if folder.is_dir():
            mend = f"run again: logodata build DOCUMENTS -o {folder}, or logodata import PAIRS"
            raise UserError("holds no finished build", where=str(folder), mend=mend)
        mend = "give the folder that logodata build DOCUMENTS -o DIR writes, or logodata import PAIRS -o DIR"
        what = "a file, not a data set" if folder.is_file() else "no such file or folder"
        raise UserError(what, where=str(folder), mend=mend)
    return files


def is_data_set(path: Path) -> bool:
    """Return whether a path is a folder that ``logodata`` writes: a finished data set, one that was not finished, or a
    shard. No file is opened."""
    return any((path / name).exists() for name in ("manifest.json", "rejected.jsonl", "work/settings.json"))


def read_manifest(folder: Path) -> AnyManifest:
    """Read ``manifest.json`` of a data set. A file that is missing or damaged is a :class:`UserError`."""
    path = folder / "manifest.json"
    value = read_json(path)
    record = ImportManifest if isinstance(value, dict) and "pairs" in value else Manifest
    return record.from_json(value, where=str(path), mend=_MEND)


def read_build_manifest(folder: Path, what: str) -> Manifest:
    """Read ``manifest.json`` of a build.

    Raises:
        UserError: The file is missing or damaged, or the data set was imported and so does not have ``what``.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, ImportManifest):
        raise UserError(
            f"imported pairs have no {what}", where=str(folder), mend="give a data set that logodata build wrote"
        )
    return manifest
