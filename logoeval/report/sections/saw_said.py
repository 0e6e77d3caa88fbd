"""The report's section on the retrieval score: what the model saw against what it said."""

from __future__ import annotations

from collections import Counter

from logodata.common.markup import join, tag
from logoeval.compare.compare import Comparison, Row, Run, show_change
from logoeval.report.measures import measures_table
from logoeval.report.tables import Cell, Section, Table
from logoeval.tasks.needles.saw_said import saw_said
from logoeval.tasks.needles.scores import NiahFacts

_CELLS = (("said", "saw_and_said", "said_only"), ("not said", "saw_only", "neither"))


def retrieval_section(comparison: Comparison) -> Section | None:
    """Return the section: a table of saw and said for each run, and its gap. It is None if retrieval was not
    measured."""
    settings = comparison.runs[0].results.tasks["niah"].settings
    if "retrieval_heads" not in settings:
        return None
    rows = comparison.whole("niah")
    tables = [_table(rows, number, run) for number, run in enumerate(comparison.runs)]
    gap = measures_table(comparison, [rows["said_minus_saw"]], "Share said less share seen")
    body = join(
        tag(
            "p",
            "Some attention heads look back at the text while the model answers. The ten that did it best on other "
            "samples, the same heads for all runs, are watched while the right answer is fed to the model. A number "
            "counts as seen if one of them looks at its beginning when the answer comes to it, and as said if the "
            "model's own answer holds it. A number seen but not said was found and lost on the way to the answer.",
        ),
        tag("div", *(table.html() for table in tables), class_="tables"),
        gap.html() if len(comparison.runs) > 2 else tag("p", _gap(rows["said_minus_saw"], comparison)),
    )
    return Section("What the model saw and what it said", body, [*tables, gap])


def _table(rows: dict[str, Row], number: int, run: Run) -> Table:
    """Counts of values, and shares with their intervals."""
    counts: Counter[str] = Counter()
    for sample in run.results.tasks["niah"].samples:
        facts = NiahFacts.model_validate(sample.facts)
        counts.update(saw_said(facts.seen or (), facts.found))
    body: list[list[str | Cell]] = []
    for name, *keys in _CELLS:
        body.append([name, *(_cell(rows[key], number, counts[key]) for key in keys)])
    return Table(f"Numbers seen and said, {run.label}", [run.label, "seen", "not seen"], body)


def _cell(row: Row, number: int, count: int) -> Cell:
    value = row.values[number]
    return Cell(f"{count} ({row.metric.show(value.value)})", row.metric.show_interval(value.low, value.high))


def _gap(row: Row, comparison: Comparison) -> str:
    """Said less saw, a clause a run."""
    parts = []
    for number, run in enumerate(comparison.runs):
        value = row.values[number]
        interval = "" if value.low is None else f" [{row.metric.show_interval(value.low, value.high)}]"
        parts.append(f"{run.label} {_minus(row.metric.show(value.value) + interval)}")
    for run, difference in zip(comparison.runs[1:], row.differences, strict=True):
        change = _minus(show_change(row, difference.change))
        parts.append(f"change in {run.label} {change}, {difference.verdict}")
    return f"Share said less share seen: {'; '.join(parts)}."


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
