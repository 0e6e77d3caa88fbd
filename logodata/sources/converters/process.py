"""Have documents converted by a process of its own, with limits of memory and time."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import IO, Any

from logodata.sources.converters import Converted, Unreadable

MOST_BYTES = 4 * 2**30
"""The memory of the process. A document of a thousand pages takes a tenth of it."""

MOST_SECONDS = 300.0
"""The time of one document. PDFium reads some hundred pages in a second."""

_SPLIT = "this is no document, or split it into documents"

MOST_KEPT_BYTES = 2**30
"""How much text is kept for the next reading of the source. A build reads its source three times."""

_running: subprocess.Popen[str] | None = None
_kept: dict[tuple[Any, ...], tuple[int, int]] = {}
"""Where the answers on files stand in :data:`_answers`, by the file's name, size and time."""

_answers: IO[str] | None = None


def convert(file: Path, encoding: str | None) -> Converted:
    """Return the text of a document. ``encoding`` is that of pages that declare none and are not UTF-8.

    Raises:
        Unreadable: It cannot be converted, or takes more than :data:`MOST_BYTES` or :data:`MOST_SECONDS`.
    """
    global _answers
    state = file.stat()
    key = (str(file), encoding, state.st_size, state.st_mtime_ns, MOST_BYTES, MOST_SECONDS)
    if _answers is None:
        _answers = TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  open as long as the command runs
    if key in _kept:
        _answers.seek(_kept[key][0])
        return _interpret(_answers.read(_kept[key][1]), file)
    answer = _ask(file, encoding)
    end = _answers.seek(0, 2)
    if end + len(answer) <= MOST_KEPT_BYTES:
        _answers.write(answer)
        _kept[key] = end, len(answer)
    return _interpret(answer, file)


def _interpret(answer: str, file: Path) -> Converted:
    found: dict[str, Any] = json.loads(answer)
    if "text" in found:
        return Converted(found["text"], Counter(found["lost"]), found["encoding"])
    raise Unreadable(found["what"], where=str(file), mend=found["mend"])


def _ask(file: Path, encoding: str | None) -> str:
    """Return the answer of the process, or one that says why there is none."""
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
    if answer and not timed_out:
        return answer
    stop()
    if timed_out:
        fault = Unreadable(f"takes more than {MOST_SECONDS:g} s to read", mend=_SPLIT)
    else:
        most = f"{MOST_BYTES / 2**30:g} GiB of memory"
        fault = Unreadable(f"ends the process that reads it, or needs more than {most}", mend=_SPLIT)
    return json.dumps({"what": fault.what, "mend": fault.mend})


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
