"""The memory that this machine, or the part of it that a container or a job may use, has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def free_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process and its children may still take.

    Linux says what is free on the machine, and the process's control group, or one above it, may allow less. Elsewhere
    it is the machine's whole memory.
    """
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, KeyError, ValueError):
        said = dict(line.split(":") for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        free = [1024 * int(said["MemAvailable"].split()[0])]
    return min([*free, *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield what each limit on the process leaves: control groups of version 2, and the older ones of memory."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if not controllers:
                yield from _free_up_to(root / "sys/fs/cgroup", place, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                yield from _free_up_to(root / "sys/fs/cgroup/memory", place, *names)


def _free_up_to(top: Path, place: str, limit: str, used: str, prefix: str) -> Iterator[int]:
    """Yield what the limits of a group and of those above it leave. Files that the kernel keeps in memory count as
    free, because it gives them up."""
    group = top / place.strip("/")
    for folder in (group, *(above for above in group.parents if above.is_relative_to(top))):
        with suppress(OSError, ValueError, KeyError):  # in a container a group's own folder may not be there
            counts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            files = sum(int(counts[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
            most, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            yield max(0, most - now + files)
