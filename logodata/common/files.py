"""The folder of one run: locked while in use, written atomically, bound to one set of settings."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from logodata.common import json_files
from logodata.common.errors import UserError
from logodata.common.json_files import parse_json, strict_dumps, too_long
from logodata.common.printable import encodable
from logodata.common.user_files import expand_home

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Names of the files that :func:`replacing` writes to."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(encodable(data).encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write piece by piece. It replaces ``path`` at the end, or never if the writer fails.

    Raises:
        UserError: The disk is full, the folder cannot be written, or no file may be at ``path``.
    """
    check_file(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path, "free space or choose another -o"):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error tells more; the next start removes the file
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def _writing(path: Path, mend: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=str(path), mend=mend) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk. Without this, a power failure can lose a file that is on disk
    itself."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do this for folders
            raise
    finally:
        os.close(handle)


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines to ``path`` and wait until they are on disk.

    Raises:
        UserError: The file cannot be written.
    """
    is_new = not path.exists()
    with _writing(path, "free space, then run the same command again"):
        with open(path, "ab") as file:
            file.write(lines.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def check_place(path: Path) -> None:
    """Refuse a path whose folder cannot be made because a file stands in its way, before any work is done for it.

    Raises:
        UserError: It names the file in the way.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError("a file, not a folder", where=str(above), mend="give another place for what is written")


def check_file(path: Path) -> None:
    """Refuse a path at which something other than a file is: a folder, a device, a pipe.

    A file takes its place by a rename. For root, that would replace ``/dev/null`` for the whole system.

    Raises:
        UserError: It names the path.
    """
    # /dev/stdout is a link, which may lead to a file.
    if (path.exists() and not path.is_file()) or path.absolute().parent in (Path("/dev"), Path("/dev/fd")):
        raise UserError("no file can be written here", where=str(path), mend="give the name of a file, new or old")


def check_apart(output: Path, *inputs: tuple[str, Path | str | None]) -> None:
    """Refuse an output inside an input, or around it: results would be read as input, or kept and deleted with it.

    An input is what messages call it, and its file or folder. None and missing files are skipped.

    Raises:
        UserError: It names both.
    """
    place = output.resolve()
    for what, given in inputs:
        if given is None or not (there := expand_home(given)).exists():
            continue
        there = there.resolve()
        if place == there or (there.is_dir() and place.is_relative_to(there)):
            raise UserError(f"lies inside {what}, {given}", where=str(output), mend="give an -o outside of it")
        if there.is_relative_to(place):
            raise UserError(f"holds {what}, {given}", where=str(output), mend="give an -o of its own")


def make_folder_of(path: Path) -> None:
    """Create the folder that the file ``path`` will be written into.

    Raises:
        UserError: It cannot be created, or ``path`` is no file's name.
    """
    check_place(path)
    check_file(path)
    with _writing(path, "choose another -o"):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically (see :mod:`logodata.common.json_files`)."""
    write_atomic(path, strict_dumps(value, indent=2) + "\n")


def read_json(path: Path, *, mend: str = "delete it and run the command again") -> Any:
    """Read a JSON file. ``mend`` says what to do about one that is damaged.

    Raises:
        UserError: The file is missing, damaged or too large.
    """
    try:
        if path.stat().st_size > json_files.MAX_JSON_BYTES:
            raise too_long(str(path), "a JSON file")
        return parse_json(path.read_bytes(), finite=True)
    except FileNotFoundError as error:
        mend = "check the folder's name, or run the command that writes it"
        raise UserError("no such file", where=str(path), mend=mend) from error
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path), mend="check its name and rights") from error
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), mend=mend) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create ``folder`` and hold its lock. A second process is refused with a :class:`UserError`.

    The kernel drops the lock (flock) when the process ends, so a crash leaves nothing to clean up. If the block fails
    before it writes anything, a folder that was created here is deleted.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+")  # noqa: SIM115 - held for the length of the run
    except OSError as error:
        mend = "choose another -o"
        raise UserError(f"cannot use this folder: {error.strerror}", where=str(folder), mend=mend) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that failed may have deleted the file after it was opened here: its lock locks nothing then.
            if not os.path.samestat(os.fstat(handle.fileno()), (folder / ".lock").stat()):
                raise FileNotFoundError
        except OSError as error:
            mend = "wait for it, or choose another -o"
            raise UserError("another process is writing here", where=str(folder), mend=mend) from error
        _remove_leftovers(folder)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first error tells more
                if is_new and os.listdir(folder) == [".lock"]:
                    (folder / ".lock").unlink()
                    folder.rmdir()
            raise


def _remove_leftovers(folder: Path) -> None:
    """Delete the files that a killed process left in :func:`replacing`, except in folders with a lock of their own."""
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not (Path(place) / name / ".lock").exists()]
        for name in filter(_TEMPORARY.fullmatch, files):
            (Path(place) / name).unlink(missing_ok=True)


def bind_settings(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    free: Collection[str] = (),
    *,
    started: bool = True,
    as_today: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Bind ``folder`` to ``settings``: write them to ``folder/name`` the first time, and compare them from then on.

    Results made under different settings must not be mixed. The keys ``free`` may change, because results do not depend
    on them, and the file keeps their newest values. A run that was refused or stopped before it was ``started``, which
    means before any result was made, binds nothing. ``as_today`` gives settings that an earlier program wrote those
    that it did not know.

    Raises:
        UserError: The settings differ. It names the first difference.
    """
    path = folder / name
    if not started:
        path.unlink(missing_ok=True)
    settings = json.loads(strict_dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    before = json.loads(strict_dumps(as_today(read_json(path))))
    found = list(differences({**before, **{key: settings.get(key) for key in free}}, settings))
    if found:
        key, old, new = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        what = f"this folder was started with {key}={old!r}, now it is {new!r}{more}"
        raise UserError(what, where=str(path), mend="use the same settings to continue, or another -o to start afresh")
    if before != settings:
        write_json(path, settings)


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the places where two JSON values differ, as (dotted key, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new


SEAL = "files.json"


def seal(scratch: Path, target: Path) -> None:
    """Write the seal of ``scratch`` (size and hash of each file), then rename it to ``target``, which must not exist.

    Everything is on disk before the rename: after a power failure ``target`` is whole or absent.
    """
    write_json(scratch / SEAL, {name: _describe(scratch / name) for name in _names(scratch)})
    move_into_place(scratch, target)


def move_into_place(scratch: Path, target: Path) -> None:
    """Rename ``scratch`` to ``target`` after everything is on disk. It writes no seal, for folders that go
    elsewhere."""
    for place, _, names in os.walk(scratch):
        for name in names:
            with open(Path(place) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
    scratch.rename(target)
    sync_folder(target.parent)


def damage(folder: Path) -> str:
    """Return the first difference between a folder and its seal; empty if there is none. Files added later do not
    count.

    Raises:
        UserError: the file system does not give the seal now, as after a lost connection.
    """
    try:
        expected = read_json(folder / SEAL)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return error.what
    if not isinstance(expected, dict):
        return f"{SEAL} is not a list of files"
    there = set(_names(folder))
    for name, description in expected.items():  # a name that leads out of the folder is not opened
        if name not in there or _describe(folder / name) != description:
            return f"{name} is not as it was written"
    return ""


def put_aside(path: Path, fault: str, instead: str) -> None:
    """Rename a damaged file or folder to ``NAME.damaged``, in place of an earlier one, and print a note.

    Args:
        path: The file or folder.
        fault: What is wrong with it.
        instead: What is done now, such as ``"it is written again"``.
    """
    from logodata.common.console import note

    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir():
        shutil.rmtree(aside)
    path.rename(aside)
    note(f"{path.name} is damaged ({fault}): renamed to {aside.name}, {instead}")


def read_if_whole(path: Path) -> Any | None:
    """Read the JSON file that says a run is finished. None if there is none, or a damaged one, which is put aside."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError as error:
        put_aside(path, error.what, "it is written again")
        return None


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
