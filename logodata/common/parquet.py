"""Read rows of parquet files, which strangers may have written.

A value that stands once in a parquet file can stand for any number of values, so its size says nothing of the memory
that its rows take. pyarrow tells that only when a row is read, and has no limit of its own. Rows are therefore read one
at a time, and the file's statement of its sizes is not asked for: pyarrow 26 ends the process where a column's
statistics are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from logodata.common import json_files
from logodata.common.errors import UserError, first_line
from logodata.common.json_files import too_long


def parquet_rows(
    file: Path, shown: str, *, mend: str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place (``shown:row 1``) and the content of each row of a parquet file.

    Only the ``wanted`` columns are read, unless the file has none of them.

    Raises:
        UserError: The file is damaged or not a parquet file (``mend`` says what to do about it), or a row has more than
            :data:`logodata.common.json_files.MAX_JSON_BYTES`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # As bytes: pyarrow takes no name that is not UTF-8.
        with pa.OSFile(os.fsencode(file)) as source, pq.ParquetFile(source) as table:
            names = [name for name in table.schema_arrow.names if wanted(name)]
            batches = table.iter_batches(batch_size=1, columns=names or None, use_threads=False)
            for number, batch in enumerate(batches, 1):
                where = f"{shown}:row {number}"
                if batch.nbytes > json_files.MAX_JSON_BYTES:
                    raise too_long(where, "a row")
                yield from ((where, row) for row in batch.to_pylist())
    # Which of these says that a file is damaged depends on where it is: OverflowError on a date, for example.
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"cannot read as parquet: {first_line(error)}", where=shown, mend=mend) from error
