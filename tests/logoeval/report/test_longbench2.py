"""LongBench v2 in the report: what the official results tell apart, and that a part is not the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from logoeval.compare.compare import compare
from logoeval.records import Outcome, Results, SampleRow, write_results
from logoeval.report.page import report_page, report_sections
from logoeval.tasks.longbench2.scores import METRICS
from tests.logoeval.synthetic import task_result


def write_run(folder: Path, right: float) -> Path:
    rng, rows = np.random.default_rng(1), []
    for number in range(24):
        facts: dict[str, object] = {
            "difficulty": ("easy", "hard")[number % 2],
            "text_length": ("short", "medium", "long")[number % 3],
            "domain": ("Code Repository Understanding", "Single-Document QA")[number // 12],
            "sub_domain": "S",
        }
        scores = {"accuracy": float(rng.random() < right), "compensated": 0.5, "no_choice": 0.0, "truncated": 0.0}
        rows.append(SampleRow(id=f"q{number}", cluster=f"t{number}", prompt_hash="h", scores=scores, facts=facts))
    folder.mkdir()
    result = task_result("longbench2", Outcome(METRICS, rows, ["decoded greedily"]), adapter=None)
    write_results(folder, Results(tasks={"longbench2": result}))
    return folder


def test_its_parts_have_a_section(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "before", 0.3), write_run(tmp_path / "after", 0.9)])
    sections = report_sections(comparison, data=None, run=None, curves={})
    section = sections[0]
    assert section.title.startswith("LongBench v2")
    by_part, others, domains = section.tables
    names = [str(line[0]) for line in by_part.rows]
    assert [name.rpartition(", ")[2] for name in names] == ["LongBench v2", "easy", "hard", "short", "medium", "long"]
    assert len(others.rows) >= 3
    assert "Code Repository Understanding" in str(domains.rows[0][0])
    page = report_page(comparison, sections)
    assert "Not the whole benchmark: 24 of 503 questions" in page
    assert "decoded greedily" in page
    assert "100 %" in page  # the axis is a share
