"""The report of any number of runs: names, the paper's table, what a part of a task looks like, its three files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from logodata.common import resampling
from logodata.common.errors import UserError
from logoeval.cli import main
from logoeval.compare.compare import Comparison, Row, compare
from logoeval.records import Results, read_results, write_results
from logoeval.report.markdown_json import ReportRecord
from logoeval.report.measures import headline_rows, terminal_table
from logoeval.report.paper_table import paper_table, published
from logoeval.report.sections.tradeoff import tradeoff_section
from tests.logoeval import synthetic
from tests.logoeval.pages import render
from tests.logoeval.report.test_report import Reader

SIX = ["base", "yarn", "sft-full", "sft-partial", "logo-lambda-0", "logo"]


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "NUM_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return synthetic.write_runs(tmp_path_factory.mktemp("six"), SIX, max_samples=12)


@pytest.fixture(scope="module")
def comparison(six: list[Path]) -> Comparison:
    return compare(six)


@pytest.fixture(scope="module")
def files(six: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's .html of all six, with curves; .md and .json lie beside it."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    curves = [f"{label}={folder}" for label, folder in (("lr=1", six[4]), ("lr=2", six[5]))]
    assert main(["compare", *map(str, six), "-o", str(out), "--curve", *curves]) == 0
    return out


def test_six_runs_are_one_whole_page(files: Path) -> None:
    page = files.read_text(encoding="utf-8")
    reader = Reader(page)
    assert reader.open == []
    assert all(name in reader.text for name in SIX)
    # Each run has its map, line and mark.
    assert page.count("Needle recall in percent for") == 2 * 6
    assert page.count("Histogram of the reward margin") == 5
    # Every entry of the contents leads somewhere, and every drawing has words for those who do not see it.
    anchors = [value for name, value in reader.attributes if name == "href" and value.startswith("#")]
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len([anchor for anchor in anchors if anchor[1:] in ids]) == len(anchors)
    assert (
        len(re.findall(r"<li><a href=", page)) == page.count("<h2>") == len(set(re.findall(r"<section id=.*?>", page)))
    )
    assert page.count("<svg") == page.count('role="img" aria') + page.count('aria-hidden="true"')


def test_runs_are_told_apart_without_colour() -> None:
    from logoeval.report import figure_style

    shown = [re.sub(r"var\(--series-\d\)", "", figure_style.swatch(number)) for number in range(8)]
    assert len(set(shown)) == 8
    assert ['stroke-dasharray="none"' in drawing for drawing in shown] == [False] + [True] * 7


def test_json_and_markdown_hold_what_the_page_holds(files: Path, six: list[Path], comparison: Comparison) -> None:
    record = json.loads(files.with_suffix(".json").read_text(encoding="utf-8"))
    text = files.with_suffix(".md").read_text(encoding="utf-8")
    ReportRecord.from_json(record, where="report", mend="")
    assert [run["label"] for run in record["runs"]] == SIX
    assert [len(row["differences"]) for row in record["rows"]] == [5] * len(comparison.rows)
    assert record["curves"].keys() == {"lr=1", "lr=2"}
    curve = read_results(six[5]).curve
    assert curve is not None
    assert record["curves"]["lr=2"] == curve.model_dump(mode="json")
    assert record["limits"]["pairs"] == ["the first 12 held-out pairs only (pairs.max_samples)"]
    # Every table of the page is in both files: its head and each of its cells.
    page = Reader(files.read_text(encoding="utf-8")).text
    tables = [table for section in record["sections"] for table in section["tables"]]
    assert len(tables) >= 12
    for table in tables:
        assert f"**{table['title']}**" in text
        for row in table["rows"]:
            assert row[0].split(" (")[0] in page
            assert " ".join(row[-1].split()).replace("|", "/") in text
    for heading in ("Needle in a haystack over training", "Where the numbers come from", "What the model saw"):
        assert f"## {heading}" in text


def test_headline_in_a_narrow_terminal_has_a_row_a_run(six: list[Path], comparison: Comparison) -> None:
    table = terminal_table(comparison, headline_rows(comparison))
    headlines = [row for row in comparison.rows if row.metric.headline and not row.slice]
    assert [row[0] for row in table.rows] == [
        text for row in headlines for text in (row.label, *(f"  {name}" for name in SIX))
    ]
    two = replace(comparison, runs=comparison.runs[:2], rows=[_of_two(row) for row in comparison.rows])
    assert len(terminal_table(two, headline_rows(two)).rows) == len(headlines)


def _of_two(row: Row) -> Row:
    return row.model_copy(update={"values": row.values[:2], "differences": row.differences[:1]})


# -- LongBench ---------------------------------------------------------------------------------------------------------


def test_published_averages_are_those_of_their_parts_or_have_a_note() -> None:
    rows = published().rows
    off = [row for row in rows if abs(mean(row.scores[:-1]) - row.scores[-1]) > 0.05 + 1e-9]
    assert [(row.model, row.scores[-1]) for row in off] == [("Llama-3-8B-Instruct-80K", 42.3)]
    assert "43.1" in off[0].note
    assert len(rows) == 17


def longbench_runs(root: Path, **changes: Any) -> list[Path]:
    """Two runs of LongBench alone."""
    folders = []
    for number, name in enumerate(("before", "after")):
        result = synthetic.task_result(
            "longbench", synthetic.longbench(number / 2, **changes), adapter="a" if number else None
        )
        (root / name).mkdir()
        write_results(root / name, Results(tasks={"longbench": result}))
        folders.append(root / name)
    return folders


def test_the_papers_table_has_its_form(tmp_path: Path) -> None:
    comparison = compare(longbench_runs(tmp_path, rows=None))
    found = paper_table(comparison)
    assert found is not None
    table, notes = found
    assert table.head == ["model", "S-Doc QA", "M-Doc QA", "Summ", "Few-shot", "Synthetic", "Avg"]
    printed = {str(row[0]): row for row in table.rows}
    assert printed["Llama-3-8B-Instruct-80K"][-1] == "42.3*"
    assert notes == ["* Llama-3-8B-Instruct-80K: printed as 42.3; its five categories average 43.1."]
    # Ours, computed from the samples: task means, category means, their mean.
    samples = comparison.runs[1].results.tasks["longbench"].samples
    by_task: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        if "logo" in sample.scores:
            key = sample.facts["category"], sample.facts["task"]
            by_task.setdefault(key, []).append(sample.scores["logo"])
    assert len(by_task) == 14
    categories = {
        category: 100 * mean(mean(scores) for (other, _), scores in by_task.items() if other == category)
        for category in dict.fromkeys(category for category, _ in by_task)
    }
    ours = [str(cell).split(" (")[0] for cell in printed["after"][1:]]
    assert ours == [f"{score:.1f}" for score in (*categories.values(), mean(categories.values()))]
    page = render(comparison)
    assert "not the benchmark" not in page
    assert "Not the whole" not in page


def test_a_sample_of_longbench_never_looks_like_the_whole(comparison: Comparison, files: Path) -> None:
    reader = Reader(files.read_text(encoding="utf-8"))
    assert reader.text.count("42 of 4,750 rows: not the benchmark's score") >= 4  # headline, section, table, tradeoff
    assert "28 of 2,750" in reader.text
    assert "LongBench average (a sample)" in reader.text
    table = paper_table(comparison)
    assert table is not None
    assert any("not the benchmark's score" in str(row[0]) for row in table[0].rows)


def test_a_part_of_longbench_has_dashes(tmp_path: Path) -> None:
    tasks = ("narrativeqa", "qasper", "multifieldqa_en", "trec")
    comparison = compare(longbench_runs(tmp_path, rows=3, tasks=tasks))
    found = paper_table(comparison)
    assert found is not None
    table, notes = found
    row = next(row for row in table.rows if row[0] == "after")
    assert [str(cell) == "–" for cell in row[1:]] == [False, True, True, True, True, True]
    assert notes[-1] == "– not all tasks of M-Doc QA, Summ, Few-shot, Synthetic, Avg were measured."
    assert "LongBench average" not in render(comparison)


def test_without_a_whole_category_there_is_no_table(tmp_path: Path) -> None:
    comparison = compare(longbench_runs(tmp_path, rows=3, tasks=("trec", "qasper")))
    assert paper_table(comparison) is None
    assert "Published" not in render(comparison)


def test_longbench_e_has_tasks_and_lengths_and_no_paper_table(tmp_path: Path) -> None:
    comparison = compare(longbench_runs(tmp_path, rows=3, e=True))
    assert paper_table(comparison) is None
    page = render(comparison)
    assert "Task by task: marks are means" in page
    assert "tasks by category" not in page
    assert ">passage_count<" in page  # of the figure
    assert "39 of 3,668 rows: not the benchmark&#x27;s score" in page
    assert ">3 of 224<" in page
    assert "LongBench-E by length, all tasks" in page


def test_the_papers_points_stand_on_axes_of_their_own(comparison: Comparison, tmp_path: Path) -> None:
    section = tradeoff_section(comparison)
    assert section is not None
    ours, theirs = re.findall(r"<svg viewBox.*?</svg>", section.body, flags=re.DOTALL)
    assert ">a<" in theirs
    assert ">a<" not in ours
    (table,) = section.tables
    assert ["c", "M = 2, λ = 0.1, 8K", "10.85", "47.0"] in [list(row) for row in table.rows]
    assert tradeoff_section(compare(longbench_runs(tmp_path, rows=2))) is None  # no perplexity


def test_a_task_begun_by_all_and_finished_by_none_is_told(tmp_path: Path) -> None:
    runs = synthetic.write_runs(tmp_path, ["before", "after"], tasks=("ppl",))
    for run in runs:
        (run / "predictions").mkdir()
        (run / "predictions" / "niah.json").write_text("{}", encoding="utf-8")
    out = tmp_path / "report.html"
    assert main(["compare", *map(str, runs), "-o", str(out)]) == 0
    for file in (out, out.with_suffix(".md")):
        assert "Not in this report: after has begun niah and not finished." in file.read_text(encoding="utf-8")
    assert json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["runs"][0]["unfinished"] == ["niah"]


def test_one_name_for_two_runs_is_refused(six: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"x={six[0]}", f"x={six[1]}", "-o", str(tmp_path / "r.html")]) == 2
    assert "two runs are called 'x'" in capsys.readouterr().err
    with pytest.raises(UserError, match="given twice"):
        compare([six[0], six[0]])
