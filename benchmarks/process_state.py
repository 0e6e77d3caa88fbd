"""What this process holds, as Linux tells."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def anonymous_mib() -> float:
    """Memory of this process in RAM, MiB, without pages of files: those the kernel takes back when it likes."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> list[str]:
    """What each open file descriptor stands for: a path, ``socket:[...]``, ``pipe:[...]``; sorted."""
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:  # the one that listed them
            continue
    return sorted(found)


def thread_names() -> list[str]:
    """Python's threads by their names, sorted."""
    return sorted(thread.name for thread in threading.enumerate())


def thread_ids() -> list[str]:
    """Threads of the process by the kernel's ids, those of libraries included."""
    return sorted(entry.name for entry in os.scandir("/proc/self/task"))


def children() -> list[int]:
    """Processes that this one started and that are there, dead but not waited for included."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
