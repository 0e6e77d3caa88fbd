"""What is logged: one JSON line a step, means over the step's samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from logodata.common.errors import UserError
from logodata.common.files import append_lines
from logodata.common.finite import not_finite
from logodata.common.json_files import parse_json, strict_dumps


class Metrics(BaseModel):
    """What is measured of one sample, or means over the samples of a step, whose ``tokens`` are summed.

    Log-probabilities are means over a response's tokens, in nats; ``rejected_*`` are means over the M responses. None
    stands for what an objective does not compute.
    """

    model_config = ConfigDict(frozen=True)

    loss: float
    preference_loss: float
    sft_loss: float
    margin: float | None = None
    chosen_logp: float
    rejected_logp: float | None = None
    accuracy: float | None = None
    chosen_ended: float
    rejected_ended: float
    tokens: int

    @property
    def fault(self) -> str | None:
        """The first number that is not finite, such as ``loss is nan``: a loss may be finite where a margin is not."""
        return not_finite(self.model_dump())


class StepRecord(Metrics):
    """A line of ``metrics.jsonl``, without the fields that are None.

    ``step`` counts from 1. ``grad_norm`` is the gradient's norm before clipping, ``repetition`` the share of repeated
    4-grams where it was measured, ``lr`` the learning rate, ``seconds`` the time that the step took.
    """

    step: int
    grad_norm: float
    repetition: float | None = None
    lr: float
    seconds: float


def mean_metrics(samples: Sequence[Metrics]) -> Metrics:
    """Means over a step's samples; ``tokens`` is their sum."""
    rows = [sample.model_dump(exclude_none=True) for sample in samples]
    sums = {name: sum(row[name] for row in rows) for name in rows[0]}
    return Metrics(**{name: value if name == "tokens" else value / len(rows) for name, value in sums.items()})


class MetricsLog:
    """``metrics.jsonl``. A line is on disk before the step's checkpoint is: no checkpoint lacks its lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def num_steps(self) -> int:
        """Steps whose lines are there, whole, from the first one on without a gap."""
        return len(self.steps())

    def steps(self) -> list[StepRecord]:
        """The lines of these steps.

        Raises:
            UserError: a line is damaged.
        """
        records = [_read(line, self._path) for line in self._whole_lines()]
        gap = next((number for number, record in enumerate(records) if record.step != number + 1), len(records))
        return records[:gap]

    def cut(self, last_step: int) -> None:
        """Remove the lines after the first ``last_step``, and half a line: those steps are done again."""
        size = sum(map(len, self._whole_lines()[:last_step]))
        if self._path.exists() and self._path.stat().st_size > size:
            os.truncate(self._path, size)

    def _whole_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        return [line for line in self._path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def append(self, record: StepRecord) -> None:
        """Write one line and wait until it is on disk."""
        append_lines(self._path, strict_dumps({"step": record.step, **record.model_dump(exclude_none=True)}) + "\n")


def _read(line: bytes, path: Path) -> StepRecord:
    try:
        return StepRecord.model_validate(parse_json(line))
    except ValueError as error:
        raise UserError(
            "damaged record", where=str(path), mend="delete the line, then run the same command again"
        ) from error
