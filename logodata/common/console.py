"""Print for people: rich on a terminal; in a pipe or a batch system's log, a line from time to time.

Under torchrun only the first process prints.

``LOGO_PROGRESS=plain`` prints a line every few seconds instead of a live bar, for several commands that share a
terminal. ``plain:NAME`` puts NAME before each line. ``off`` shows no progress.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from logodata.common import verbosity
from logodata.common.printable import printable

_LEAST_COLUMNS = 20
"""A terminal that reports fewer columns does not know its width. No table can be read in so few."""

_COLUMNS = re.compile(r"[1-9][0-9]{1,3}")


class _Console(Console):
    """Prints text as it is: it interprets no markup, and the terminal gets no control characters.

    It is 80 columns wide if neither the terminal nor ``COLUMNS`` gives a usable width.
    """

    def __init__(self, **options: Any) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES") or _COLUMNS.fullmatch(value)
        }
        super().__init__(highlight=False, markup=False, emoji=False, _environ=environment, **options)

    @property  # type: ignore[misc]  # rich's property can also be set, which nothing here does
    def size(self) -> ConsoleDimensions:
        found = super().size
        return found if found.width >= _LEAST_COLUMNS else ConsoleDimensions(80, found.height)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            # What rich itself sends to the terminal is the style, or marked as control.
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = _Console()
stderr = _Console(stderr=True)

_PLAIN_INTERVAL_S = 10.0
_LOG_FIRST_S, _LOG_INTERVAL_S = 10.0, 60.0
"""Seconds before the first line in a log, so that short work leaves none, and between the lines after it."""


class Tracker:
    """Tracks the progress of one piece of work. :meth:`advance` may carry figures worth showing, such as
    ``kept=12``."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.figures: dict[str, Any] = {}

    def advance(self, count: int = 1, **figures: Any) -> None:
        """Report that ``count`` more units are done. A figure is shown until it is given again."""
        self.done += count
        self.figures |= figures


class _LineTracker(Tracker):
    """Prints a line at intervals, also while one unit takes long, and one at the end if it printed any before."""

    def __init__(self, label: str, total: int, done: int, *, first_s: float, interval_s: float) -> None:
        super().__init__(label, total, done)
        self._interval_s, self._printed, self._ended = interval_s, False, threading.Event()
        self._start, self._start_done = time.monotonic(), done
        self._due, self._lock = self._start + first_s, threading.Lock()

    def advance(self, count: int = 1, **figures: Any) -> None:
        with self._lock:
            super().advance(count, **figures)
            now = time.monotonic()
            if now >= self._due or (self._printed and self.done >= self.total):
                self._print(now)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Print lines within the block even if nothing advances."""
        thread = threading.Thread(target=self._beat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(max(self._due - time.monotonic(), 0.01)):
            with self._lock, suppress(OSError):  # the reader may be gone; the command's own next line meets that
                if (now := time.monotonic()) >= self._due:
                    self._print(now)

    def _print(self, now: float) -> None:
        self._due, self._printed = now + self._interval_s, True
        rate = (self.done - self._start_done) / max(now - self._start, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.done < self.total and rate > 0 else ""
        stderr.print(f"[{self.label}] {self.done}/{self.total}{_figures(self.figures)}{left}", markup=False)


class _RichTracker(Tracker):
    def __init__(self, bar: Progress, label: str, total: int, done: int) -> None:
        super().__init__(label, total, done)
        self._bar, self._task = bar, bar.add_task(label, total=total, completed=done, figures="")

    def advance(self, count: int = 1, **figures: Any) -> None:
        super().advance(count, **figures)
        self._bar.update(self._task, advance=count, figures=_figures(self.figures))


def _figures(figures: dict[str, Any]) -> str:
    shown = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )
    return "".join(f", {text}" for text in shown)


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Tracker]:
    """Show the progress of ``total`` units, of which an earlier run finished ``done``."""
    mode, _, name = os.environ.get("LOGO_PROGRESS", "").partition(":")
    if not _shows_notes() or mode == "off":
        yield Tracker(label, total, done)
    elif mode == "plain":
        yield _LineTracker(f"{name} {label}".strip(), total, done, first_s=0.0, interval_s=_PLAIN_INTERVAL_S)
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[figures]}", markup=False), console=stderr) as bar:
            yield _RichTracker(bar, label, total, done)
    else:
        tracker = _LineTracker(label, total, done, first_s=_LOG_FIRST_S, interval_s=_LOG_INTERVAL_S)
        with tracker.beating():
            yield tracker


def note(text: str) -> None:
    """Print one line of information on stderr, so that stdout is left for results."""
    if _shows_notes():
        stderr.print(text, markup=False, soft_wrap=True)


def result(text: object) -> None:
    """Print one line on stdout: what the command made."""
    if _is_first_process():
        print(printable(str(text)))


def show(renderable: RenderableType) -> None:
    """Print a table or figure of rich on stderr."""
    if _shows_notes():
        stderr.print(renderable)


def _shows_notes() -> bool:
    return _is_first_process() and verbosity.level != "quiet"


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
