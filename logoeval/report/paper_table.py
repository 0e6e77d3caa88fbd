"""LOGO's LongBench table (Tang et al. 2025, Table 1): the published rows, and the runs of a comparison below them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from logodata.common.records import ABSENT, Record
from logoeval.compare.compare import Comparison, Value
from logoeval.report.tables import Cell, Table
from logoeval.tasks.longbench.task import is_e
from logoeval.tasks.longbench.task_table import CATEGORIES

MISSING = "\N{EN DASH}"
_LOGO_KEYS = (*(f"logo:{category}" for category in CATEGORIES if category != "code"), "logo")


class PublishedRow(Record):
    """A row of the table: scores in percent, as printed."""

    model: str
    scores: list[float]
    note: str | None = ABSENT


class AblationPoint(Record):
    """A point of the figure: the LongBench average in percent, and the perplexity."""

    setting: str
    longbench: float
    perplexity: float


class Published(Record):
    """The paper's numbers: its LongBench table, and the figure of LongBench against perplexity."""

    source: str
    table: str
    columns: list[str]
    rows: list[PublishedRow]
    figure: str
    perplexity_of: str
    points: list[AblationPoint]


@cache
def published() -> Published:
    """Return the paper's numbers, from ``logoeval/report/published.json``."""
    return Published.model_validate_json(resources.files("logoeval.report").joinpath("published.json").read_bytes())


def own_rows(comparison: Comparison) -> list[list[Value | None]]:
    """Return, for each run, the five category means and their average as shares; None if a category lacks tasks."""
    rows = comparison.whole("longbench")
    return [
        [rows[key].values[number] if key in rows else None for key in _LOGO_KEYS]
        for number in range(len(comparison.runs))
    ]


def paper_table(comparison: Comparison) -> tuple[Table, list[str]] | None:
    """Return a table of the published rows and the runs' rows, and its footnotes; None if no category of the paper was
    measured completely, or for LongBench-E, which has other rows."""
    result = comparison.runs[0].results.tasks["longbench"]
    ours = own_rows(comparison)
    if is_e(result) or all(value is None for value in ours[0]):
        return None
    paper = published()
    notes, lines = [], []
    for row in paper.rows:
        scores = [f"{score:.1f}" for score in row.scores]
        if row.note:
            notes.append(f"* {row.model}: {row.note}.")
            scores[-1] += "*"
        lines.append([row.model, *scores])
    missing = [name for name, value in zip(paper.columns, ours[0], strict=True) if value is None]
    if missing:
        notes.append(f"{MISSING} not all tasks of {', '.join(missing)} were measured.")
    heading = Cell(
        "This report; brackets: 95 % intervals", mark="; ".join(comparison.limits.get("longbench", ())), style="limit"
    )
    rows: list[Sequence[str | Cell]] = [
        [f"Published, not measured here: Tang et al. 2025, {paper.table}"],
        *lines,
        [heading],
        *([run.label, *map(_cell, values)] for run, values in zip(comparison.runs, ours, strict=True)),
    ]
    styles = {
        number: "published derived" if line[0].startswith("+") else "published" for number, line in enumerate(lines, 1)
    }
    head = ["model", *paper.columns]
    return Table("LOGO's LongBench table", head, rows, style="paper", row_styles=styles), notes


def _cell(value: Value | None) -> str | Cell:
    if value is None:
        return MISSING
    percent = value.percent()
    return Cell(f"{percent.value:.1f}", "" if percent.low is None else f"[{percent.low:.1f}, {percent.high:.1f}]")
