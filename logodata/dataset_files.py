"""The files of a data set, written row by row: memory does not grow with the number of samples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.run_dir import replacing, write_atomic, write_json
from logodata.contract import PreferenceSample, write_samples
from logodata.report import Statistics, dataset_card, describe

DATA_FILE = Path("data") / "train-00000-of-00001.parquet"


def write_data_set(
    output: Path,
    samples: Iterable[PreferenceSample],
    rejected: Iterable[dict[str, Any]],
    decisions: Iterable[dict[str, Any]],
    manifest: dict[str, Any],
    *,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """All files of a data set; ``manifest.json`` last, since it says that the build is finished.

    Args:
        output: the folder.
        samples: the pairs kept, in order; read once.
        rejected: rows of ``rejected.jsonl``, in order; read once.
        decisions: rows of ``decisions.jsonl``, in order; read once.
        manifest: all of ``manifest.json`` but the number of samples.
        may_be_empty: whether it is right that no sample was kept, as in a part.

    Returns:
        the statistics, as in ``stats.json``.

    Raises:
        UserError: no sample was kept, unless the set may be empty.
    """
    statistics = Statistics()
    _write_rows(output / "rejected.jsonl", statistics.reject(rejected))
    _write_rows(output / "decisions.jsonl", statistics.decide(decisions))
    (output / "data").mkdir(exist_ok=True)
    count = write_samples(output / DATA_FILE, statistics.keep(samples))
    stats = statistics.result()
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


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
