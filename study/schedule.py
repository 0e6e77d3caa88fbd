"""Run jobs in parallel, each in its own process, and record the time and memory of each.

A job that succeeded is not run again. A job that was stopped continues, because every command of the project resumes.
The time of a job is the sum over its attempts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logodata.common.append_log import AppendLog
from logodata.common.console import note
from logodata.common.errors import UserError
from study.jobs import Job

JOURNAL = "jobs.jsonl"

_COLLAPSED = "the model collapsed"
"""What ``logotrain run`` says when it stops a training that destroys the model. It is a result, not a fault."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The wall-clock seconds, the CPU seconds and the peak resident memory in GiB of a job."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


class Journal:
    """The record of all attempts to run jobs, one line per attempt in :data:`JOURNAL`.

    Args:
        folder: the folder of the study.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._log = AppendLog(folder / JOURNAL)
        self._lock = threading.Lock()

    def is_done(self, job: Job) -> bool:
        """Return whether this command succeeded, was the last of its folder, and its folder still exists."""
        is_last = self._last_command(job) == job.command and any(record["ok"] for record in self._attempts(job))
        return is_last and (self._folder / job.name).is_dir()

    def is_of_another(self, job: Job) -> bool:
        """Return whether another command made this folder: a row whose learning rate was chosen anew."""
        return (self._folder / job.name).is_dir() and self._last_command(job) not in (None, job.command)

    def collapsed(self) -> set[str]:
        """Return the names of the trainings that collapsed when they were last run."""
        with self._lock:
            last = {record["name"]: record.get("collapsed", False) for record in self._log.values()}
        return {name for name, collapsed in last.items() if collapsed}

    def has_collapsed(self, job: Job) -> bool:
        """Return whether this command was a training that collapsed."""
        return any(record.get("collapsed") for record in self._attempts(job))

    def add(self, job: Job, *, ok: bool, taken: Taken, collapsed: bool = False) -> None:
        """Record an attempt."""
        with self._lock:
            number = sum(record["name"] == job.name for record in self._log.values())
            record = {"id": f"{job.name}#{number}", "name": job.name, "command": job.command, "ok": ok}
            record |= {"collapsed": True} if collapsed else {}
            seconds = {"seconds": round(taken.seconds, 1), "cpu_seconds": round(taken.cpu_seconds, 1)}
            self._log.append({**record, **seconds, "peak_gib": round(taken.peak_gib, 2)})

    def number_done(self) -> int:
        """Return the number of jobs that succeeded."""
        with self._lock:
            return len({record["name"] for record in self._log.values() if record["ok"]})

    def taken(self, job: Job) -> Taken:
        """Return the time of all attempts of a command together, and their peak memory."""
        attempts = self._attempts(job)
        return Taken(
            sum(record["seconds"] for record in attempts),
            sum(record["cpu_seconds"] for record in attempts),
            max((record["peak_gib"] for record in attempts), default=0.0),
        )

    def _last_command(self, job: Job) -> str | None:
        with self._lock:
            commands = [record["command"] for record in self._log.values() if record["name"] == job.name]
        return commands[-1] if commands else None

    def _attempts(self, job: Job) -> list[dict[str, Any]]:
        with self._lock:
            return [record for record in self._log.values() if record["command"] == job.command]


def run_jobs(
    queues: Sequence[Iterable[Sequence[Job]]], workers: int, folder: Path, journal: Journal, total: int
) -> None:
    """Run the jobs that are not done, ``workers`` queues at a time.

    A queue holds chains of jobs, which run one after the other. It may be a generator, which decides on a chain when
    those before it are done. Within a chain each job may read what those before it wrote. A training is not run if all
    that follows it in its chain is done: its folder may be gone. Nothing follows one that collapsed. The output of
    every job goes to ``folder/logs``. ``total`` is the number of all jobs of the study.

    Raises:
        UserError: a job failed; the other running jobs have ended.
        KeyboardInterrupt: the running jobs were told to stop; they continue when the study is run again.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: set[subprocess.Popen[bytes]] = set()
    stopping = threading.Event()

    def run(job: Job) -> None:
        if stopping.is_set() or journal.is_done(job):
            return
        if journal.is_of_another(job):
            (folder / "aside").mkdir(exist_ok=True)
            shutil.move(folder / job.name, folder / "aside" / f"{job.name.replace('/', '-')}-{time.time_ns()}")
        note(f"[{journal.number_done()} of {total} done] {job.command}")
        started = time.monotonic()
        log = folder / "logs" / f"{job.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", job.program, *job.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the jobs
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "LOGO_PROGRESS": "plain"},
            )
            running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            running.discard(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken = Taken(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)
        collapsed = process.returncode != 0 and _COLLAPSED in _last_line(log)
        journal.add(job, ok=process.returncode == 0, taken=taken, collapsed=collapsed)
        if collapsed:
            note(f"{job.name}: {_last_line(log)}")
        elif process.returncode == 0:
            note(
                f"[{journal.number_done()} of {total} done] {job.name}: {taken.seconds:.0f} s, {taken.peak_gib:.1f} GiB"
            )
        elif not stopping.is_set():
            raise UserError(
                f"{job.name} ended with code {process.returncode}: {_last_line(log)}",
                where=str(log),
                mend="mend it and run the same command again; what is done is kept",
            )

    def run_queue(queue: Iterable[Sequence[Job]]) -> None:
        try:
            run_chains(queue)
        except BaseException:
            stopping.set()
            raise

    def run_chains(queue: Iterable[Sequence[Job]]) -> None:
        for chain in queue:
            for number, job in enumerate(chain, 1):
                following = chain[number:]
                if job.program == "logotrain" and following and all(map(journal.is_done, following)):
                    continue
                if not journal.has_collapsed(job):
                    run(job)
                if journal.has_collapsed(job):
                    break

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_queue, queue) for queue in queues]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            wait(futures)  # where one failed, the others may go on, and be interrupted
        except BaseException:
            stopping.set()
            for process in tuple(running):
                process.terminate()  # not SIGINT, which processes under nohup ignore
            raise
    for future in futures:
        future.result()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
