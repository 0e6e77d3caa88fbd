"""What may be compared, and what the comparison says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logoeval.compare.compare import compare, measured_rows
from logoeval.compare.labels import parse_folders
from logoeval.records import Metric, SampleRow, read_results
from logoeval.report.measures import markdown_table

BEFORE = [0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "niah"}, "the runs hold different tasks: before lacks niah; after lacks ppl"),
        ({"seed": 1}, "ppl: seed is 0 in one and 1 in the other"),
        ({"engine": "vllm 0.32"}, "ppl: engine is 'fake 1' in one and 'vllm 0.32' in the other"),
        ({"tokenizer": "other"}, "ppl: tokenizer_fingerprint is 't' in one and 'other' in the other"),
        ({"prompt_hash": "other"}, "ppl: sample 's0' has different prompts"),
    ],
)
def test_runs_that_differ_are_refused(make_run: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare([make_run("before", BEFORE), make_run("after", BEFORE, **changes)])


def test_other_samples_are_refused(make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="the runs hold different samples"):
        compare([make_run("before", BEFORE), make_run("after", BEFORE[:-1])])


def test_another_schema_version_is_refused(make_run: Callable[..., Path]) -> None:
    folder = make_run("before", BEFORE)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps({**content, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(UserError, match="schema version 99, this program reads 1"):
        read_results(folder)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ([score + 0.1 for score in BEFORE], "rose"),
        ([score - 0.1 for score in BEFORE], "fell"),
        (BEFORE, "no clear change"),
        ([score + (-1) ** number * 0.1 for number, score in enumerate(BEFORE)], "no clear change"),
    ],
)
def test_verdicts(make_run: Callable[..., Path], after: list[float], verdict: str) -> None:
    (row,) = compare([make_run("before", BEFORE), make_run("after", after, adapter="a1")]).rows
    (difference,) = row.differences
    assert difference.verdict == verdict
    assert difference.change.value == pytest.approx(sum(after) / 8 - sum(BEFORE) / 8)
    assert difference.change.low <= difference.change.value <= difference.change.high


def test_five_samples_are_too_few(make_run: Callable[..., Path]) -> None:
    after = [score + 0.1 for score in BEFORE]
    verdicts = []
    for count in (1, 5, 6):
        runs = [make_run(f"before-{count}", BEFORE[:count]), make_run(f"after-{count}", after[:count])]
        verdicts.append(compare(runs).rows[0].differences[0].verdict)
    assert verdicts == ["too few to tell", "too few to tell", "rose"]


@pytest.mark.parametrize(("fewest", "verdict"), [(3, "too few to tell"), (6, "rose")])
def test_of_a_mean_of_means_the_smallest_group_decides_what_is_too_few(fewest: int, verdict: str) -> None:
    metric = Metric.share("score", "Score", "Some.", mean_of=["part"])
    parts = ["small"] * fewest + ["large"] * 40

    def samples(score: float) -> list[SampleRow]:
        return [
            SampleRow(
                id=f"s{number}", cluster=f"s{number}", prompt_hash="h", scores={"score": score}, facts={"part": of}
            )
            for number, of in enumerate(parts)
        ]

    [row] = measured_rows("ppl", [metric], [samples(0.5), samples(0.75)])
    assert row.num_clusters == fewest + 40
    assert row.differences[0].verdict == verdict


def test_table_of_three_runs(make_run: Callable[..., Path]) -> None:
    runs = [make_run("base", [0.5] * 8), make_run("sft", [0.5] * 8), make_run("logo", [0.75] * 8)]
    assert markdown_table(compare(runs)).splitlines() == [
        "| measure | n | base | sft | logo |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| Score | 8 | 50.0 % | 50.0 % (+0.0 [+0.0, +0.0], no clear change) | 75.0 % (+25.0 [+25.0, +25.0], rose) |",
    ]
    assert markdown_table(compare(runs[:2])).splitlines()[2] == (
        "| Score | 8 | 50.0 % | 50.0 % | +0.0 [+0.0, +0.0] points | no clear change |"
    )


def test_an_unfinished_task_is_told(make_run: Callable[..., Path]) -> None:
    runs = [make_run("before", BEFORE), make_run("after", BEFORE, task="niah")]
    (runs[1] / "predictions").mkdir()
    (runs[1] / "predictions" / "ppl.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="before lacks niah; after has not finished ppl"):
        compare(runs)


def test_folders_of_one_name_go_by_their_parents_too(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        make_run(f"{parent}/eval", BEFORE)
    folders = [tmp_path / "a" / "eval", tmp_path / "b" / "eval"]
    assert [run.label for run in compare(folders).runs] == ["a/eval", "b/eval"]
    with pytest.raises(UserError, match="the folder is given twice"):
        compare([folders[0], folders[0]])


def test_labels_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "lr=1e-5").mkdir()
    given = [f"base={tmp_path}/a/eval", f"{tmp_path}/lr=1e-5", "lr=b", "runs/x=1/eval", f"s=2={tmp_path}"]
    assert parse_folders(given) == {
        "base": tmp_path / "a" / "eval",
        "lr=1e-5": tmp_path / "lr=1e-5",
        "lr": Path("b"),
        "eval": Path("runs/x=1/eval"),
        "s=2": tmp_path,
    }
    with pytest.raises(UserError, match="two runs are called 'x'"):
        parse_folders(["x=a", "x=b"])
