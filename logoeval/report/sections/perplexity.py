"""The section on perplexity."""

from __future__ import annotations

from logodata.common.markup import join, tag
from logoeval.compare.compare import Comparison
from logoeval.report import figure_style, figures
from logoeval.report.measures import changes_table
from logoeval.report.tables import Section, all_points, figure
from logoeval.tasks.perplexity import settings_of


def perplexity_section(comparison: Comparison) -> Section:
    """Return the section: the curve, with the change of two runs written in, its protocol, and its table."""
    settings = settings_of(comparison.runs[0].results.tasks["ppl"])
    lengths, slides = settings.lengths, settings.protocol == "sliding"
    rows, labels = comparison.whole("ppl"), comparison.labels
    two = len(labels) == 2
    drawn = []
    titles = {"ppl": "perplexity of the first L tokens", "tail": "perplexity of tokens L/2 to L"}
    for kind, title in {"sliding": "perplexity of the document"}.items() if slides else titles.items():
        chosen = [rows[f"{kind}@{length}"] for length in lengths]
        columns = [[row.values[number].value for row in chosen] for number in range(len(labels))]
        notes = [row.metric.show_difference(row.differences[0].change.value) for row in chosen] if two else []
        x_label = "window, tokens" if slides else "L, tokens"
        drawn.append(figures.curves(labels, lengths, columns, x_label=x_label, y_label=title, notes=notes))
    documents = next(iter(rows.values())).num_samples
    if slides:
        protocol = (
            f"{documents} documents of {settings.document_tokens:,} tokens. For each point a window slides over "
            f"them by {settings.stride:,} tokens at a time, and every token is scored once, with as much before it "
            "as the window holds (Press et al. 2021, as in the LOGO paper). All points score the same tokens."
        )
        caption = "A curve that falls to the right: the model makes use of what lies further back."
    else:
        protocol = (
            f"{documents} documents, each read once from its beginning (one pass, no sliding window), the same ones "
            "for every point."
        )
        caption = "First: over all tokens read so far. Second: over the later half, which has most to look back on."
    written = (
        f" The lines often lie on one another, so the change from {labels[0]} to {labels[1]} is written at each point."
        if two
        else ""
    )
    table = changes_table(comparison, "ppl")
    body = join(
        tag(
            "p",
            f"How surprised the model is by real text: {protocol} Training on preferences should leave this alone; a "
            f"rise means that something was forgotten.{written}",
        ),
        figure(drawn, f"{caption} Dashed: {labels[0]}.", key=figure_style.key(labels)),
        all_points(table),
    )
    return Section("Perplexity: whether the language model suffered", body, [table] if table else [])
