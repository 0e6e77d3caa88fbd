"""Print what came out of rounds, and why they ended."""

from __future__ import annotations

from pathlib import Path

from logoeval.compare.compare import Difference
from logoeval.report.terminal import say
from logoeval.rounds.outcome import RoundsRecord, TrainedOutcome


def show_rounds(record: RoundsRecord, report: Path, control_report: Path) -> None:
    """Print all rounds, each beside the one before and beside the model as it was, their control, and where the reports
    are."""
    for found in record.rounds:
        _say_outcome(f"round {found.number}", found, "from the round before")
        for reason in found.reasons or [] if record.ended is None else []:
            say(f"  against another    {reason}")
    for reason in record.ended or []:
        say(f"ended after round {len(record.rounds)}: {reason}")
    if record.control is not None:
        name = f"control of {record.control.rounds} rounds, one round with as many updates"
        _say_outcome(name, record.control, f"of round {record.control.rounds} over it")
    say(f"wrote {report}" if record.control is None else f"wrote {report}, {control_report}")


def _say_outcome(name: str, found: TrainedOutcome, from_what: str) -> None:
    trained = f"{found.updates:,} updates at a mean rate of {found.rate:.2g}"
    say(f"{name}: {found.kept:,} of {found.questions:,} questions kept, {trained}")
    if found.solve is not None:
        counts = " ".join(map(str, found.solve.histogram))
        say(f"  {'solved':18} questions by right answers, 0 to {found.solve.tries} tries: {counts}")
    for what, change in (("margin", found.margin), ("answers (word F1)", found.answers)):
        if change is not None:
            say(f"  {what:18} {_shown(change)}, {from_what}")
    if found.chosen is not None:
        told = "nats a token of the preferred responses"
        say(f"  {'log-probability':18} {found.chosen:+.2f} {told}, from the model as it was")
    if found.answer_tokens is not None:
        say(f"  {'length':18} {found.answer_tokens:.2f} times the model's as it was, of its own answers")


def _shown(found: Difference) -> str:
    change = found.change
    interval = "" if change.low is None or change.high is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    return f"{change.value:+.3f}{interval} {found.verdict}"
