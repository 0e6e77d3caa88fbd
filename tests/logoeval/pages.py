"""The page of a report, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from logoeval.compare.compare import Comparison
from logoeval.report.page import report_page, report_sections
from logoeval.report.sections.curves import read_curves


def render(
    comparison: Comparison,
    *,
    data: Path | None = None,
    run: Path | None = None,
    curves: Sequence[Path] | Mapping[str, Path] = (),
) -> str:
    """The HTML page of a comparison."""
    return report_page(comparison, report_sections(comparison, data=data, run=run, curves=read_curves(curves)))
