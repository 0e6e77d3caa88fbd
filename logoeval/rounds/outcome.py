"""What came out of a round, and whether another one is worth it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logodata.common.records import ABSENT, Record
from logodata.contract import SolveStats
from logodata.dataset.files import read_stats
from logodata.judge.agreement import wilson_interval
from logoeval.compare.compare import Difference, compare
from logoeval.records import read_results
from logoeval.rounds.plan import Rounds
from logotrain.metrics import MetricsLog
from logotrain.run_files import METRICS_FILE

LOOKS = 2
"""The rounds in a row without a rise after which another one is not worth it."""
LEAST_YIELD = 0.5
MOST_LENGTH = 1.25
MOST_FALL = 1.0


_HELD_OUT = ("pairs", "qa")
"""The tasks on held-out samples. What both measure is taken from the last one, which has all questions."""


class TrainedOutcome(Record):
    """What a training left, measured on the same held-out samples as every other one.

    ``updates`` is the number of its updates, ``rate`` the mean learning rate of these. ``chosen``, the log-probability
    per token of the preferred responses, and ``answer_tokens``, the mean length of the model's own answers, are
    differences from the model as it was, the second as a ratio. They are absent where the recipe does not measure them,
    as are the differences ``margin`` and ``answers`` (word F1) with their intervals. ``solve`` tells how often the
    model that answered was right (``solve.tries``).
    """

    questions: int
    kept: int
    solve: SolveStats | None = ABSENT
    updates: int
    rate: float
    margin: Difference | None = ABSENT
    answers: Difference | None = ABSENT
    chosen: float | None = ABSENT
    answer_tokens: float | None = ABSENT


class RoundOutcome(TrainedOutcome):
    """What came out of a round. ``margin`` and ``answers`` are differences from the round before. ``reasons`` speak
    against another round; rounds that keep going pass them over."""

    number: int
    reasons: list[str] | None = ABSENT

    @property
    def tells(self) -> bool:
        """Whether there were enough independent samples to tell a rise."""
        return any(found is not None and found.verdict != "too few to tell" for found in (self.margin, self.answers))

    @property
    def rose(self) -> bool:
        """Whether the margin or the answers rose beyond doubt."""
        return any(found is not None and found.verdict == "rose" for found in (self.margin, self.answers))


class ControlOutcome(TrainedOutcome):
    """What came out of the control of rounds: one round, from the model as it was, with as many updates on the same
    documents as ``rounds`` rounds together. It answered the questions of all of them as it was.

    ``margin`` and ``answers`` say how much higher the last round is: without a rise here a gain is not the rounds'.
    """

    rounds: int


class RoundsRecord(Record):
    """``rounds.json``: all rounds so far, why they ended, if they did, and their control, if there is one."""

    rounds: list[RoundOutcome]
    ended: list[str] | None = ABSENT
    control: ControlOutcome | None = ABSENT


def measure_round(rounds: Rounds, number: int) -> RoundOutcome:
    """Read what came out of a round whose commands have ended.

    Raises:
        UserError: A folder lacks what its command writes, or is damaged.
    """
    folder, measured = rounds.round(number), rounds.measured(number)
    return RoundOutcome(
        number=number,
        **_trained(folder),
        **_changes(rounds.measured(number - 1), measured),
        **_since_base(rounds, measured),
    )


def measure_control(rounds: Rounds, last: int) -> ControlOutcome:
    """Read what came out of the control of the rounds up to the last one, whose commands have ended.

    Raises:
        UserError: A folder lacks what its command writes, or is damaged.
    """
    folder = rounds.control_of(last)
    return ControlOutcome(
        rounds=last,
        **_trained(folder),
        **_changes(folder / "eval", rounds.measured(last)),
        **_since_base(rounds, folder / "eval"),
    )


def _trained(folder: Path) -> dict[str, Any]:
    """Return the fields that tell on what a round, or a control, was trained."""
    stats = read_stats(folder / "data")
    steps = MetricsLog(folder / "run" / METRICS_FILE).steps()
    rate = sum(step.lr for step in steps) / len(steps) if steps else 0.0
    asked = {"questions": stats.questions, "kept": stats.kept, "solve": stats.solve}
    return {**asked, "updates": len(steps), "rate": rate}


def _changes(before: Path, after: Path) -> dict[str, Any]:
    """Return the fields that tell what is higher or lower after than before."""
    comparison = compare({"before": before, "after": after})
    changes = {
        key: row.differences[0]
        for task in _HELD_OUT
        if task in comparison.tasks
        for key, row in comparison.whole(task).items()
    }
    return {"margin": changes.get("margin"), "answers": changes.get("token_f1")}


def _since_base(rounds: Rounds, measured: Path) -> dict[str, Any]:
    """Return the fields that tell what has changed since the model as it was."""
    base, now = _means(rounds.measured(0)), _means(measured)
    return {
        "chosen": now["chosen"] - base["chosen"] if "chosen" in now else None,
        "answer_tokens": now["answer_tokens"] / base["answer_tokens"] if base.get("answer_tokens") else None,
    }


def _means(folder: Path) -> dict[str, float]:
    """Return the means of all held-out samples, by the keys of their measures."""
    tasks = read_results(folder).tasks
    rows = (row for task in _HELD_OUT if task in tasks for row in tasks[task].summary if not row.slice)
    return {row.metric: row.value for row in rows}


def reasons_not_to_train(rounds: Rounds, number: int) -> Iterator[str]:
    """Yield why a round whose data are built cannot be trained."""
    stats = read_stats(rounds.round(number) / "data")
    if not stats.questions:
        yield f"no documents were left for round {number} of {rounds.count}"
    elif not stats.kept:
        yield f"round {number} kept none of its {stats.questions} questions"


def reasons_to_stop(outcomes: Sequence[RoundOutcome]) -> Iterator[str]:
    """Yield why no further round is worth it, after these."""
    first, last = outcomes[0], outcomes[-1]
    looked = [outcome for outcome in outcomes if outcome.tells]
    if len(looked) >= LOOKS and not any(outcome.rose for outcome in looked[-LOOKS:]):
        yield f"neither the held-out margin nor the answers rose in the last {LOOKS} rounds"
    yields = [outcome.kept / outcome.questions for outcome in (first, last)]
    # Few questions halve by chance: what they tell of the yield must lie below the first round's, too.
    if yields[1] < LEAST_YIELD * yields[0] and wilson_interval(last.kept, last.questions)[1] < yields[0]:
        yield (
            f"the yield fell below half of the first round's ({last.kept} of {last.questions} questions kept, "
            f"{first.kept} of {first.questions} then)"
        )
    if last.chosen is not None and last.chosen < -MOST_FALL:
        yield f"the preferred responses lost {-last.chosen:.2f} nats a token against the model as it was"
    if last.answer_tokens is not None and last.answer_tokens > MOST_LENGTH:
        yield f"the model's own answers are {last.answer_tokens:.2f} times as long as at first"
