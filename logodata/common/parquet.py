"""Rows of parquet files, which strangers may have written.

A value that stands once in a parquet file can stand for any number of values, so its size says nothing of the memory
that its rows take. pyarrow tells that only when a row is read, and has no limit of its own. Rows are therefore read one
at a time, and the file's statement of its sizes is not asked for: pyarrow 26 ends the process where a column's
statistics are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from logodata.common import json_files
from logodata.common.errors import UserError, first_line
from logodata.common.json_files import too_long


def parquet_rows(
    file: Path, shown: str, *, mend: str, wanted: Collection[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a parquet file with their numbers, from 1 on.

    Args:
        file: to read.
        shown: its name in messages.
        mend: what to do about a file that cannot be read.
        wanted: columns that a reader may ask for; others are not read, unless none of these is there.

    Raises:
        UserError: not a parquet file, or a damaged one; a row has more than
            :data:`logodata.common.json_files.MAX_JSON_BYTES`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # As bytes: pyarrow takes no name that is not UTF-8.
        with pa.OSFile(os.fsencode(file)) as source, pq.ParquetFile(source) as table:
            names = [name for name in table.schema_arrow.names if name in wanted]
            number = 0
            for batch in table.iter_batches(batch_size=1, columns=names or None, use_threads=False):
                number += len(batch)
                if batch.nbytes > json_files.MAX_JSON_BYTES:
                    raise too_long(f"{shown}:row {number}", "a row")
                for row in batch.to_pylist():
                    yield number, row
    # Which of these says that a file is damaged depends on where it is: OverflowError on a date, for example.
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"cannot read as parquet: {first_line(error)}", where=shown, mend=mend) from error
