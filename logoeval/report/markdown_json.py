"""The report as Markdown and as JSON: all that its tables hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logodata.common.printable import markdown_text
from logoeval.compare.compare import Comparison
from logoeval.compare.limits import all_limits
from logoeval.records import Curve
from logoeval.report.headline import HOW_TO_READ, describe, notes, summary, title, unfinished
from logoeval.report.measures import headline_rows, markdown_table
from logoeval.report.paper_table import own_rows, published
from logoeval.report.tables import Section

SCHEMA_VERSION = 2
"""Of the JSON file. 2: labels, limits, notes, the LongBench table, curves over training and the sections' tables are in
it."""


def markdown(comparison: Comparison, sections: Sequence[Section]) -> str:
    """Runs, all measures, what each measure is, then the tables of every section."""
    first, *others = comparison.runs
    headline = headline_rows(comparison)
    metrics = {row.metric.label: row.metric for row in comparison.rows}
    limits = [f"- **{task}: {'; '.join(found)}**" for task, found in all_limits(comparison).items()]
    found_notes = [f"- {markdown_text(note)}" for note in notes(comparison)]
    explanations = [
        f"- **{markdown_text(label)}**: {markdown_text(metric.explanation)}" for label, metric in metrics.items()
    ]
    parts = [
        f"# {markdown_text(title(comparison))}",
        "\n".join(f"- **{markdown_text(run.label)}**: {markdown_text(describe(run))}" for run in comparison.runs),
        "\n".join([*limits, *(f"- **{markdown_text(text)}**" for text in unfinished(comparison))]),
        "\n".join(
            f"- Of {len(headline)} measures, from {markdown_text(first.label)} to {markdown_text(other.label)}: "
            f"{summary([(row, row.differences[number]) for row in headline])}."
            for number, other in enumerate(others)
        ),
        markdown_table(comparison),
        HOW_TO_READ,
        *(section.markdown() for section in sections),
        "\n".join(["## Notes", "", *found_notes]) if found_notes else "",
        "\n".join(["## What the measures are", "", *explanations]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def record(comparison: Comparison, sections: Sequence[Section], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The report as JSON. Shares lie in [0, 1], perplexities are perplexities, an interval that is not there is null.

    Keys:
        schema_version: :data:`SCHEMA_VERSION`.
        runs: for each run its ``label``, ``folder``, ``unfinished`` tasks, and by task its provenance (``tasks``) and
            ``notes``.
        settings: by task, what the runs have in common.
        limits: by task, in what it was cut short; tasks that were not are absent.
        rows: every measure and slice, cells of maps too, in the order of the tables: ``values`` one a run,
            ``differences`` one for each run but the first (:class:`logoeval.compare.compare.Row`).
        longbench_table: ``columns``, ``published`` rows (percent, as printed) with their ``source``, and ``runs``: by
            label a value with its interval for each column, null where tasks are missing. Null without LongBench v1.
        curves: by label a curve over training (:class:`logoeval.records.Curve`).
        sections: by heading the tables of the page as text: ``title``, ``head``, ``rows``.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "label": run.label,
                "folder": str(run.folder),
                "unfinished": run.unfinished,
                "tasks": {task: run.results.tasks[task].provenance.model_dump() for task in comparison.tasks},
                "notes": {task: run.results.tasks[task].notes for task in comparison.tasks},
            }
            for run in comparison.runs
        ],
        "settings": {task: comparison.runs[0].results.tasks[task].settings for task in comparison.tasks},
        "limits": all_limits(comparison),
        "rows": [row.model_dump() for row in comparison.rows],
        "longbench_table": _longbench_table(comparison),
        "curves": {label: curve.model_dump(mode="json") for label, curve in curves.items()},
        "sections": [
            {"title": section.title, "tables": [table.record() for table in section.tables]} for section in sections
        ],
    }


def _longbench_table(comparison: Comparison) -> dict[str, Any] | None:
    result = comparison.runs[0].results.tasks.get("longbench")
    if result is None or result.settings["e"]:
        return None
    paper = published()
    return {
        "columns": paper["longbench"]["columns"],
        "published": {
            "source": f"{paper['source']}, {paper['longbench']['where']}",
            "rows": paper["longbench"]["rows"],
        },
        "runs": {
            run.label: [value and value.model_dump() for value in values]
            for run, values in zip(comparison.runs, own_rows(comparison), strict=True)
        },
    }
