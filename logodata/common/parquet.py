"""Rows of parquet files, which strangers may have written: a few kilobytes of parquet can stand for gigabytes."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logodata.common import json_files
from logodata.common.errors import UserError
from logodata.common.json_files import too_long

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
            :data:`logodata.common.json_files.MAX_JSON_BYTES`.
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
                if batch.nbytes > json_files.MAX_JSON_BYTES:
                    for at in range(len(batch)):
                        if batch.slice(at, 1).nbytes > json_files.MAX_JSON_BYTES:
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


_ONE_AT_A_TIME = threading.RLock()
"""The limit is the process's: two threads that set and restore it by turns would leave one behind."""


@contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """A block that may not go on for ever, nor take all memory.

    Holds on the main thread, which alone gets signals, and for memory where Linux tells what the process has.

    Args:
        seconds: after these ``TimeoutError`` is raised inside the block.
        num_bytes: address space that the process may take beyond what it has; asking for more is a ``MemoryError``.
    """
    with limited_memory(num_bytes), _limited_time(seconds):
        yield


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
    """The part of :func:`bounded` that holds for memory."""
    sizes = Path("/proc/self/statm")
    if not sizes.is_file():
        yield
        return
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(sizes.read_text().split()[0]) * resource.getpagesize() + num_bytes
        within = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(within), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
