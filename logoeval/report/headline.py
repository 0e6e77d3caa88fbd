"""The first and the last part of a report: what moved, and where the numbers come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from logodata import __version__
from logodata.common.markup import Html, join, raw, tag
from logoeval.compare.compare import Comparison, Difference, Row, Run
from logoeval.report import figure_style
from logoeval.report.measures import headline_rows, judged, measures_table
from logoeval.report.tables import Section, Table

HOW_TO_READ = (
    "Differences are taken sample by sample, those of shares in percentage points, and the brackets are 95 % intervals "
    "from 10,000 resamplings (whole documents at a time where samples share one). A measure “rose” or “fell” if that "
    "interval leaves out zero; one measure in twenty does so by chance. With fewer than six independent samples no "
    "verdict is given."
)


def title(comparison: Comparison) -> str:
    """Return the labels of the runs as a list in words."""
    *most, last = comparison.labels
    return f"{', '.join(most)} and {last}"


def headline(comparison: Comparison) -> Html:
    """Return the beginning of the report: the runs, what moved, and the first table."""
    first, *others = comparison.runs
    dates = sorted(result.provenance.date[:10] for run in comparison.runs for result in run.results.tasks.values())
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    rows = headline_rows(comparison)
    counts = [summary([(row, row.differences[number]) for row in rows]) for number in range(len(others))]
    lead = f"Of {len(rows)} measures, from {first.label} to"
    if len(others) == 1:
        moved = tag("p", f"{lead} {others[0].label}: {counts[0]}.")
    else:
        entries = (tag("li", tag("strong", run.label), f": {text}") for run, text in zip(others, counts, strict=True))
        moved = join(tag("p", lead), tag("ul", *entries))
    runs = (
        tag("li", figure_style.swatch(number), tag("span", tag("strong", run.label), f": {describe(run)}"))
        for number, run in enumerate(comparison.runs)
    )
    return join(
        tag("h1", "What the training changed" if len(others) == 1 else "What each training changed"),
        tag("p", f"{title(comparison)}, measured {span} on the same samples", class_="subtitle"),
        tag("ul", *runs, class_="runs"),
        *(tag("p", text, class_="limit") for text in unfinished(comparison)),
        moved,
        measures_table(comparison, rows, "What changed", explain=True).html(),
        tag("p", HOW_TO_READ, class_="note"),
    )


def describe(run: Run) -> str:
    """Return the model and the adapter of a run in words."""
    provenance = next(iter(run.results.tasks.values())).provenance
    adapter = f"adapter {provenance.adapter} ({provenance.adapter_fingerprint})" if provenance.adapter else "no adapter"
    return f"model {provenance.model} ({provenance.model_fingerprint}), {adapter}"


def unfinished(comparison: Comparison) -> list[str]:
    """Return a sentence for each run that has begun tasks and not finished them."""
    return [
        f"Not in this report: {run.label} has begun {', '.join(run.unfinished)} and not finished."
        for run in comparison.runs
        if run.unfinished
    ]


def summary(moves: Sequence[tuple[Row, Difference]]) -> str:
    """Return in words how many metrics moved in which direction."""
    counts = Counter(judged(row, difference) for row, difference in moves)
    phrases = {
        "better": "moved for the better",
        "worse": "moved for the worse",
        "moved": "moved where neither way is better",
        "no clear change": "show no clear change",
        "too few to tell": "have too few samples to tell",
    }
    return ", ".join(f"{counts[key]} {phrase}" for key, phrase in phrases.items() if counts[key])


def provenance_section(comparison: Comparison) -> Section:
    """Return the section with devices, versions, notes and settings."""
    fields = ("device", "engine", "torch", "transformers", "logo_align", "date", "seconds")
    table = Table(
        "Where the numbers come from",
        ["run", "task", *(field.replace("_", "-") for field in fields)],
        [
            [run.label, task, *(_text(getattr(run.results.tasks[task].provenance, field)) for field in fields)]
            for run in comparison.runs
            for task in comparison.tasks
        ],
        text_columns=range(len(fields) + 1),
        style="provenance",
    )
    settings = {task: comparison.runs[0].results.tasks[task].settings for task in comparison.tasks}
    found = notes(comparison)
    written = f"Written by logoeval {__version__} from {', '.join(str(run.folder) for run in comparison.runs)}."
    body = join(
        tag(
            "p",
            "All runs were made with the settings below, on the same prompts; devices and versions may differ, and "
            "stand in the table. Each folder keeps every response and score.",
        ),
        table.html(),
        tag("ul", *(tag("li", note) for note in found), class_="small") if found else raw(""),
        tag("details", tag("summary", "settings"), tag("pre", json.dumps(settings, indent=2, ensure_ascii=False))),
        tag("footer", tag("p", written, class_="small")),
    )
    return Section("Where the numbers come from", body, [table])


def notes(comparison: Comparison, tasks: Sequence[str] | None = None) -> list[str]:
    """Return the notes of some tasks, or of all, about their numbers. A note that all runs have stands once."""
    found = []
    for task in comparison.tasks if tasks is None else tasks:
        by_run = {run.label: run.results.tasks[task].notes for run in comparison.runs}
        for note in dict.fromkeys(note for said in by_run.values() for note in said):
            holders = [label for label, said in by_run.items() if note in said]
            who = "" if len(holders) == len(by_run) else f" ({', '.join(holders)})"
            found.append(f"{task}{who}: {note}")
    return found


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}" if isinstance(value, float) else str(value)
