"""What is logged: one JSON line a step, means over the step's samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from logodata.common.files import append_lines
from logodata.common.finite import not_finite
from logodata.common.json_files import json_objects, strict_dumps
from logodata.common.records import Record

_SHOWN = {
    "loss": "{:.3f}",
    "distance": "{:.3f}",
    "reward_margin": "{:+.3f}",
    "reward_accuracy": "{:.0%}",
    "margin": "{:+.3f}",
    "accuracy": "{:.0%}",
    "short_margin": "{:+.3f}",
    "short_accuracy": "{:.0%}",
    "short_chosen_logp": "{:.3f}",
    "chosen_logp": "{:.3f}",
}
"""The metrics that people are shown, if the objective has them, and their formats."""

_MEND = "delete the line, then run the same command again"


class Metrics(Record):
    """What is measured of one sample, or means over the samples of a step, whose ``tokens`` are summed.

    Log-probabilities are means over a response's tokens, in nats; ``rejected_*`` are means over the M responses. None
    stands for what an objective does not compute.

    ``reward_margin`` and ``reward_accuracy`` are those of losses with a reference, whose rewards are log-ratios to it:
    ``beta`` times their sums (DPO, LongPO), or their means over tokens (IPO).

    SoLoPO compares responses under the prompt of the critical chunks alone, as ``short_*``. Its ``chosen_logp`` is
    under the whole prompt, and ``distance`` tells how far the rewards of the preferred response under both lie apart.

    ``router_loss`` and ``expert_share`` are those of a mixture of experts: the load-balancing loss before its weight,
    and the largest share of the choices of a layer's router that one expert gets.
    """

    loss: float
    preference_loss: float
    sft_loss: float
    distance: float | None = None
    router_loss: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    margin: float | None = None
    chosen_logp: float
    rejected_logp: float | None = None
    accuracy: float | None = None
    short_reward_margin: float | None = None
    short_reward_accuracy: float | None = None
    short_margin: float | None = None
    short_chosen_logp: float | None = None
    short_rejected_logp: float | None = None
    short_accuracy: float | None = None
    chosen_ended: float
    rejected_ended: float | None = None
    expert_share: float | None = None
    tokens: int

    @property
    def fault(self) -> str | None:
        """The first number that is not finite, such as ``loss is nan``: a loss may be finite where a margin is not."""
        return not_finite(self.model_dump())

    def shown(self) -> dict[str, str]:
        """Return the metrics to show to people, formatted, by name."""
        values = {name: getattr(self, name) for name in _SHOWN}
        return {name: _SHOWN[name].format(value) for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Return the metrics to show to people in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.shown().items())


def describe_change(first: Metrics, last: Metrics) -> str:
    """Return two records' metrics in one line, as ``loss 0.713 -> 0.512, ...``."""
    before, after = first.shown(), last.shown()
    return ", ".join(f"{name} {value} -> {after[name]}" for name, value in before.items())


class Throughput(Record):
    """How fast a step was, all processes together.

    ``memory_gib`` is the most memory of any process: that allocated on its GPU in this step, or on a CPU what the
    process ever held. ``mfu``, model FLOPs utilisation, is the work of the step, without what is computed again, as a
    share of what the cards could do by their datasheet. It is None where either is not known.
    """

    tokens_per_second: float
    samples_per_second: float
    memory_gib: float
    mfu: float | None = None


class StepRecord(Throughput, Metrics):
    """A line of ``metrics.jsonl``, without the fields that are None.

    ``step`` counts from 1. ``mix`` is the number of its samples that are those of ``data.mix``. ``grad_norm`` is the
    gradient's norm before clipping, ``repetition`` the share of repeated 4-grams where it was measured, ``lr`` the
    learning rate, ``seconds`` the time that the step took.
    """

    step: int
    mix: int | None = None
    grad_norm: float
    repetition: float | None = None
    lr: float
    seconds: float


def mean_metrics(samples: Sequence[Metrics]) -> Metrics:
    """Return the means over a step's samples. ``tokens`` is their sum."""
    rows = [sample.model_dump(exclude_none=True) for sample in samples]
    sums = {name: sum(row[name] for row in rows) for name in rows[0]}
    return Metrics(**{name: value if name == "tokens" else value / len(rows) for name, value in sums.items()})


def log_line(step: int, record: Metrics) -> str:
    """Return the line of a log for ``record``: its step first, without the fields that are None."""
    return strict_dumps({"step": step, **record.model_dump(exclude_none=True)}) + "\n"


class MetricsLog:
    """``metrics.jsonl``. A step's line is on disk before its checkpoint, so no checkpoint lacks its lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def steps(self) -> list[StepRecord]:
        """Return the records of all steps from the first one on, up to a gap if there is one.

        Raises:
            UserError: a line is damaged.
        """
        if not self._path.exists():
            return []
        lines = json_objects(self._path, mend=_MEND)
        records = [StepRecord.from_json(value, where=where, mend=_MEND) for where, value in lines]
        gap = next((number for number, record in enumerate(records) if record.step != number + 1), len(records))
        return records[:gap]

    def cut(self, last_step: int) -> None:
        """Remove the lines after the first ``last_step``, because those steps are done again."""
        if self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            if len(lines) > last_step:
                os.truncate(self._path, sum(map(len, lines[:last_step])))

    def append(self, record: StepRecord) -> None:
        """Write one line and wait until it is on disk."""
        append_lines(self._path, log_line(record.step, record))


def cut_half_line(path: Path) -> None:
    """Remove the last line of a log if a kill or a power failure left it incomplete. Its record is made again."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
