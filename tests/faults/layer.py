"""Run a command with a fault at its n-th file operation (``shim.c``), in a forked child or in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
_SHIM = Path(__file__).with_name("shim.c")
_LIMIT_S = 600.0
"""A command that takes longer hangs."""

MODES = ("kill", "torn", "cut", "lost", "full", "eio")
"""What a fault does; see ``shim.c``."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a trace: what was done to which path below the folder; ``size`` of a write, in bytes."""

    kind: str
    path: str
    size: int

    @property
    def name(self) -> str:
        """The same in every process that does the same: without its number and without random names."""
        return f"{self.kind} {re.sub(r'[.][0-9]+[.]tmp$|[.]tmp[A-Za-z0-9]{6}$', '.tmp', self.path)}"

    def takes(self, mode: str) -> bool:
        """Whether a fault of this mode differs here from those at the operations beside it."""
        if mode == "torn":
            return self.kind == "write" and self.size > 1  # half of one byte is none
        if mode == "cut":
            return self.kind in ("write", "rename", "fsync")  # elsewhere the file written last was cut before
        return mode != "full" or self.kind not in ("unlink", "rmdir")  # these need no space


@dataclass(frozen=True, slots=True)
class Fault:
    """``mode`` at operation ``at``, counted from 1; ``at=0`` never comes."""

    at: int = 0
    mode: str = "count"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code, negative for a signal."""
    output: str
    """What it printed."""
    operations: tuple[Operation, ...]
    """What it did, and last what it was about to do."""
    hung: bool = False
    unseen: int = 0
    """Bytes that it wrote past the shim, where that is known."""


def compile_shim(folder: Path) -> Path | None:
    """``shim.so`` in ``folder``; None where there is no C compiler, or no Linux."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    target = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-U_FORTIFY_SOURCE"]
    subprocess.run([compiler, *flags, "-o", target, _SHIM, "-ldl"], check=True)
    return target


def run_process(shim: Path, program: str, argv: Sequence[str], folder: Path, fault: Fault = Fault()) -> Ended:
    """``python -m program argv`` as a user starts it, with a fault below ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace"
        armed = {
            "FAULT_FOLDER": str(folder),
            "FAULT_AT": str(fault.at),
            "FAULT_MODE": fault.mode,
            "FAULT_TRACE": str(trace),
        }
        log = Path(scratch) / "log"
        with open(log, "wb") as out:
            code = subprocess.run(
                [sys.executable, "-m", program, *argv],
                env={**_environment(shim), **armed},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT_S,
            ).returncode
        return Ended(code, log.read_text(errors="replace"), _read_trace(trace))


Start = Callable[[str, Sequence[str], Path, Fault], Ended]
"""Runs a program with arguments, and a fault below a folder."""


class ForkServer:
    """Runs commands in children of one process that has imported everything (:mod:`tests.faults.server`)."""

    def __init__(self, shim: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            env=_environment(shim),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._scratch.cleanup()

    def run(self, program: str, argv: Sequence[str], folder: Path, fault: Fault = Fault()) -> Ended:
        """The same as :func:`run_process`, without the start."""
        trace, log = (Path(self._scratch.name) / name for name in ("trace", "log"))
        trace.unlink(missing_ok=True)
        request = {
            "program": program,
            "argv": list(argv),
            "folder": str(folder),
            "at": fault.at,
            "mode": fault.mode,
            "trace": str(trace),
            "log": str(log),
            "limit_s": _LIMIT_S,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        output = log.read_text(errors="replace")
        return Ended(answer["code"], output, _read_trace(trace), answer["hung"], answer["unseen"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment(shim: Path) -> dict[str, str]:
    return {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "LOGO_PROGRESS": "",
        "COLUMNS": "200",
    }


def _read_trace(path: Path) -> tuple[Operation, ...]:
    if not path.exists():
        return ()
    rows = (line.rsplit(" ", 1) for line in path.read_text().splitlines())
    return tuple(Operation(*head.split(" ", 1), int(size)) for head, size in rows)
