"""LongBench's section of the report: averages, categories, tasks."""

from __future__ import annotations

from logodata.common.markup import Html, join, raw, tag
from logoeval.compare import Comparison, Row
from logoeval.report_sections import rows_table


def longbench_section(comparison: Comparison) -> Html:
    """What the scores are, then a table of categories and one of tasks."""
    result = comparison.runs[0].results.tasks["longbench"]
    rows = [row for row in comparison.rows if row.task == "longbench"]
    kinds = {
        "By category": [row for row in rows if ":" in row.metric.key and not row.metric.key.startswith("task:")],
        "By task": [row for row in rows if row.metric.key.startswith("task:")],
        "By length, all tasks": [row for row in rows if row.metric.key == "e" and row.slice],
        "Prompts cut in the middle": [row for row in rows if row.metric.key == "truncated"],
    }
    name = "LongBench-E" if result.settings["e"] else "LongBench"
    return join(
        tag("h2", f"{name}: questions, summaries and code over long texts"),
        tag(
            "p",
            f"{len(result.samples):,} samples of {len(result.settings['tasks'])} of the benchmark's tasks, with its "
            "prompts and its scores: the best over the gold answers of each sample, averaged over samples, then over "
            "tasks, then over categories. Prompts that the window does not hold lose their middle.",
        ),
        tag("ul", *(tag("li", note) for note in result.notes), class_="small"),
        *(_part(comparison, title, members) for title, members in kinds.items() if members),
    )


def _part(comparison: Comparison, title: str, rows: list[Row]) -> Html:
    table = rows_table(comparison, rows)
    if title == "Prompts cut in the middle" or len(rows) > 21:
        return tag("details", tag("summary", title.lower()), table)
    return join(tag("h3", title), table) if rows else raw("")
