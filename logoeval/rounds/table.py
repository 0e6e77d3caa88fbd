"""Print what came out of rounds: a row a round, and why they ended."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from logodata.common.console import console
from logoeval.compare.compare import Difference
from logoeval.report.terminal import say
from logoeval.rounds.outcome import RoundsRecord


def show_rounds(record: RoundsRecord, report: Path) -> None:
    """Print all rounds, each beside the one before, and where the report is."""
    head = ("round", "kept", "of", "margin", "answers (word F1)", "log-probability", "length")
    table = Table(*head, box=None, pad_edge=False)
    for found in record.rounds:
        table.add_row(
            str(found.number),
            f"{found.kept:,}",
            f"{found.questions:,}",
            _change(found.margin),
            _change(found.answers),
            "-" if found.chosen is None else f"{found.chosen:+.2f}",
            "-" if found.answer_tokens is None else f"{found.answer_tokens:.2f} times",
        )
    console.print(table)
    say("margin and answers: change from the round before, with its 95 % interval; log-probability of the preferred")
    say("responses a token, and length of the model's own answers: against the model as it was")
    for reason in record.ended or []:
        say(f"ended after round {len(record.rounds)}: {reason}")
    say(f"wrote {report}")


def _change(found: Difference | None) -> str:
    if found is None:
        return "-"
    change = found.change
    if change.low is None or change.high is None:
        return f"{change.value:+.3f}"
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] {found.verdict}"
