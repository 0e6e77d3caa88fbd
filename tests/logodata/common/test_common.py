from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.append_log import AppendLog
from logodata.common.errors import SettingError, UserError, pass_on, raised_by, run_command
from logodata.common.files import bind_settings, locked, make_folder_of, write_atomic


@pytest.mark.parametrize(
    "module",
    [
        "logodata",
        "logodata.cli",
        "logodata.contract",
        "logodata.build.build",
        "logodata.recipe.settings",
        "logotrain.cli",
        "logoeval.cli",
    ],
)
def test_imports_stay_light(module: str) -> None:
    heavy = ["torch", "transformers", "vllm", "faiss", "matplotlib", "datasets"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["logodata.recipe.settings", "logodata.questions.settings"])
def test_settings_import_little_more_than_pydantic(module: str) -> None:
    heavy = ["numpy", "scipy", "pyarrow", "regex", "rich", "text_to_num", "torch"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("two\nlines", where="file:1", mend="do this")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_command("prog", lambda: None) == 0
    assert run_command("prog", fail) == 2
    assert capsys.readouterr().err == "prog: error: file:1: two lines (do this)\n"
    assert run_command("prog", interrupt) == 130
    assert "run the same command again" in capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


class EachProcess(BaseException):
    """As torch's distributed checkpoints report what a process met."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("RANK 0 failed")
        self.failures = {0: (error, None)}


def met_on_the_way_up(error: BaseException) -> BaseException:
    later = ValueError("cleaning up failed")
    later.__context__ = error
    return later


def caused_by(error: BaseException) -> BaseException:
    later = ValueError("generation failed")
    later.__cause__ = error
    return later


@pytest.mark.parametrize(
    "found",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda found: type(found).__name__,
)
def test_no_line_about_a_file_hides_what_says_nothing_of_it(found: BaseException) -> None:
    for hidden in (found, EachProcess(found), BaseExceptionGroup("many", [found]), caused_by(caused_by(found))):
        with pytest.raises(type(found)) as caught:
            pass_on(hidden)
        assert caught.value is found
    for said in (ValueError("bad magic"), OSError(errno.EIO, "I/O"), EachProcess(ValueError("bad magic"))):
        pass_on(said)


@pytest.mark.parametrize("hide", [EachProcess, caused_by, met_on_the_way_up])
def test_an_interrupt_ends_with_130_whoever_made_a_line_of_it(
    capsys: pytest.CaptureFixture[str], hide: Callable[[BaseException], BaseException]
) -> None:
    def read() -> None:
        raise UserError("damaged", where="file") from hide(KeyboardInterrupt())

    assert run_command("prog", read) == 130
    assert capsys.readouterr().err == "prog: interrupted; run the same command again to continue\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_fault_of_the_disk_is_one_line_wherever_it_comes(capsys: pytest.CaptureFixture[str], code: int) -> None:
    def make_folder() -> None:
        raise OSError(code, os.strerror(code), "out/work")

    assert run_command("prog", make_folder) == 2
    again = "see to the disk; run the same command again to continue"
    assert capsys.readouterr().err == f"prog: error: out/work: {os.strerror(code)} ({again})\n"


def test_another_error_of_the_system_is_ours() -> None:
    def fail() -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", "out")

    with pytest.raises(OSError, match="not empty"):
        run_command("prog", fail)


def test_an_error_says_the_same_in_another_process() -> None:
    error = UserError("two\nlines", where="file:1", mend="do this")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, UserError)
    assert (copy.what, copy.where, copy.mend, str(copy)) == (error.what, error.where, error.mend, str(error))


def test_a_setting_is_named_as_the_command_names_it() -> None:
    error = SettingError("not UTF-8", where="a.csv:2", setting="encoding=cp1252", mend="or save it as UTF-8")
    assert str(error) == "a.csv:2: not UTF-8 (set encoding=cp1252; or save it as UTF-8)"
    copy = pickle.loads(pickle.dumps(error))
    for within in (error.within("data.pairs."), copy.within("source.").within("data.pairs.")):
        assert str(within) == "a.csv:2: not UTF-8 (set data.pairs.encoding=cp1252; or save it as UTF-8)"


def test_a_second_process_is_refused_and_a_crash_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from logodata.common.files import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is writing here"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_a_folder_is_deleted_if_nothing_was_written(tmp_path: Path) -> None:
    def refuse(folder: Path, file: str | None) -> None:
        with locked(folder):
            if file is not None:
                (folder / file).write_text("kept")
            raise ValueError("refused")

    for name, is_there, file, remains in [
        ("new", False, None, False),
        ("old", True, None, True),
        ("written", False, "a.txt", True),
    ]:
        folder = tmp_path / name
        if is_there:
            folder.mkdir()
        with pytest.raises(ValueError, match="refused"):
            refuse(folder, file)
        assert folder.exists() is remains, name
    with locked(tmp_path / "new"):
        pass
    assert (tmp_path / "new").exists()


def test_the_lock_of_a_deleted_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process that failed deletes it after it was opened here."""
    lock = fcntl.flock

    def delete_and_lock(handle: Any, how: int) -> None:
        (tmp_path / "out" / ".lock").unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", delete_and_lock)
    with pytest.raises(UserError, match="another process is writing here"), locked(tmp_path / "out"):
        pass


def test_settings_bind_a_folder(tmp_path: Path) -> None:
    bind_settings(tmp_path, "s.json", {"a": {"b": 1}, "c": (1, 2)})
    bind_settings(tmp_path, "s.json", {"a": {"b": 1}, "c": [1, 2]})
    with pytest.raises(UserError, match=r"a\.b=1, now it is 2 \(and 1 more\)"):
        bind_settings(tmp_path, "s.json", {"a": {"b": 2}, "c": [1]})


@pytest.mark.parametrize("before", ['{"a": 1}', '{"a"', ""])
def test_settings_bind_nothing_before_anything_was_made(tmp_path: Path, before: str) -> None:
    (tmp_path / "s.json").write_text(before)
    bind_settings(tmp_path, "s.json", {"a": 2}, started=False)
    bind_settings(tmp_path, "s.json", {"a": 2})
    with pytest.raises(UserError, match="a=2, now it is 3"):
        bind_settings(tmp_path, "s.json", {"a": 3})


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomic(file, "old")
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(tmp_path / "no-folder" / "f", "x")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ["", ".", "folder", "pipe", "link", "/dev/null", "/dev/stdout", "/dev/new"])
def test_only_a_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("link").symlink_to("/dev/null")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("replaced"))
    for write in (write_atomic, lambda path, _: make_folder_of(path)):
        with pytest.raises(UserError, match="no file can be written here"):
            write(Path(name), "x")
    assert sorted(os.listdir()) == ["folder", "link", "pipe"]


def test_a_write_that_fails_says_why_though_its_file_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(UserError, match="f: cannot write: Input/output error"):
        write_atomic(tmp_path / "f", "x")


def test_a_folder_that_cannot_be_synced_is_no_fault_but_a_bad_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, code = os.fsync, errno.EINVAL  # what some network file systems say to folders

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    write_atomic(tmp_path / "f", "x")
    code = errno.EIO
    with pytest.raises(UserError, match="cannot write: Input/output error"):
        write_atomic(tmp_path / "f", "x")


def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match="/proc/none/x: cannot write: "):
        make_folder_of(Path("/proc/none/x"))


def test_a_shard_survives_a_cut_at_every_byte(tmp_path: Path) -> None:
    whole = AppendLog(tmp_path / "whole")
    records = [{"id": str(n), "text": "ü" * n} for n in range(4)]
    for record in records:
        whole.append(record)
    data = (tmp_path / "whole").read_bytes()
    for cut in range(len(data) + 1):
        file = tmp_path / "cut"
        file.write_bytes(data[:cut])
        log = AppendLog(file)
        assert list(log.values()) == records[: data[:cut].count(b"\n")]
        log.append(*records)
        assert file.read_bytes() == data


def test_help_is_quick() -> None:
    """Not a timing test: an upper bound far from what it takes, to catch a heavy import."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "logodata", "--help"], capture_output=True, check=True)
    assert time.monotonic() - start < 10


def test_leftovers_of_a_killed_process_go_but_not_those_of_others(tmp_path: Path) -> None:
    mine, theirs, foreign = (
        tmp_path / "data" / ".train.parquet.123.tmp",
        tmp_path / "run" / ".metrics.json.456.tmp",  # another process is writing it
        tmp_path / ".editor.tmp",
    )
    for file in (mine, theirs, foreign):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    with locked(tmp_path / "run"):
        theirs.write_text("being written")
        with locked(tmp_path):
            assert [file.exists() for file in (mine, theirs, foreign)] == [False, True, True]


_TERMINATED = """
import os, signal, sys, time
from logodata.common.errors import run_command
from logotrain.interrupt import stop_on_signal

def waits():
    print("ready", flush=True)
    time.sleep(60)

def stops():
    # The trainer's own handler, which finishes its step first, however often it is told; then ours is back.
    with stop_on_signal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    waits()

before = signal.getsignal(signal.SIGTERM)
code = run_command("prog", {"waits": waits, "stops": stops}[sys.argv[1]])
assert signal.getsignal(signal.SIGTERM) is before
sys.exit(code)
"""


@pytest.mark.parametrize("command", ["waits", "stops"])
def test_sigterm_is_ctrl_c(command: str) -> None:
    arguments = [sys.executable, "-c", _TERMINATED, command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("prog: interrupted; run the same command again to continue\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup, whose command outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised_by(signal.SIGHUP, KeyboardInterrupt) as can:
            signal.raise_signal(signal.SIGHUP)
            assert not can
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), raised_by(signal.SIGHUP, KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_on_another_thread_signals_are_left_alone() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_command("prog", lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]
