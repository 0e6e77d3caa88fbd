"""LongBench's section of the report: the paper's table, categories, tasks."""

from __future__ import annotations

from logodata.common.markup import Html, join, raw, tag
from logoeval.compare.compare import Comparison, Row
from logoeval.report import figure_style, figures
from logoeval.report.measures import measures_table
from logoeval.report.paper_table import paper_table
from logoeval.report.tables import Section, Table, details, figure, not_whole, titled
from logoeval.tasks.longbench.task import is_e


def longbench_section(comparison: Comparison) -> Section:
    """Return the section: the scores, the paper's table, a figure, a table of categories and one of tasks."""
    result = comparison.runs[0].results.tasks["longbench"]
    rows = [row for row in comparison.rows if row.task == "longbench"]
    cuts = comparison.limits.get("longbench", ())
    name = "LongBench-E" if is_e(result) else "LongBench"
    kinds = {
        "LongBench by category": [row for row in rows if row.metric.key.startswith(("logo:", "all:"))],
        f"{name} by task": [row for row in rows if row.metric.key.startswith("task:") and not row.slice],
        f"{name} by task and length": [row for row in rows if row.metric.key.startswith("task:") and row.slice],
        f"{name} by length, all tasks": [row for row in rows if row.metric.key == "e" and row.slice],
        "Prompts cut in the middle": [row for row in rows if row.metric.key == "truncated"],
    }
    tables = [measures_table(comparison, members, title) for title, members in kinds.items() if members]
    paper = paper_table(comparison)
    num_tasks = len({sample.facts["task"] for sample in result.samples})
    body = join(
        not_whole(cuts),
        tag(
            "p",
            f"{len(result.samples):,} samples of {num_tasks} of the benchmark's tasks, with its "
            "prompts and its scores: the best over the gold answers of each sample, averaged over samples, then over "
            "tasks, then over categories. Prompts that the window does not hold lose their middle.",
        ),
        tag("ul", *(tag("li", note) for note in result.notes), class_="small"),
        _paper(*paper) if paper else raw(""),
        _figure(comparison, rows, " (a sample)" if cuts else ""),
        *(_part(table, len(comparison.runs)) for table in tables),
    )
    title = f"{name}: questions, summaries and code over long texts"
    return Section(title, body, [*([paper[0]] if paper else []), *tables])


def _paper(table: Table, notes: list[str]) -> Html:
    said = (
        "The English tasks without code, in five categories. The published rows were measured by the paper's authors, "
        "with models, windows and settings of their own: they give a sense of scale, no difference to ours is tested."
    )
    return join(
        tag("h3", "The paper's table, and this report's runs"),
        tag("p", said, class_="small"),
        table.html(),
        *(tag("p", note, class_="small") for note in notes),
    )


def _figure(comparison: Comparison, rows: list[Row], cut: str) -> Html:
    """Marks with intervals by category of the paper's table, or of all tasks; else by task."""
    whole = [row for row in rows if not row.slice]
    for prefix in ("logo:", "all:", "task:"):
        shown = [row for row in whole if row.metric.key.startswith(prefix)]
        if len(shown) > 1:
            break
    else:
        return raw("")
    names = [row.metric.key.removeprefix(prefix) for row in shown]
    for average in ("logo", "e") if prefix != "all:" else ("all",):
        found = [row for row in whole if row.metric.key == average]
        shown, names = shown + found, names + ["average"] * len(found)
    lines = [[row.values[number] for row in shown] for number in range(len(comparison.runs))]
    drawing = figures.interval_rows(names, lines, x_label=f"LongBench score{cut}", of=", ".join(comparison.labels))
    what = {"logo:": "English tasks by category", "all:": "All tasks by category", "task:": "Task by task"}[prefix]
    caption = (
        f"{what}: marks are means, bars 95 % intervals of each run by itself. Two bars that overlap can still differ "
        "clearly, since the runs answer the same questions: the tables pair them."
    )
    return figure([drawing], caption, key=figure_style.key(comparison.labels))


def _part(table: Table, num_runs: int) -> Html:
    """Tables that would be many screens long are shown on demand."""
    if table.title.startswith("Prompts") or len(table.rows) > (21 if num_runs == 2 else 11):
        return details(table, table.title)
    return titled(table)
