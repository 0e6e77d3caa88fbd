"""Output that a locale, a pipe, a disk or a terminal would break: what was worked on is there, and the code tells how
the work went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
import sys
from pathlib import Path
from rich.table import Table
from logodata.common.console import console, note, progress, result, show
from logodata.common.errors import UserError, run_command
from logodata.common.files import write_json

def work():
    out = Path(sys.argv[1])
    table = Table("é", "日本")
    table.add_row("wide " * 30, "ﬁ…")
    for number in range(2000):  # more than a pipe holds
        result(f"{out} é 日本 {number}")
    console.print(table)
    show(table)
    note(f"{out} é")
    with progress("é", 1) as tracker:
        tracker.advance()
    print("plain é", flush=True)
    write_json(out, {"out": str(out), "é": "日本"})
    if "fail" in sys.argv:
        raise UserError("é", where=str(out))

sys.exit(run_command("prog é", work))
"""


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "PYTHONIOENCODING")}
    return {**kept, "PYTHONPATH": str(ROOT), "LOGO_PROGRESS": "plain", **changes}


def run(*arguments: str | bytes, cwd: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    (cwd / "command.py").write_text(COMMAND, encoding="utf-8")
    defaults: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.run([sys.executable, "command.py", *arguments], check=False, cwd=cwd, **{**defaults, **options})


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "café é 日本 7\n".encode()),
        ({"PYTHONIOENCODING": "ascii"}, rb"caf\xe9 \xe9 \u65e5\u672c 7" + b"\n"),
        ({"PYTHONIOENCODING": "ascii:strict"}, rb"caf\xe9 \xe9 \u65e5\u672c 7" + b"\n"),
        ({"PYTHONIOENCODING": "cp1252"}, b"caf\xe9 \xe9 " + rb"\u65e5\u672c 7" + b"\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"caf\xc3\xa9 \xe9 \u65e5\u672c 7" + b"\n"),
        ({"LC_ALL": "C"}, "é 日本 7\n".encode()),
    ],
)
def test_letters_that_the_terminal_lacks_are_escaped(tmp_path: Path, changes: dict[str, str], written: bytes) -> None:
    done = run("café", cwd=tmp_path, env=environment(**changes))
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    assert written in done.stdout
    assert b"plain" in done.stdout
    assert json.loads((tmp_path / "café").read_text(encoding="utf-8"))["é"] == "日本"
    if "utf" not in changes.get("PYTHONIOENCODING", "utf"):
        assert b"+----" in done.stdout, "a table of signs that are there"
        assert b"+----" in done.stderr


@pytest.mark.parametrize("outcome", ["done", "fail"])
@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("how", ["reader left", "closed"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_work_goes_on_without_a_reader(tmp_path: Path, outcome: str, gone: str, how: str, unbuffered: str) -> None:
    def close() -> None:
        for name, number in (("stdout", 1), ("stderr", 2)):
            if gone in (name, "both"):
                os.close(number)

    reading, writing = os.pipe()
    os.close(reading)
    options: dict[str, Any] = {name: writing for name in ("stdout", "stderr") if gone in (name, "both")}
    if how == "closed":
        options = {"preexec_fn": close}
    done = run("out", outcome, cwd=tmp_path, env=environment(PYTHONUNBUFFERED=unbuffered), **options)
    os.close(writing)
    assert done.returncode == (2 if outcome == "fail" else 0)
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8")) == {"out": "out", "é": "日本"}
    said = (done.stderr or b"").decode()
    assert "Traceback" not in said
    assert "ignored" not in said
    assert ("prog é: error: out: é" in said) == (outcome == "fail" and gone == "stdout")


def test_help_and_usage_into_closed_pipes() -> None:
    for arguments, code in ((["--help"], 0), (["build", "--schema"], 0), (["nonsense"], 2)):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "logodata", *arguments]
        done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, env=environment())
        os.close(writing)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
        assert b"ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("out", cwd=tmp_path, stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode().count("prog é: error: <stdout>: No space left on device (see to the disk") == 1
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


def test_a_broken_pipe_of_the_work_is_no_success() -> None:
    """Such as that of a worker which died: only a reader of our own output may leave."""
    code = "from logodata.common.errors import run_command as r\ndef f(): raise BrokenPipeError\nr('p', f)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, env=environment())
    assert done.returncode == 1
    assert b"BrokenPipeError" in done.stderr


@pytest.mark.parametrize("columns", ["0", "1", "19", "garbage", "²", "-4", "99999999999", "", "20", "100"])
def test_a_width_that_is_none_is_eighty(columns: str) -> None:
    code = "from logodata.common.console import console, stderr; print(console.width, stderr.width)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment(COLUMNS=columns)
    )
    width = columns if columns in ("20", "100") else "80"
    assert done.stdout.split() == [width, width]


def test_names_that_are_not_utf8_are_written_as_text(tmp_path: Path) -> None:
    name = b"caf\xe9"
    done = run(name, "fail", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith(rb"caf\xe9 " + "é 日本 0\n".encode())
    assert rb"caf\xe9: " in done.stderr
    assert json.loads(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).read_bytes())["out"] == r"caf\xe9"
