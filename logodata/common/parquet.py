"""Rows of parquet files, which strangers may have written: a few kilobytes of parquet can stand for gigabytes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from logodata.common import json_lines
from logodata.common.errors import UserError
from logodata.common.json_lines import too_long
from logodata.common.limits import limited_memory

_BATCH_BYTES = 4 * 2**30
"""Memory that a batch of rows may take while it is read. A file's own word for its sizes is not asked: pyarrow 26 ends
the process where statistics of a column are damaged."""


def parquet_rows(
    file: Path, shown: str, *, mend: str, wanted: Collection[str] = (), batch_rows: int = 8
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a parquet file with their numbers, from 1 on.

    Args:
        file: to read.
        shown: its name in messages.
        mend: what to do about a file that cannot be read.
        wanted: columns that a reader may ask for; others are not read, unless none of these is there.
        batch_rows: rows in memory at a time.

    Raises:
        UserError: not a parquet file, or a damaged one; a row has more than
            :data:`logodata.common.json_lines.MAX_JSON_BYTES`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # As bytes: pyarrow takes no name that is not UTF-8.
        with pa.OSFile(os.fsencode(file)) as source, pq.ParquetFile(source) as table:
            names = [name for name in table.schema_arrow.names if name in wanted]
            batches = table.iter_batches(batch_size=batch_rows, columns=names or None, use_threads=False)
            while (batch := _next(batches)) is not None:
                if batch.nbytes > json_lines.MAX_JSON_BYTES:
                    for at in range(len(batch)):
                        if batch.slice(at, 1).nbytes > json_lines.MAX_JSON_BYTES:
                            raise too_long(f"{shown}:row {number + at + 1}", "a row")
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    # Which of these says that a file is damaged depends on where it is: OverflowError on a date, for example.
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read as parquet: {reason}", where=shown, mend=mend) from error


def _next(batches: Iterator[Any]) -> Any:
    with limited_memory(_BATCH_BYTES):
        return next(batches, None)
