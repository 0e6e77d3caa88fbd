"""The held-out figures of a run: when they are due, what they were, which step was the best, and when to give up."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import append_lines, write_atomic
from logodata.common.json_files import json_objects
from logotrain.metrics import Metrics, cut_half_line, log_line
from logotrain.parallel import World
from logotrain.recipe.settings import ValidationSettings

_START_AGAIN = "put the line back, or start again in another -o"


class ValidationRecord(Metrics):
    """A line of ``validation.jsonl``, without the fields that are None: means over the held-out samples.

    ``step`` is the number of updates before it, 0 for the untrained model. ``seconds`` is the time that it took.
    """

    step: int
    seconds: float

    def score(self, settings: ValidationSettings) -> float:
        """Return ``validation.metric``, turned so that more is better."""
        value: float = getattr(self, settings.metric)
        return -value if settings.metric == "loss" else value


class Validation:
    """The records of ``validation.jsonl``. All processes of a run hold the same ones.

    Args:
        done: number of steps from which the run goes on; later records are made again.
        total_steps: number of steps of the run.
        active: whether there are held-out samples; without them nothing is ever due.

    Raises:
        UserError: the file is damaged, or lacks a measurement from before ``done``.
    """

    def __init__(
        self, settings: ValidationSettings, path: Path, world: World, *, done: int, total_steps: int, active: bool
    ) -> None:
        self._settings, self._path, self._world = settings, path, world
        self._total_steps, self._active = total_steps, active
        self.records: list[ValidationRecord] = world.on_main(lambda: _read(path, done)) if active else []
        there = {record.step for record in self.records}
        missing = [step for step in range(done) if self._is_measured(step) and step not in there]
        if missing:
            raise UserError(f"lacks the figures of step {missing[0]}", where=str(path), mend=_START_AGAIN)

    def due(self, step: int) -> bool:
        """Return whether the held-out samples must be measured now, after ``step`` updates."""
        return self._is_measured(step) and all(record.step != step for record in self.records)

    def _is_measured(self, step: int) -> bool:
        return self._active and (step % self._settings.every_steps == 0 or step == self._total_steps)

    def append(self, record: ValidationRecord) -> None:
        """Add a record, and write its line to the disk."""
        self.records.append(record)
        self._world.on_main(partial(append_lines, self._path, log_line(record.step, record)))

    @property
    def best_step(self) -> int | None:
        """The trained step with the best metric, the earliest one of equals; None if there is none."""
        best = best_record(self.records, self._settings)
        return best.step if best else None

    @property
    def exhausted(self) -> bool:
        """Whether the last ``validation.patience`` measurements were no better than the best one before them."""
        if self._settings.patience is None or self.best_step is None:
            return False
        since = sum(record.step > self.best_step for record in self.records)
        return since >= self._settings.patience


def best_record(records: Iterable[ValidationRecord], settings: ValidationSettings) -> ValidationRecord | None:
    """Return the best record of a trained step, the earliest one of equals; None if there is none."""
    trained = (record for record in records if record.step)
    return max(trained, key=lambda record: record.score(settings), default=None)


def read_validation(path: Path) -> list[ValidationRecord]:
    """Return the records of a file; none if it does not exist.

    Raises:
        UserError: a line is damaged.
    """
    if not path.exists():
        return []
    lines = json_objects(path, mend=_START_AGAIN)
    found: list[ValidationRecord] = []
    for where, value in lines:
        record = ValidationRecord.from_json(value, where=where, mend=_START_AGAIN)
        fault = record.fault or (
            "its step is not after the one before" if found and record.step <= found[-1].step else ""
        )
        if fault:
            raise UserError(f"damaged: {fault}", where=where, mend=_START_AGAIN)
        found.append(record)
    return found


def _read(path: Path, done: int) -> list[ValidationRecord]:
    """Return the records of at most ``done`` steps, and remove the others from the file."""
    cut_half_line(path)
    found = read_validation(path)
    kept = [record for record in found if record.step <= done]
    if len(kept) < len(found):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomic(path, "".join(line for line, record in zip(lines, found, strict=True) if record.step <= done))
    return kept
