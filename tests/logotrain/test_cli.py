"""The command: help, dry run, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from logodata.cli import main as logodata
from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logoeval.cli import main as logoeval
from logotrain import steps
from logotrain.checkpoints import safe_reading
from logotrain.cli import main
from logotrain.metrics import StepRecord
from logotrain.model.targets import adapter_targets
from logotrain.parallel import World
from logotrain.plan import cost
from logotrain.plan.cost import CARDS
from logotrain.recipe import defaults
from logotrain.recipe.defaults import load_train_recipe
from logotrain.recipe.settings import LoraSettings, TrainRecipe
from logotrain.run import _settled, duration, run, summary

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
    assert main(["run", str(recipe_file), "--outt", "x"]) == 2
    assert capsys.readouterr().err == "logotrain: error: run: no option '--outt' (did you mean '--out'?)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}"], "give -o DIR"),
        (["{recipe}", "-o", "x", "objektive.beta=1"], "did you mean 'objective'"),
        (["{recipe}", "{recipe}", "-o", "x"], "is not an override"),
        (["{recipe}", "--recipe", "{recipe}", "-o", "x"], "two recipes given"),
        (["nowhere.yaml", "-o", "x"], "no such recipe"),
        (["{recipe}", "-o", "x", "--model", "./nowhere"], "no such model folder"),
        (["{recipe}", "-o", "x", "--data", "nowhere"], "no such file or folder"),
        (["{recipe}", "-o", "x", "--init-adapter", "nowhere"], "nowhere: holds no adapter"),
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
    original, calls = steps._sample_loss, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    command = ["run", str(recipe_file), "-o", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_sample_loss", interrupted)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step-1").is_dir()
    assert main(command) == 0
    assert "continuing after step 1 of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", [(safe_reading._Unpickler, "find_class"), (safe_reading.FileSystemReader, "read_data")]
)
def test_ctrl_c_while_a_checkpoint_is_read_exits_130_and_blames_nothing(
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: tuple[Any, str],
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
    out = tmp_path / "run"
    command = ["run", str(recipe_file), "-o", str(out)]
    assert main(command) == 0
    shutil.rmtree(out / "final")
    original = getattr(*place)

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        capsys.readouterr()
        assert main(command) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "logotrain: interrupted; run the same command again to continue"
    assert "error" not in said
    assert main(command) == 0
    assert "continuing after step 4 of 4" in capsys.readouterr().err


def test_schema_describes_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--schema"]) == 0
    assert "samples_per_step" in json.loads(capsys.readouterr().out)["properties"]


def test_help_and_a_finished_run_load_no_torch(make_recipe: Recipes, recipe_file: Path, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path / "run")
    program = (
        "import sys; from logotrain.cli import main; code = main(sys.argv[1:])\n"
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
    for model, overrides in (("embedded", []), (None, ["model=embedded"])):
        recipe, _ = load_train_recipe(None, model, overrides)
        rates.append(recipe.optimizer.lr)
        assert ("settings of recipes/embedded.yaml" in capsys.readouterr().err) == (model is not None)
    assert rates == [1e-3, 5e-6]
    assert main(["run", "--help"]) == 0
    assert "takes the settings of recipes/embedded.yaml" in " ".join(capsys.readouterr().out.split())


def test_without_a_recipe_the_settings_are_the_papers_and_suit_the_device(
    build_dir: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU float32, with a rate for adapters; never the toy's settings."""
    words = ["--model", str(tiny_model_dir), "--data", str(build_dir), "-o", str(tmp_path / "run")]
    assert main(["run", *words, "--dry-run"]) == 0
    said = capsys.readouterr()
    recipe = yaml.safe_load(said.out)["train"]
    assert (recipe["dtype"], recipe["optimizer"]["lr"]) == ("float32", 5e-6)
    assert recipe["positions"]["target_length"] is None
    assert "optimizer.lr=5e-06 for tuning=lora" in said.err
    assert f"{tiny_model_dir} on 1 x cpu" in said.err.replace("\n", "")
    assert "logotrain plan, the same and --card h100-80gb --gpus 8" in said.err
    for given, expected in (("tuning=full", 5e-7), ("optimizer.lr=3e-5", 3e-5)):
        assert main(["run", *words, "--dry-run", given]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["train"]["optimizer"]["lr"] == expected


def test_a_run_keeps_the_dtype_that_it_began_with(
    build_dir: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    words = ["run", "--model", str(tiny_model_dir), "--data", str(build_dir), "-o", str(out), "samples_per_step=6"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "dtype: float32 (this machine has no GPU; dtype=bfloat16 asks for the other)" in said
    assert json.loads((out / "recipe.resolved.json").read_text())["dtype"] == "float32"
    monkeypatch.setattr(defaults, "computes_bfloat16", lambda: True)
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "dtype: float32 (as this run began;" in said
    assert "already finished" in said
    assert main([*words, "dtype=bfloat16"]) == 2
    assert "dtype='float32', now it is 'bfloat16'" in capsys.readouterr().err
    # Before its first step a run is bound to nothing, and there is a GPU now.
    (out / "metrics.jsonl").unlink()
    shutil.rmtree(out / "final")
    recipe, _ = load_train_recipe(None, str(tiny_model_dir), [f"data.path={build_dir}", "samples_per_step=6"])
    assert _settled(recipe, out, World()).dtype == "bfloat16"


def test_bfloat16_that_was_asked_for_on_a_cpu_that_emulates_it_is_a_warning(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, warning = ["run", str(recipe_file), "max_steps=1", "collapse.num_prompts=0"], "may take minutes on this CPU"
    for can in (False, True):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda can=can: {"amx_bf16": can})
        assert main([*words, "-o", str(tmp_path / f"narrow-{can}"), "dtype=bfloat16"]) == 0
        assert (f"warning: bfloat16 {warning}" in capsys.readouterr().err) == (not can)
    assert main([*words, "-o", str(tmp_path / "wide")]) == 0
    assert warning not in capsys.readouterr().err


def test_a_training_ends_with_what_came_of_it_and_what_to_type_next(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    for _ in range(2):  # the second finds it finished
        assert main(["run", str(recipe_file), "-o", str(out)]) == 0
        said = capsys.readouterr()
        assert said.out.strip() == str(out / "final")
        done, following, other = said.err.splitlines()[-3:]
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert done.startswith(f"trained 4 steps in {duration(sum(step['seconds'] for step in steps))}; ")
        assert f"loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f}, margin {steps[0]['margin']:+.3f} -> " in done
        words = shlex.split(following.removeprefix("next: "))
        assert words[:2] == ["logoeval", "niah"]
        assert words[words.index("--adapter") + 1] == str(out / "final")
        # It is a command that works, as far as its settings and paths go.
        assert logoeval([*words[1:], "--dry-run"]) == 0
        assert shlex.split(other.removeprefix("or:   "))[:3] == ["logotrain", "merge", str(out / "final")]
        capsys.readouterr()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (312, "5 min 12 s"), (7621, "2 h 7 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_other_objectives_and_no_steps_have_a_summary(make_recipe: Recipes) -> None:
    step = StepRecord(
        step=1,
        loss=2.0,
        preference_loss=0.0,
        sft_loss=1.0,
        chosen_logp=-1.0,
        chosen_ended=1.0,
        rejected_ended=1.0,
        tokens=9,
        grad_norm=1.0,
        lr=1e-6,
        seconds=3.0,
        tokens_per_second=3.0,
        samples_per_second=0.3,
        memory_gib=1.0,
    )
    lines = summary([step], [], make_recipe(tuning="full"), Path("r"))
    assert lines == [
        "trained 1 step in 3 s; before it: loss 2.000, chosen_logp -1.000",
        "next: logoeval niah --model r/final -o r-eval",
    ]
    assert summary([], [], make_recipe(), Path("r"))[0] == "no step was trained (epochs=0)"


@pytest.mark.parametrize(
    ("main_of", "words", "shown"),
    [
        (
            main,
            ["run", "embedded", "optimizer.lr=1e-6", "positions.target_length=2048"],
            "dtype=float32, recompute=none",
        ),
        (logodata, ["build", "embedded"], "engine.dtype=float32, chunking.chunk_tokens=96"),
        (logodata, ["build", "my.jsonl", "--recipe", "embedded"], "engine.dtype=float32, chunking.chunk_tokens=96"),
        (logoeval, ["niah", "--recipe", "embedded"], "engine.dtype=float32, niah.lengths=[512, 1024]"),
        (logoeval, ["run", "embedded", "--data", "d"], "engine.dtype=float32, niah.lengths=[512, 1024]"),
    ],
)
def test_the_toys_settings_on_another_model_are_a_warning(
    main_of: Callable[[list[str]], int],
    words: list[str],
    shown: str,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_of([*words, "--model", str(tiny_model_dir), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert f"has settings of the embedded 135M model, {shown}" in lines[0]
    assert main_of([*words, "--model", "embedded", "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_recipe_over_the_toys_is_warned_of_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("extends: embedded\nmodel: org/mine\n")
    load_recipe(TrainRecipe, "train", tmp_path / "mine.yaml")
    assert "optimizer.lr=0.001" in capsys.readouterr().err
    load_recipe(TrainRecipe, "train", Path("embedded"))
    load_recipe(TrainRecipe, "train", Path("llama3-80k"), ["model=org/mine"])
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "gib", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA H100 PCIe", 79.1, "NVIDIA H100 PCIe"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
    ],
)
def test_a_dry_run_plans_for_this_machine(device: str, gib: float, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name=device, total_memory=int(gib * 2**30))
    monkeypatch.setattr(cost, "has_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: found)
    monkeypatch.setattr(cost, "CARDS", dict(CARDS))
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cost.this_machine() == (card, 2)
    assert cost.CARDS[card].memory_bytes is not None
    assert abs(cost.CARDS[card].memory_bytes / found.total_memory - 1) < 0.05


def test_a_run_in_the_current_folder_ends_with_its_summary(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["run", str(recipe_file), "max_steps=1", "-o", "."]) == 0
    assert f"-o {tmp_path / 'here-eval'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.name=hinge", "there is none here: dpo is its neighbour"),
        ("objective=hinge", "there is none here: dpo is its neighbour"),
        ("train.optimizer.lr=1e-5", "write optimizer.lr=1e-5: names begin inside the section"),
        ("lora.target_modules=q_proj,qprojj", "no layer 'qprojj' in the model"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_both_commands_answer_the_same(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, override: str, said: str
) -> None:
    where = ["-o", str(tmp_path / "run"), "--dry-run"] if command == "run" else []
    assert main([command, str(recipe_file), *where, override]) == 2
    assert said in capsys.readouterr().err


def test_a_tied_head_is_not_adapted_and_trained() -> None:
    settings = LoraSettings(target_modules=("q_proj", "lm_head"), train_embeddings=True)
    with pytest.raises(UserError, match="'lm_head' is tied to the token embedding"):
        adapter_targets(settings, {"q_proj"}, "lm_head", tied=True, where="m")
    found = adapter_targets(settings, {"q_proj"}, "lm_head", tied=False, where="m")
    assert found == (["q_proj", "lm_head"], True)


def test_commas_too_many_are_no_names() -> None:
    assert LoraSettings.model_validate({"target_modules": "q_proj,,v_proj,"}).target_modules == ("q_proj", "v_proj")
