"""Progress where there is no terminal: in logs and through pipes."""

from __future__ import annotations

import io
import threading

import pytest

from logodata.common import console


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    log = io.StringIO()
    monkeypatch.setattr(console, "stderr", console._Console(file=log, width=200))
    return log


def follow(clock: Clock, total: int, seconds: float) -> None:
    """Work of ``total`` units that take ``seconds`` each; nothing beats in between."""
    tracker = console._LineTracker("train", total, 0, first_s=10.0, interval_s=60.0)
    for number in range(total):
        clock.now += seconds
        tracker.advance(loss=1.0 / (number + 1))


def test_short_work_leaves_no_line(clock: Clock, log: io.StringIO) -> None:
    follow(clock, total=9, seconds=1.0)
    assert log.getvalue() == ""


def test_long_work_leaves_a_line_every_so_often_and_one_at_its_end(clock: Clock, log: io.StringIO) -> None:
    follow(clock, total=20, seconds=6.0)
    assert log.getvalue().splitlines() == [
        "[train] 2/20, loss 0.5, 108 s left",
        "[train] 12/20, loss 0.08333, 48 s left",
        "[train] 20/20, loss 0.05",
    ]


def test_a_line_comes_also_while_one_unit_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = threading.Event()

    class Log(io.StringIO):
        def write(self, text: str) -> int:
            if "[train] 0/3" in text:
                printed.set()
            return super().write(text)

    monkeypatch.setattr(console, "stderr", console._Console(file=Log(), width=200))
    monkeypatch.setattr(console, "_LOG_FIRST_S", 0.0)
    monkeypatch.delenv("LOGO_PROGRESS", raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with console.progress("train", 3):
        assert printed.wait(60)
    assert not any(thread.name == "progress" for thread in threading.enumerate())


@pytest.mark.parametrize("mode", ["off", "plain", "plain:job"])
def test_modes(monkeypatch: pytest.MonkeyPatch, clock: Clock, log: io.StringIO, mode: str) -> None:
    monkeypatch.setenv("LOGO_PROGRESS", mode)
    with console.progress("train", 3) as tracker:
        for _ in range(3):
            tracker.advance()
    name = {"off": None, "plain": "[train]", "plain:job": "[job train]"}[mode]
    assert log.getvalue().splitlines() == ([] if name is None else [f"{name} 1/3, 0 s left", f"{name} 3/3"])
