"""The report: one HTML page, and the same in Markdown and JSON."""
