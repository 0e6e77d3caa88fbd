"""Runs jobs side by side, each in a process of its own, and keeps what each took.

A job that ended well is not run again by the same command; one that was stopped goes on, since every command of the
project resumes. What a job took is the sum over its attempts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logodata.common.append_log import AppendLog
from logodata.common.console import note
from logodata.common.errors import UserError
from study.jobs import Job


@dataclass(frozen=True, slots=True)
class Taken:
    """Wall seconds, seconds of processors, and the largest resident memory of a job, in GiB."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


class Journal:
    """What was run, in ``jobs.jsonl``: a line an attempt.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._log = AppendLog(folder / "jobs.jsonl")
        self._lock = threading.Lock()

    def is_done(self, job: Job) -> bool:
        """Whether this command ended well, and what it wrote is still there."""
        return (self._folder / job.name).is_dir() and any(record["ok"] for record in self._attempts(job))

    def add(self, job: Job, *, ok: bool, taken: Taken) -> None:
        """Keep an attempt."""
        with self._lock:
            number = sum(record["name"] == job.name for record in self._log.values())
            record = {"id": f"{job.name}#{number}", "name": job.name, "command": job.command, "ok": ok}
            seconds = {"seconds": round(taken.seconds, 1), "cpu_seconds": round(taken.cpu_seconds, 1)}
            self._log.append({**record, **seconds, "peak_gib": round(taken.peak_gib, 2)})

    def taken(self, job: Job) -> Taken:
        """What all attempts of a command took together."""
        attempts = self._attempts(job)
        return Taken(
            sum(record["seconds"] for record in attempts),
            sum(record["cpu_seconds"] for record in attempts),
            max((record["peak_gib"] for record in attempts), default=0.0),
        )

    def _attempts(self, job: Job) -> list[dict[str, Any]]:
        with self._lock:
            return [record for record in self._log.values() if record["command"] == job.command]


def run_jobs(chains: Sequence[Sequence[Job]], workers: int, folder: Path, journal: Journal) -> None:
    """Run what is not done, ``workers`` chains at a time: the jobs of a chain follow each other, as each may read what
    those before it wrote. Every job's output goes to ``folder/logs``.

    Raises:
        UserError: a job failed; those that were running have ended.
        KeyboardInterrupt: jobs that were running were told to stop, and go on when the study is run again.
    """
    jobs = [job for chain in chains for job in chain]
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: set[subprocess.Popen[bytes]] = set()
    stopping = threading.Event()

    def run(job: Job) -> None:
        if stopping.is_set() or journal.is_done(job):
            return
        place = f"{jobs.index(job) + 1} of {len(jobs)}"
        note(f"[{place}] {job.command}")
        started = time.monotonic()
        log = folder / "logs" / f"{job.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", job.program, *job.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "LOGO_PROGRESS": "plain"},
            )
            running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            running.discard(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken = Taken(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)
        journal.add(job, ok=process.returncode == 0, taken=taken)
        if process.returncode == 0:
            note(f"[{place}] {job.name}: {taken.seconds:.0f} s, {taken.peak_gib:.1f} GiB")
        elif not stopping.is_set():
            stopping.set()
            raise UserError(
                f"{job.name} ended with code {process.returncode}: {_last_line(log)}",
                where=str(log),
                mend="mend it and run the same command again; what is done is kept",
            )

    def run_chain(chain: Sequence[Job]) -> None:
        for job in chain:
            run(job)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_chain, chain) for chain in chains]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stopping.set()
            for process in tuple(running):
                process.terminate()  # a process begun by nohup ignores Ctrl-C
            raise
    for future in futures:
        future.result()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
