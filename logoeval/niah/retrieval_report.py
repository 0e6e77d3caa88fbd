"""The report's section on the retrieval score: what the model saw against what it said."""

from __future__ import annotations

from collections import Counter

from logodata.common.markup import Html, join, raw, tag
from logoeval.compare import Comparison, Row, Run, show_change
from logoeval.niah.retrieval import saw_said

_CELLS = (("said", "saw_and_said", "said_only"), ("not said", "saw_only", "neither"))


def retrieval_section(comparison: Comparison) -> Html:
    """A table of saw and said for each run, and its gap; nothing where retrieval was not measured."""
    settings = comparison.runs[0].results.tasks["niah"].settings
    if "retrieval_heads" not in settings:
        return raw("")
    rows = {row.metric.key: row for row in comparison.rows if row.task == "niah" and not row.slice}
    tables = [_table(rows, number, run) for number, run in enumerate(comparison.runs)]
    return join(
        tag("h2", "What the model saw and what it said"),
        tag(
            "p",
            "Some attention heads look back at the text while the model answers. The ten that did it best on other "
            "samples, the same heads for all runs, are watched while the right answer is fed to the model. A number "
            "counts as seen if one of them looks at its beginning when the answer comes to it, and as said if the "
            "model's own answer holds it. A number seen but not said was found and lost on the way to the answer.",
        ),
        *tables,
        tag("p", _gap(rows["said_minus_saw"], comparison)),
    )


def _table(rows: dict[str, Row], number: int, run: Run) -> Html:
    """Counts of values, and shares with their intervals."""
    counts: Counter[str] = Counter()
    for sample in run.results.tasks["niah"].samples:
        counts.update(saw_said(sample.facts["seen"], sample.facts["found"]))
    head = tag("tr", tag("th", run.label), tag("th", "seen", class_="n"), tag("th", "not seen", class_="n"))
    body = [
        tag("tr", tag("th", name, scope="row"), *(_cell(rows[key], number, counts[key]) for key in keys))
        for name, *keys in _CELLS
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _cell(row: Row, number: int, count: int) -> Html:
    value = row.values[number]
    interval = tag("span", row.metric.show_interval(value.low, value.high), class_="hint")
    return tag("td", f"{count} ({row.metric.show(value.value)})", interval, class_="n")


def _gap(row: Row, comparison: Comparison) -> str:
    """Said less saw, a clause a run."""
    parts = []
    for number, run in enumerate(comparison.runs):
        value = row.values[number]
        interval = "" if value.low is None else f" [{row.metric.show_interval(value.low, value.high)}]"
        parts.append(f"{run.label} {row.metric.show(value.value)}{interval}")
    for run, difference in zip(comparison.runs[1:], row.differences, strict=True):
        parts.append(f"change in {run.label} {show_change(row, difference.change)}, {difference.verdict}")
    return f"Share said less share seen: {'; '.join(parts)}."
