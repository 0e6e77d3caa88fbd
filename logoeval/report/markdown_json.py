"""The report as Markdown and as JSON: all that its tables hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from logodata.common.printable import markdown_text
from logodata.common.records import Record
from logoeval.compare.compare import Comparison, Row, RunRecord, Value
from logoeval.records import Curve, VersionedRecord
from logoeval.report.headline import HOW_TO_READ, describe, notes, summary, title, unfinished
from logoeval.report.measures import headline_rows, markdown_table
from logoeval.report.paper_table import PublishedRow, own_rows, published
from logoeval.report.tables import Section, SectionRecord
from logoeval.tasks.longbench.task import is_e


def markdown(comparison: Comparison, sections: Sequence[Section]) -> str:
    """Return the runs, all measures, what each measure is, and the tables of every section, in Markdown."""
    first, *others = comparison.runs
    headline = headline_rows(comparison)
    metrics = {row.metric.label: row.metric for row in comparison.rows}
    limits = [f"- **{task}: {'; '.join(found)}**" for task, found in comparison.limits.items()]
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


class PublishedRows(Record):
    """Rows of the paper, in percent as printed."""

    source: str
    rows: list[PublishedRow]


class LongBenchTable(Record):
    """The paper's LongBench table. ``runs`` holds by label a value for each column, None where tasks are missing."""

    columns: list[str]
    published: PublishedRows
    runs: dict[str, list[Value | None]]


class ReportRecord(VersionedRecord):
    """The report as JSON. Shares lie in [0, 1], and perplexities are perplexities."""

    schema_version: int = 2
    runs: list[RunRecord]
    settings: dict[str, Mapping[str, object]]
    """What the runs have in common, by task."""
    limits: dict[str, list[str]]
    """In what a task was cut short, for the tasks that were."""
    rows: list[Row]
    """Every measure and slice, cells of maps too, in the order of the tables."""
    longbench_table: LongBenchTable | None
    """None without LongBench v1."""
    curves: dict[str, Curve]
    """Curves over training, by label."""
    sections: list[SectionRecord]


def record(comparison: Comparison, sections: Sequence[Section], curves: Mapping[str, Curve]) -> ReportRecord:
    """Return the report as it is written as JSON."""
    tasks = comparison.tasks
    return ReportRecord(
        runs=[
            RunRecord(
                label=run.label,
                folder=str(run.folder),
                unfinished=run.unfinished,
                tasks={task: run.results.tasks[task].provenance for task in tasks},
                notes={task: run.results.tasks[task].notes for task in tasks},
            )
            for run in comparison.runs
        ],
        settings={task: comparison.runs[0].results.tasks[task].settings for task in tasks},
        limits=comparison.limits,
        rows=comparison.rows,
        longbench_table=_longbench_table(comparison),
        curves=dict(curves),
        sections=[
            SectionRecord(title=section.title, tables=[table.record() for table in section.tables])
            for section in sections
        ],
    )


def _longbench_table(comparison: Comparison) -> LongBenchTable | None:
    result = comparison.runs[0].results.tasks.get("longbench")
    if result is None or is_e(result):
        return None
    paper = published()
    return LongBenchTable(
        columns=paper.columns,
        published=PublishedRows(source=f"{paper.source}, {paper.table}", rows=paper.rows),
        runs=dict(zip(comparison.labels, own_rows(comparison), strict=True)),
    )
