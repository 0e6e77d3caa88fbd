"""Send the figures of a run to experiment trackers, through Accelerate's tracker classes.

``metrics.jsonl`` and ``validation.jsonl`` hold the truth. A tracker gets copies, in a thread of its own, so that
neither its failures nor a slow network stop or slow the training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common import verbosity
from logodata.common.console import note
from logodata.common.errors import UserError, first_line
from logodata.common.json_files import strict_dumps
from logotrain.recipe.settings import Tracker, TrainRecipe

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_PATIENCE_S = 60.0
"""The longest time that the end of a run waits for its trackers."""


def check_trackers(names: Sequence[Tracker]) -> None:
    """Check that the packages of these trackers are installed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"report_to: {name} is not installed", mend=f"pip install {name}")


class Trackers:
    """The trackers of a run, each fed by a thread. One that fails is noted once, and gets nothing more.

    Use it as a context manager. At its end it waits a minute at most for what is still to be sent.

    Args:
        recipe: names the trackers, and the project under which they file the run. They call the run as its folder.
        out: folder of the run. TensorBoard's files go to ``out/tensorboard``.
        done: number of steps after which the run goes on.
        is_main: whether this is the process that reports.
    """

    def __init__(self, recipe: TrainRecipe, out: Path, *, done: int, is_main: bool) -> None:
        settings = recipe.model_dump(mode="json")
        start = partial(_start, out=out, project=recipe.project, settings=settings, done=done)
        self._stack = ExitStack()
        self._feeds = [_Feed(name, partial(start, name)) for name in recipe.report_to if is_main]

    def log(self, section: str, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among ``values``, each under ``section/name``, as those of ``step``."""
        numbers = {
            f"{section}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and name != "step"
        }
        for feed in self._feeds:
            feed.send(lambda tracker: tracker.log(numbers, step=step))

    def __enter__(self) -> Trackers:
        # Some print to stdout, which is for results. It is turned here: two threads could not turn it back in order.
        if self._feeds:
            quiet = verbosity.level == "quiet"
            said = self._stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stderr
            self._stack.enter_context(redirect_stdout(said))
        for feed in self._feeds:
            feed.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for feed in self._feeds:
            feed.close()
        self._stack.close()


class _Feed:
    """A tracker and the thread that makes all its calls, in order: some trackers belong to the thread that began."""

    def __init__(self, name: str, start: Callable[[], GeneralTracker]) -> None:
        self._name, self._start = name, start
        self._calls: queue.SimpleQueue[Callable[[GeneralTracker], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def send(self, call: Callable[[GeneralTracker], object]) -> None:
        self._calls.put(call)

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            note(f"report_to: {self._name} has not taken all figures after {_PATIENCE_S:.0f} s; they are in RUN")

    def _run(self) -> None:
        try:
            tracker = self._start()
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.finish()
        except BaseException as error:  # wandb raises SystemExit and KeyboardInterrupt of its own; all end here
            reason = first_line(error) or type(error).__name__
            note(f"warning: report_to: {self._name} failed and gets no more figures ({reason}); training goes on")


def _start(name: Tracker, *, out: Path, project: str, settings: Mapping[str, Any], done: int) -> GeneralTracker:
    """Return the tracker, begun: a new run, or the one that an earlier call of the same run began."""
    from accelerate import PartialState, tracking

    PartialState()  # its trackers' own log lines need it
    run, identity = out.resolve().name, hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]
    arguments: dict[Tracker, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": out, "purge_step": done + 1 if done else None},
        "trackio": {"run_name": project, "name": f"{run}-{identity}", "resume": "allow"},
        "wandb": {"run_name": project, "name": run, "id": identity, "resume": "allow", "dir": out},
        "mlflow": {"experiment_name": project, "run_name": run},
        "swanlab": {"run_name": project, "experiment_name": run, "logdir": str(out / "swanlab")},
    }
    tracker: GeneralTracker = tracking.LOGGER_TYPE_TO_CLASS[name](**arguments[name])
    tracker.main_process_only = False  # nobody else calls it
    tracker.start()
    if name == "tensorboard":
        # Its table of settings would appear as a second run.
        tracker.log({"recipe": f"```\n{strict_dumps(settings, indent=2)}\n```"}, step=done)
    else:
        tracker.store_init_configuration(_flat(settings))
    return tracker


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return the leaves of nested settings by dotted name."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else strict_dumps(value)
    return found
