"""What is wrong with paths is told at once: before torch or transformers is imported, and before a folder is made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from logodata.cli import main as logodata
from logodata.common.errors import UserError
from logodata.common.files import check_apart
from logoeval.cli import main as logoeval
from logotrain.cli import main as logotrain
from tests.data_sets import write_manifest

PROGRAM = """
import json, sys
from importlib import import_module
for program, *words in json.load(sys.stdin):
    code = import_module(program + ".cli").main(words)
    assert code == 2, (program, words, code)
    heavy = {"torch", "transformers", "peft", "vllm", "faiss", "datasets"} & set(sys.modules)
    assert not heavy, (program, words, heavy)
"""


def lay_out(folder: Path) -> None:
    """Inputs that are there; nothing in them is read."""
    for name in ("model", "build/data", "build/deep", "adapter", "texts", "run/checkpoints/step-1/adapter"):
        (folder / name).mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "build" / "data" / "rows.parquet").write_text("")
    write_manifest(folder / "build", model="model")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter" / name).write_text("{}")
    (folder / "texts" / "a.txt").write_text("a text")
    (folder / "docs.jsonl").write_text('{"context": "c", "questions": []}\n')


MISSING = [
    "logotrain run --model model --data nowhere -o out",
    "logotrain run --model ./nowhere --data build -o out",
    "logotrain run --model model -o out",
    "logotrain run nowhere.yaml --data build -o out",
    "logotrain run --model model --data build -o out learning_rate=1",
    "logotrain run --model model --data nowhere --dry-run",
    "logotrain plan --model model --data nowhere",
    "logotrain plan --model ./nowhere",
    "logotrain plan lama3-80k",
    "logotrain merge nowhere --model model -o out",
    "logotrain merge adapter --model ./nowhere -o out",
    "logotrain merge adapter --model model -o docs.jsonl",
    "logodata build nowhere.jsonl --model model -o out",
    "logodata build docs.jsonl --model ./nowhere -o out",
    "logodata build docs.jsonl --model model -o out chat_template=nowhere.jinja",
    "logodata build docs.jsonl --model model -o out generation.cache=nowhere.jsonl",
    "logodata questions nowhere.jsonl --model model -o out.jsonl",
    "logodata questions docs.jsonl --model ./nowhere -o out.jsonl",
    "logodata merge nowhere -o out",
    "logodata inspect nowhere",
    "logodata inspect nowhere --html out.html",
    "logodata stats nowhere",
    "logodata stats nowhere --log-probs",
    "logodata stats build --log-probs --model ./nowhere",
    "logodata export nowhere --format trl -o out.jsonl",
    "logodata push nowhere org/name",
    "logoeval niah --model ./nowhere -o out",
    "logoeval niah --model model --adapter nowhere -o out",
    "logoeval niah --model model --adapter nowhere --with-base -o out",
    "logoeval niah --model model -o out niah.haystacks=nowhere",
    "logoeval niah --model model -o out --retrieval --heads nowhere.json",
    "logoeval niah --model model -o out chat_template=nowhere.jinja",
    "logoeval niah --model model --checkpoints nowhere -o out",
    "logoeval ruler --model model --essays nowhere -o out",
    "logoeval ruler --model model --squad nowhere.json -o out",
    "logoeval ppl --model model -o out ppl.text=nowhere",
    "logoeval qa --model model --data nowhere -o out",
    "logoeval pairs --model model --data nowhere -o out",
    "logoeval longbench --model model --data nowhere.zip -o out",
    "logoeval short --model model --include-path nowhere -o out",
    "logoeval run embedded --data nowhere --model model -o out",
    "logoeval run embeded --data build -o out",
    "logoeval score nowhere -o out.json",
    "logoeval errors nowhere -o out.json",
    "logoeval compare nowhere nowhere2 -o out.html",
]


def test_what_is_not_there_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    lay_out(tmp_path)
    commands = json.dumps([words.split() for words in MISSING])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=commands, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(lines) == len(MISSING)
    for words, line in zip(MISSING, lines, strict=True):
        assert line.startswith(f"{words.split()[0]}: error: "), line
    assert not [path for path in tmp_path.glob("out*") if path.suffix or (path.is_dir() and any(path.iterdir()))]


MAINS: dict[str, Callable[[list[str]], int]] = {"logodata": logodata, "logotrain": logotrain, "logoeval": logoeval}


@pytest.mark.parametrize(
    "words",
    [
        "logotrain run --model model --data build -o build",
        "logotrain run --model model --data build -o build/run",
        "logotrain run --model model --data build -o .",
        "logotrain run --model model --data build -o model/run",
        "logotrain run --model model --data build -o build --dry-run",
        "logotrain plan --model model --data build --json build/plan.json",
        "logotrain plan --model model --data build --plot build/plan.png",
        "logotrain merge adapter --model model -o adapter/merged",
        "logotrain merge adapter --model model -o model/merged",
        "logodata build docs.jsonl --model model -o .",
        "logodata build docs.jsonl --model model -o model/build",
        "logodata build docs.jsonl --model model -o model",
        "logodata build texts --model model -o texts/build",
        "logodata questions texts --model model -o texts/q.jsonl",
        "logodata questions docs.jsonl --model model -o model/q.jsonl",
        "logodata merge build/deep -o build",
        "logodata merge build -o build/deep/merged",
        "logodata export build --format trl -o build/data/trl.parquet",
        "logodata export build --format llama-factory -o build",
        "logodata inspect build --html build/page.html",
        "logoeval niah --model model -o model",
        "logoeval niah --model model -o model/eval",
        "logoeval niah --model model --adapter adapter -o adapter/eval",
        "logoeval niah --model model --adapter adapter --with-base -o .",
        "logoeval niah --model model --checkpoints run/checkpoints -o run/checkpoints/eval",
        "logoeval niah --model model -o texts/eval niah.haystacks=texts",
        "logoeval ruler --model model --essays texts -o texts/eval",
        "logoeval ppl --model model -o texts/eval ppl.text=texts",
        "logoeval qa --model model --data build -o build/eval",
        "logoeval pairs --model model --data build -o build",
        "logoeval longbench --model model --data texts -o texts/eval",
        "logoeval run embedded --model model --data build -o build/eval",
        "logoeval score texts -o texts/scores.json",
        "logoeval errors build -o build/errors.json",
        "logoeval compare build texts -o texts/report.html",
        "logoeval compare build texts --run run -o run/report.html",
    ],
)
def test_an_output_among_inputs_is_refused(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    program, *rest = words.split()
    assert MAINS[program](rest) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"lies inside (the|a|what)|holds (the|a) |-o is inside the source's folder", line), line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_beside_is_none_inside(tmp_path: Path) -> None:
    for name in ("a", "ab"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    check_apart(tmp_path / "ab", ("the data set", tmp_path / "a"))
    check_apart(tmp_path / "a" / "x", ("the data set", tmp_path / "a" / "y"), ("the model", None))
    with pytest.raises(UserError, match="lies inside the data set"):
        check_apart(tmp_path / "link" / "x", ("the data set", tmp_path / "a"))
