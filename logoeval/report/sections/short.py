"""The section of the report on short contexts: whether what the model could do before is still there."""

from __future__ import annotations

from logodata.common.markup import join, tag
from logoeval.compare.compare import Comparison
from logoeval.report.measures import measures_table
from logoeval.report.tables import Section, titled


def short_section(comparison: Comparison) -> Section:
    """Return the section: what was measured and how, and all numbers with the parts of each."""
    settings = comparison.runs[0].results.tasks["short"].settings
    prompts = "written as chats" if settings["apply_chat_template"] else "without chat template"
    rows = [row for row in comparison.rows if row.task == "short"]
    table = measures_table(comparison, rows, "All of it, by part")
    body = join(
        tag(
            "p",
            f"Benchmarks of general knowledge, by lm-evaluation-harness {settings['lm_eval']}, prompts {prompts}. Long "
            "contexts were trained; these numbers should stay where they were.",
        ),
        *(tag("p", tag("strong", limit)) for limit in comparison.limits.get("short", ())),
        titled(table),
    )
    return Section("Short contexts: what the model could do before", body, [table])
