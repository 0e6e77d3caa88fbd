"""LongBench v2's section of the report: the accuracy by difficulty and length, and by domain."""

from __future__ import annotations

from logodata.common.markup import join, tag
from logoeval.compare.compare import Comparison
from logoeval.intervals import slice_label
from logoeval.report import figure_style, figures
from logoeval.report.measures import measures_table
from logoeval.report.tables import Section, details, figure, not_whole, titled

_PARTS = ("difficulty", "text_length")
"""What the official results tell apart."""


def longbench2_section(comparison: Comparison) -> Section:
    """Return the section: a figure and a table of the official parts, the other measures, and the domains."""
    result = comparison.runs[0].results.tasks["longbench2"]
    rows = [row for row in comparison.rows if row.task == "longbench2"]
    parts = [row for row in rows if row.metric.key == "accuracy" and set(row.slice) <= set(_PARTS)]
    domains = [row for row in rows if row.metric.key == "accuracy" and "domain" in row.slice]
    others = [row for row in rows if row.metric.key != "accuracy"]
    names = [slice_label(row.slice) or "all" for row in parts]
    lines = [[row.values[number] for row in parts] for number in range(len(comparison.runs))]
    drawing = figures.interval_rows(
        names, lines, x_label="LongBench v2, right letters", of=", ".join(comparison.labels)
    )
    caption = (
        "Accuracy by difficulty, and by length of the text: marks are means, bars 95 % intervals of each run by "
        "itself. Guessing finds 25 %, and the human experts of the paper found 53.7 %."
    )
    tables = [
        measures_table(comparison, members, title)
        for members, title in (
            (parts, "LongBench v2 by difficulty and length"),
            (others, "LongBench v2: compensated, without a letter, cut"),
            (domains, "LongBench v2 by domain"),
        )
        if members
    ]
    body = join(
        not_whole(comparison.limits.get("longbench2", ())),
        tag(
            "p",
            f"{len(result.samples):,} questions with four choices each, with the benchmark's prompts. The answer is "
            "the letter that its rule finds in the response; a response without one is wrong, and counts a quarter in "
            "the compensated score.",
        ),
        tag("ul", *(tag("li", note) for note in result.notes), class_="small"),
        figure([drawing], caption, key=figure_style.key(comparison.labels)),
        *(titled(table) for table in tables[:1]),
        *(details(table, table.title) for table in tables[1:]),
    )
    return Section("LongBench v2: questions about texts of any length", body, tables)
