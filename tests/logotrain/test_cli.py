"""The command: help, dry run, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from logodata.common.recipe_io import load_recipe
from logotrain import trainer
from logotrain.cli import _parser, _recipe, main
from logotrain.recipe import TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]


@pytest.fixture
def recipe_file(tmp_path: Path, make_recipe: Recipes) -> Path:
    path = tmp_path / "recipe.yaml"
    values = make_recipe().model_dump(mode="json")
    path.write_text(yaml.safe_dump({"model": values.pop("model"), "train": values}))
    return path


def test_trains_and_prints_where_the_adapter_is(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", str(recipe_file), "epochs=1", "-o", str(out), "objective.beta=1.5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out / "final")
    assert "preferred response" in captured.err
    resolved = json.loads((out / "recipe.resolved.json").read_text())
    assert resolved["objective"]["beta"] == 1.5
    assert resolved["epochs"] == 1
    assert (out / "final" / "adapter_model.safetensors").is_file()


def test_dry_run_prints_the_recipe_and_touches_nothing(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", str(recipe_file), "-o", str(out), "optimizer.lr=1e-4", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "6 samples" in captured.err
    assert not out.exists()
    # What it prints is a recipe that resolves to itself.
    again = tmp_path / "again.yaml"
    again.write_text(captured.out)
    assert load_recipe(TrainRecipe, "train", again) == load_recipe(
        TrainRecipe, "train", recipe_file, ["optimizer.lr=1e-4"]
    )


def test_unknown_options_are_refused(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(recipe_file), "--outt", "x"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --outt x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}"], "give -o DIR"),
        (["{recipe}", "-o", "x", "objektive.beta=1"], "did you mean 'objective'"),
        (["{recipe}", "{recipe}", "-o", "x"], "two recipes"),
        (["nowhere.yaml", "-o", "x"], "no such recipe"),
        (["{recipe}", "-o", "x", "--model", "./nowhere"], "no such model folder"),
        (["{recipe}", "-o", "x", "--data", "nowhere"], "no such folder"),
        (["{recipe}", "-o", "x", "positions.target_length=9999"], "beyond the model's window"),
        (["{recipe}", "-o", "x", "lora.target_modules=[c_attn]"], "no layer 'c_attn'"),
    ],
)
def test_faults_of_the_user_are_one_line_and_exit_2(
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *(text.format(recipe=recipe_file) for text in arguments)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("logotrain: error: ")
    assert message in line


def test_interrupted_run_exits_130_and_says_how_to_go_on(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = trainer._sample_loss, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    command = ["run", str(recipe_file), "-o", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_sample_loss", interrupted)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step-1").is_dir()
    assert main(command) == 0
    assert "continuing after step 1 of 4" in capsys.readouterr().err


def test_schema_describes_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--schema"]) == 0
    assert "samples_per_step" in json.loads(capsys.readouterr().out)["properties"]


def test_help_and_a_finished_run_load_no_torch(make_recipe: Recipes, recipe_file: Path, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path / "run")
    program = (
        "import sys; from logotrain.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'heavy import'; sys.exit(code)"
    )
    for arguments in (["--help"], ["run", "--help"], ["run", str(recipe_file), "-o", str(tmp_path / "run")]):
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    assert "already finished" in result.stderr


def test_embedded_as_an_option_says_that_it_takes_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """``model=embedded`` takes the defaults, with a rate for adapters: the two are not the same."""
    rates = []
    for words in (["--model", "embedded"], ["model=embedded"]):
        recipe, _ = _recipe(_parser().parse_args(["run", *words]))
        rates.append(recipe.optimizer.lr)
        assert ("settings of recipes/embedded.yaml" in capsys.readouterr().err) == ("--model" in words)
    assert rates == [1e-3, 5e-6]
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "takes the settings of recipes/embedded.yaml" in " ".join(capsys.readouterr().out.split())
