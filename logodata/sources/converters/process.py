"""Have documents converted by a process of its own, with limits of memory and time."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import Any

from logodata.sources.converters import Converted, Unreadable

MOST_BYTES = 4 * 2**30
"""The memory of the process. A document of a thousand pages takes a tenth of it."""

MOST_SECONDS = 300.0
"""The time of one document. PDFium reads some hundred pages in a second."""

_SPLIT = "this is no document, or split it into documents"

_running: subprocess.Popen[str] | None = None


def convert(file: Path, encoding: str | None) -> Converted:
    """Return the text of a document. ``encoding`` is that of pages that declare none and are not UTF-8.

    Raises:
        Unreadable: It cannot be converted, or takes more than :data:`MOST_BYTES` or :data:`MOST_SECONDS`.
    """
    process = _start()
    assert process.stdin is not None
    assert process.stdout is not None
    timed_out = []

    def end() -> None:
        timed_out.append(True)
        process.kill()

    timer = Timer(MOST_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(json.dumps({"file": str(file), "encoding": encoding}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    finally:
        timer.cancel()
    if timed_out:
        stop()
        raise Unreadable(f"takes more than {MOST_SECONDS:g} s to read", where=str(file), mend=_SPLIT)
    found: dict[str, Any] = json.loads(answer) if answer else {"what": None}
    if "text" in found:
        return Converted(found["text"], Counter(found["lost"]), found["encoding"])
    if found["what"] is None:
        stop()
        what = f"ends the process that reads it, or needs more than {MOST_BYTES // 2**30} GiB of memory"
        raise Unreadable(what, where=str(file), mend=_SPLIT)
    raise Unreadable(found["what"], where=str(file), mend=found["mend"])


def stop() -> None:
    """End the process. The next document starts another one."""
    global _running
    if _running is not None:
        _running.kill()
        _running.communicate()
    _running = None


def _start() -> subprocess.Popen[str]:
    global _running
    if _running is None or _running.poll() is not None:
        # -P: modules in the current folder, which may be that of the documents, are not imported.
        command = [sys.executable, "-P", "-m", "logodata.sources.converters.worker", str(MOST_BYTES)]
        _running = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            encoding="ascii",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(stop)
    return _running
