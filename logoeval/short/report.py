"""The section of the report on short contexts: whether what the model could do before is still there."""

from __future__ import annotations

from logodata.common.markup import Html, join, tag
from logoeval.compare import Comparison
from logoeval.report_sections import rows_table


def short_section(comparison: Comparison) -> Html:
    """What was measured and how, then all numbers with the parts of each."""
    result = comparison.runs[0].results.tasks["short"]
    rows = [row for row in comparison.rows if row.task == "short"]
    settings = result.settings
    limit = settings["limit"]
    prompts = "written as chats" if settings["apply_chat_template"] else "without chat template"
    partial = tag("p", tag("strong", f"Partial: only the first {limit} samples of each task."))
    return join(
        tag("h2", "Short contexts: what the model could do before"),
        tag(
            "p",
            f"Benchmarks of general knowledge, by lm-evaluation-harness {settings['lm_eval']}, prompts {prompts}. Long "
            "contexts were trained; these numbers should stay where they were.",
        ),
        partial if any("(PARTIAL" in row.metric.label for row in rows) else "",
        tag("h3", "All of it, by part"),
        rows_table(comparison, rows),
    )
