"""The section of the report that plots LongBench against perplexity (LOGO, Fig. 6)."""

from __future__ import annotations

from string import ascii_lowercase

from logodata.common.markup import join, tag
from logoeval.compare.compare import Comparison, Value
from logoeval.report import figure_style, figures
from logoeval.report.paper_table import published
from logoeval.report.tables import Section, Table, details, figure
from logoeval.tasks.perplexity import settings_of


def tradeoff_section(comparison: Comparison) -> Section | None:
    """Return a section with a plot of the runs and a plot of the paper's points; None if either number is missing. The
    two plots do not share axes: the paper's perplexity is of another model on another text, and the LongBench average
    of the runs may be over a sample of the rows."""
    tasks = comparison.runs[0].results.tasks
    if not {"longbench", "ppl"} <= tasks.keys():
        return None
    settings = settings_of(tasks["ppl"])
    kind = "sliding" if settings.protocol == "sliding" else "ppl"
    average = comparison.whole("longbench").get("logo")
    perplexity = comparison.whole("ppl").get(f"{kind}@{settings.lengths[-1]}")
    if average is None or perplexity is None:
        return None
    paper = published()
    points = [
        (label, x, y.percent())
        for label, x, y in zip(comparison.labels, perplexity.values, average.values, strict=True)
    ]
    lettered = list(zip(ascii_lowercase, paper.points, strict=False))
    theirs = [(letter, Value(value=point.perplexity), Value(value=point.longbench)) for letter, point in lettered]
    cut = comparison.limits.get("longbench", ())
    y_label = "LongBench average" + (" (a sample)" if cut else "")
    title, their_label = f"Published: LOGO paper, {paper.figure}", f"perplexity, {paper.perplexity_of}"
    table = Table(
        title,
        ["", "setting", their_label, "LongBench average"],
        [[letter, point.setting, f"{point.perplexity:.2f}", f"{point.longbench:.1f}"] for letter, point in lettered],
        text_columns={1},
    )
    body = join(
        tag(
            "p",
            "Up is better on tasks, left is better as a language model: a training that buys one with the other moves "
            "up and to the right.",
        ),
        *(tag("p", tag("strong", f"LongBench: {text}."), class_="limit") for text in cut),
        figure(
            [
                figures.scatter("This report's runs", points, x_label=perplexity.label.lower(), y_label=y_label),
                figures.scatter(title, theirs, x_label=their_label, y_label="LongBench average", published=True),
            ],
            "First: a mark a run, bars are 95 % intervals. Second, in grey: the paper's ablations, not measured here, "
            "on axes of their own: another model, another text, so only the shapes compare.",
            key=figure_style.key(comparison.labels),
        ),
        details(table, "the paper's points by letter"),
    )
    return Section("LongBench against perplexity: what the gain cost", body, [table])
