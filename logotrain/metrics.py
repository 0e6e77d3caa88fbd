"""What is logged: one JSON line a step, means over the step's samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logodata.common.errors import UserError
from logodata.common.files import append_lines
from logodata.common.finite import not_finite
from logodata.common.json_files import parse_json, strict_dumps


@dataclass(frozen=True, slots=True)
class SampleMetrics:
    """One sample's figures.

    Log-probabilities are means over a response's tokens, in nats; ``rejected_*`` are means over the M responses. None
    stands for what an objective does not compute.
    """

    loss: float
    preference_loss: float
    sft_loss: float
    margin: float | None
    chosen_logp: float
    rejected_logp: float | None
    accuracy: float | None
    chosen_ended: float
    rejected_ended: float
    tokens: int

    @property
    def fault(self) -> str | None:
        """The first figure that is not finite, such as ``loss is nan``: a loss may be finite where a margin is not."""
        return not_finite(asdict(self))


def step_metrics(samples: Sequence[SampleMetrics]) -> dict[str, float]:
    """Means over a step's samples; ``tokens`` is their sum; what was not computed is left out."""
    rows = [asdict(sample) for sample in samples]
    columns = {name: [row[name] for row in rows] for name, value in rows[0].items() if value is not None}
    return {name: sum(values) if name == "tokens" else sum(values) / len(values) for name, values in columns.items()}


class MetricsLog:
    """``metrics.jsonl``. A line is on disk before the step's checkpoint is: no checkpoint lacks its lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def num_steps(self) -> int:
        """Steps whose lines are there, whole, from the first one on without a gap."""
        return len(self.steps())

    def steps(self) -> list[dict[str, Any]]:
        """The lines of these steps."""
        lines = [_read(line, self._path) for line in self._whole_lines()]
        gap = next((number for number, line in enumerate(lines) if line["step"] != number + 1), len(lines))
        return lines[:gap]

    def cut(self, last_step: int) -> None:
        """Remove the lines after the first ``last_step``, and half a line: those steps are done again."""
        size = sum(map(len, self._whole_lines()[:last_step]))
        if self._path.exists() and self._path.stat().st_size > size:
            os.truncate(self._path, size)

    def _whole_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        return [line for line in self._path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def append(self, record: dict[str, Any]) -> None:
        """Write one line and wait until it is on disk."""
        append_lines(self._path, strict_dumps(record) + "\n")


def _read(line: bytes, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(line)
        return {**found, "step": int(found["step"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "damaged record", where=str(path), mend="delete the line, then run the same command again"
        ) from error
