"""The table of tasks: an entry is all that a task needs besides its own module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import read_results
from logoeval.tasks.evaluator import Evaluator
from logoeval.tasks.table import TASKS, Option, Task
from tests.messages import ROOT

PROGRAM = """
import json, sys
from logoeval.tasks import table

options = (table.Option("--most", "most", "first N words", "number", "N"),)
examples = ("logoeval toy --model embedded -o runs/toy",)
toy = table.Task("toy", "tests.logoeval.tasks.toy", "Toy", "Count tokens.", "toy.most=3", examples, options)
table.TASKS = (*table.TASKS, toy)

from logoeval.cli import main
for words in json.load(sys.stdin):
    print("$", *words)
    try:
        print("->", main(words))
    except SystemExit as end:
        print("->", end.code)
"""


def with_toy(*commands: list[str], folder: Path) -> list[tuple[str, int]]:
    """Run commands in a process whose table has one more entry: what each prints, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    )
    parts = (part.rsplit("\n-> ", 1) for part in done.stdout.split("\n$ "))
    return [(text, int(code)) for text, code in parts]


def test_a_new_task_is_an_entry_and_a_module(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = ["--model", str(tiny_model_dir)]
    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_model_dir}\neval:\n  toy:\n    words: [mill, sea]\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "words.txt").write_text("")
    found = with_toy(
        ["--help"],
        ["toy", "--help"],
        ["toy", *model, "--dry-run"],
        ["toy", *model, "--most", "6", "-o", "one"],
        ["toy", *model, "--most", "5", "-o", "one"],
        ["run", "recipe.yaml", "-o", "two"],
        ["toy", *model, "toy.file=out/words.txt", "-o", "out"],
        ["toy", *model, "--most", "0", "-o", "three"],
        ["compare", "a=one", "b=one", "-o", "report.html"],
        ["compare", "one", "two", "-o", "report.html"],
        folder=tmp_path,
    )
    texts, codes = zip(*found, strict=True)
    assert codes == (0, 0, 0, 0, 2, 0, 2, 2, 0, 2)
    every, own, recipe, one, other, _, inside, wrong, compared, uncompared = texts
    assert "Count tokens" in every
    assert "logoeval toy --model embedded -o runs/toy" in every
    assert "--most N" in own
    assert "same as toy.most=N" in own
    assert "toy.most=3" in own
    assert "most: null" in recipe
    assert "niah: null" in recipe
    assert "Tokens of a word" in one
    assert "toy: counted, not generated" in one
    assert "this folder was started with most=6, now it is 5" in other
    assert "holds the toy's file, out/words.txt" in inside
    assert "toy.most" in wrong
    assert "toy: the first 6 words only (toy.most)" in compared
    assert "toy: most is 6 in one and None in the other" in uncompared

    results = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))["tasks"]["toy"]
    assert results["settings"]["task_version"] == 1
    assert len(results["samples"]) == 6
    assert results["provenance"]["engine"] is None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Tokens of a word" in page
    assert "the first 6 words only" in page
    # A version without the task says so instead of leaving it out.
    assert list(read_results(tmp_path / "two").tasks) == ["toy"]
    with pytest.raises(UserError, match="holds a task that this version does not know: toy"):
        compare([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_each_entry_has_its_evaluator_section_and_options(task: Task) -> None:
    assert isinstance(task.evaluator, Evaluator)
    assert EvalRecipe.model_fields[task.name].annotation == task.evaluator.settings | None
    assert task.help.endswith(".")
    assert all(line.startswith(f"logoeval {task.name} ") for line in task.examples)
    for option in task.options:
        assert not option.needs or option.needs in {other.flag for other in task.options}


def test_names_of_tasks_differ() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (Option("--limit", "limit", "first N", "number", "N"), "first N; same as short.limit=N"),
        (Option("--tasks", "tasks", kind="names", metavar="A,B"), "same as short.tasks=[A,B]"),
        (Option("-e", "e", "all", "switch"), "all; same as short.e=true"),
        (Option("--more", "more", "more", "switch", value={}), "more; same as short.more={}"),
    ],
)
def test_an_options_help_names_the_field(option: Option, text: Any) -> None:
    assert option.describe("short") == text
