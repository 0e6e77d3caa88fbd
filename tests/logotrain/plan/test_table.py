"""The command: every shipped recipe plans without weights; data, options, JSON, picture, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe, shipped_recipes
from logotrain.cli import main
from logotrain.plan.assumed import planned_data
from logotrain.plan.coverage import draws
from logotrain.plan.table import RunPlan, make_plan
from logotrain.recipe.settings import TrainRecipe

Recipes = Callable[..., TrainRecipe]
SHIPPED = sorted(shipped_recipes().rglob("*.yaml"))


@pytest.fixture
def recipe_file(tmp_path: Path, make_recipe: Recipes) -> Path:
    path = tmp_path / "recipe.yaml"
    values = make_recipe().model_dump(mode="json")
    values["data"]["path"] = None
    path.write_text(yaml.safe_dump({"model": values.pop("model"), "train": values}))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(shipped_recipes()).as_posix())
def test_every_shipped_recipe_plans(path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "train", path)
    plan = make_plan(recipe, planned_data(recipe, path), card="h100-80gb", num_gpus=8)
    assert (plan.total_steps == 0) == (recipe.epochs == 0)
    assert plan.memory[plan.recompute].total < 79 * 2**30
    assert json.dumps(plan.to_json())


def test_lengths_come_from_the_recipe_s_build_section() -> None:
    path = shipped_recipes() / "llama3-80k.yaml"
    recipe = load_recipe(TrainRecipe, "train", path)
    (sample,) = planned_data(recipe, path).data.samples
    assert (len(sample.prompt_ids), len(sample.chosen.token_ids), len(sample.rejected)) == (8192, 256, 2)
    (longer,) = planned_data(recipe, path, prompt_tokens=16384, num_rejected=8).data.samples
    assert (len(longer.prompt_ids), len(longer.rejected)) == (16384, 8)


def test_assumed_samples_have_the_responses_that_the_recipe_trains_on(make_recipe: Recipes) -> None:
    def planned(**fields: object) -> int:
        recipe = make_recipe(**{"data.path": None}, **{f"data.{name}": value for name, value in fields.items()})
        (sample,) = planned_data(recipe, None, prompt_tokens=500, response_tokens=50).data.samples
        return len(sample.rejected)

    assert planned() == 2
    assert planned(num_rejected=1) == 1
    assert planned(rejected_strategies=["mixed-0.5"]) == 1
    assert planned(rejected_strategies=["irrelevant", "mixed-0.25", "mixed-0.5"]) == 3
    assert planned(rejected_strategies=["irrelevant", "mixed-0.5"], num_rejected=1) == 1


def test_a_run_of_no_epochs_fits_no_prompts(recipe_file: Path) -> None:
    """The window is 2048, the paper's contexts are 8192."""
    assert main(["plan", str(recipe_file), "--card", "cpu"]) == 2
    assert main(["plan", str(recipe_file), "--card", "cpu", "epochs=0"]) == 0


def test_prints_tables_and_writes_json(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    lengths = ["--prompt-tokens", "300", "--response-tokens", "20", "--num-rejected", "3", "--num-samples", "10"]
    arguments = ["plan", str(recipe_file), "--card", "a100-80gb", "--gpus", "2", *lengths, "--json", str(out)]
    assert main([*arguments, "epochs=3"]) == 0
    printed = capsys.readouterr().out
    assert "memory of a device" in printed
    plan = json.loads(out.read_text())
    assert plan["largest_row"] == 300 + 4 * 20
    assert plan["total_steps"] == 10  # 30 draws, 3 a step
    assert plan["tokens_per_step"] == 3 * 380
    assert plan["recompute"] == "none"
    assert plan["memory"]["none"]["allocated"] == sum(plan["memory"]["none"]["parts"].values())
    assert {cell["num_rejected"] for cell in plan["fits"]} == set(range(1, 9))


def test_plans_for_the_data(recipe_file: Path, build_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", str(recipe_file), "--data", str(build_dir), "--card", "cpu", "--json", str(out)]) == 0
    plan = json.loads(out.read_text())
    assert plan["assumption"] == ""
    assert plan["largest_row"] == 31 + 7 + 3 + 5
    assert plan["seconds_per_step"] is None
    assert plan["fits"] == []


def test_several_samples_share_a_row(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", str(recipe_file), "--prompt-tokens", "100", "row_tokens=3000", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["largest_row"] == 3000


def test_dry_run_plans_without_data(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["run", str(recipe_file), "--dry-run", "positions.target_length=null", "rope={type: yarn, factor: 8}"])
        == 0
    )
    captured = capsys.readouterr()
    assert "assumed, for want of data" in captured.err
    assert yaml.safe_load(captured.out)["train"]["rope"]["factor"] == 8


def misfit(recipe: TrainRecipe, *, card: str, num_gpus: int = 1, prompt_tokens: int = 8192) -> RunPlan:
    path = shipped_recipes() / "llama3-80k.yaml"
    return make_plan(recipe, planned_data(recipe, path, prompt_tokens=prompt_tokens), card=card, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("overrides", "card", "num_gpus", "prompt_tokens"),
    [
        ([], "rtx4090-24gb", 1, 8192),
        (["recompute=none"], "l40s-48gb", 1, 8192),
        (["parallel.strategy=replicate"], "rtx4090-24gb", 4, 8192),
        (["recompute=none"], "h100-80gb", 1, 32768),
        (["tuning=full"], "l40s-48gb", 2, 8192),
        (["tuning=full", "parallel.shard_size=2"], "l40s-48gb", 8, 8192),
        (["tuning=full", "parallel.shard_size=8"], "l40s-48gb", 1, 8192),
        (["tuning=qlora", "recompute=none"], "rtx4090-24gb", 1, 8192),
        (["parallel.context_size=1", "recompute=full"], "l40s-48gb", 4, 65536),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(
    overrides: list[str], card: str, num_gpus: int, prompt_tokens: int
) -> None:
    """Each change that it names is taken, and then it fits."""
    path = shipped_recipes() / "llama3-80k.yaml"
    recipe = load_recipe(TrainRecipe, "train", path, overrides)
    plan = misfit(recipe, card=card, num_gpus=num_gpus, prompt_tokens=prompt_tokens)
    assert plan.hours is plan.seconds_per_step is None
    assert re.fullmatch(rf"[\d.]+ GiB needed, {card} has [\d.]+ GiB", plan.misfit)
    with pytest.raises(UserError, match=r"does not fit: .* \(each of these fits: ") as error:
        plan.check_fits()
    assert all(remedy in str(error.value) for remedy in plan.remedies)
    for remedy in plan.remedies:
        changed, settings = [*overrides], {"card": card, "num_gpus": num_gpus, "prompt_tokens": prompt_tokens}
        if shorter := re.fullmatch(r"prompts of (\d+) tokens", remedy):
            settings["prompt_tokens"] = int(shorter[1])
            assert settings["prompt_tokens"] < prompt_tokens
        words = [] if shorter else remedy.split()
        if words and words[0].startswith("parallel."):
            words = ["--gpus", str(num_gpus), *words]
        if words[:1] == ["--gpus"]:
            settings["num_gpus"] = int(words[1])
        elif words[:1] == ["--card"]:
            settings["card"] = words[1]
        changed += [word for word in words if "=" in word]
        there = misfit(load_recipe(TrainRecipe, "train", path, changed), **settings)
        there.check_fits()
        assert (there.hours is None) == (settings["card"] == "cpu")


def test_a_plan_that_does_not_fit_prints_no_hours_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    recipe = str(shipped_recipes() / "llama3-80k.yaml")
    assert main(["plan", recipe, "--card", "rtx4090-24gb", "--gpus", "1", "--json", str(out)]) == 2
    captured = capsys.readouterr()
    assert "does not fit" in captured.out
    assert " h, at" not in captured.out
    assert "memory of a device" in captured.out
    plan = json.loads(out.read_text())
    assert plan["hours"] is plan["seconds_per_step"] is None
    assert plan["misfit"] in captured.err
    assert main(["plan", recipe, "--card", "rtx4090-24gb", "--gpus", "1", "epochs=0"]) == 0, "nothing is trained"
    assert main(["plan", recipe, "--card", "rtx4090-24gb", "--gpus", "1", "tuning=qlora"]) == 0


@pytest.mark.parametrize("mode", ["mixed", "natural", "continuous", "sparse", "pose", "randpos"])
def test_draws_are_those_of_training(make_recipe: Recipes, mode: str) -> None:
    recipe = make_recipe(**{"positions.mode": mode, "data": {}, "epochs": 2})
    planned = planned_data(recipe, None, prompt_tokens=400, response_tokens=20, num_samples=5)
    drawn = draws(recipe, planned)
    assert len(drawn) == 10
    assert all(len(positions) == 400 and positions[-1] < 2048 - 20 for positions in drawn)
    different = len({positions.tobytes() for positions in drawn})
    assert different == 1 if mode == "natural" else different >= 9  # one chunk's bias may come twice
    assert all((np.diff(positions) > 0).all() for positions in drawn)


@pytest.mark.parametrize("mode", ["mixed", "natural"])
def test_plot_is_a_png(recipe_file: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "coverage.png"
    arguments = ["--prompt-tokens", "500", "--num-samples", "4", f"positions.mode={mode}"]
    assert main(["plan", str(recipe_file), "--card", "cpu", "--plot", str(out), *arguments]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "abacus"], "unknown card 'abacus'"),
        (["--prompt-tokens", "4000"], "do not fit under 2048 positions"),
        (["--data", "{data}", "--num-rejected", "2"], "which have lengths of their own"),
        (["--prompt-tokens", "100", "lora.target_modules=[c_attn]"], "no layer 'c_attn' in the model"),
        (["--prompt-tokens", "100", "positions.target_length=9999"], "beyond the model's window"),
        (["--prompt-tokens", "100", "attention=flex", "recompute=selective"], "recompute=selective cannot keep what"),
        (["--card", "cpu", "--prompt-tokens", "100", "attention=flash"], "its kernels need CUDA, the device is cpu"),
        (["--prompt-tokens", "100", "attention=flash", "dtype=float32"], "in bfloat16 or float16, not float32"),
        (["--gpus", "2", "tuning=full", "dtype=bfloat16", "parallel.strategy=replicate"], "replicate cannot tune all"),
        (["--gpus", "8", "parallel.shard_size=3"], "shard_size=3 does not divide the number of processes, 8"),
        (["--prompt-tokens", "100", "epochs=0", "--plot", "x.png"], "epochs=0 draws no positions"),
        (["--prompt-tokens", "100", "--plot", "nowhere/x.png"], "cannot write"),
    ],
)
def test_faults_of_the_user_are_one_line(
    recipe_file: Path, build_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    words = [word.format(data=build_dir) for word in arguments]
    assert main(["plan", str(recipe_file), *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("logotrain: error: ")
    assert message in line


@pytest.mark.parametrize(("model", "rough"), [("google/gemma-3-27b-it", True), ("Qwen/Qwen3-30B-A3B", False)])
def test_hours_of_windows_are_said_to_be_too_high(model: str, rough: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", model]) == 0
    assert ("windows count as full attention" in " ".join(capsys.readouterr().out.replace("│", " ").split())) == rough


LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def test_a_long_prompt_gets_what_is_fastest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ["plan", "--model", LLAMA, "--prompt-tokens", "128000", "--gpus", "1", "--json", str(out)]
    assert main([*arguments, "positions.target_length=null"]) == 0
    printed = capsys.readouterr().out
    assert "long prompts" in printed
    assert max(map(len, printed.splitlines())) <= 100
    plan = json.loads(out.read_text())
    assert (plan["context_size"], plan["recompute"]) == (1, "offloaded")
    assert plan["memory"]["offloaded"]["host"] == 2 * 32 * 4096 * plan["largest_row"]
    fits = {(fit["prompt"], fit["num_gpus"]): fit["recompute"] for fit in plan["long_fits"]}
    assert fits[65536, 1] == "selective"
    assert fits[524288, 1] is None
    assert fits[524288, 8] is not None


def test_a_prompt_beyond_the_window_is_answered_with_the_settings_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = "meta-llama/Meta-Llama-3-8B-Instruct"
    arguments = ["plan", "--model", short, "--prompt-tokens", "60000", "--gpus", "1", "--card", "h200-141gb"]
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "do not fit under" in line
    _, _, mend = line.partition("its window has 8192: ")
    assert main([*arguments, *mend.partition(",")[0].split()]) == 0
    capsys.readouterr()
    assert main(["plan", "--model", LLAMA, "--prompt-tokens", "262144"]) == 2
    assert "its window has 131072 and cannot be scaled: the model's RoPE is of type 'llama3'" in capsys.readouterr().err


def test_the_table_of_the_guide_is_the_plan_s() -> None:
    page = (Path(__file__).parents[3] / "docs" / "long-prompts.md").read_text(encoding="utf-8")
    for model in (LLAMA, "meta-llama/Llama-3.1-70B-Instruct"):
        recipe = TrainRecipe.model_validate({"model": model, "positions": {"target_length": None}})
        plan = make_plan(recipe, planned_data(recipe, None, prompt_tokens=8192), card="h100-80gb", num_gpus=8)
        for prompt in dict.fromkeys(fit.prompt for fit in plan.long_fits):
            cells = [str(fit) for fit in plan.long_fits if fit.prompt == prompt]
            line = f"| {prompt // 1024}K | " + " | ".join(cells) + " |"
            assert line in page, line


COSTS: dict[str, tuple[dict[str, Any], int, int, float, float]] = {
    "logo": ({"name": "logo"}, 2, 8960, 1.0, 1.0),
    "sft": ({"name": "sft"}, 1, 8448, 0.927, 0.930),
    "orpo": ({"name": "orpo"}, 1, 8704, 0.964, 0.965),
    "ipo": ({"name": "ipo"}, 1, 8704, 1.399, 1.266),
    "dpo-2": ({"name": "dpo"}, 2, 8960, 1.451, 1.311),
    "solopo": ({"name": "solopo"}, 1, 11008, 1.170, 1.177),
    "solopo-2": ({"name": "solopo"}, 2, 11264, 1.197, 1.204),
    "solopo-dpo": ({"name": "solopo", "loss": {"name": "dpo"}}, 1, 11008, 1.706, 1.547),
    "solopo-dpo-2": ({"name": "solopo", "loss": {"name": "dpo"}}, 2, 11264, 1.746, 1.583),
    "longpo": ({"name": "longpo"}, 1, 8704, 1.159, 1.100),
    "longpo-2": ({"name": "longpo"}, 2, 8960, 1.208, 1.144),
    "longpo-response": ({"name": "longpo", "tokens": "response"}, 1, 8704, 1.080, 1.045),
}
"""Counted by hand for prompts of 8192 tokens, 2048 of critical chunks, and responses of 256: objective, M, tokens of a
row with gradients, and the work of a sample, reference included, in units of LOGO's, without and with recomputation."""


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_work_of_the_objectives_by_hand(recompute: str) -> None:
    def plan(objective: dict[str, Any], m: int) -> RunPlan:
        values = {"model": LLAMA, "objective": objective, "recompute": recompute, "positions": {"mode": "natural"}}
        recipe = TrainRecipe.model_validate({**values, "epochs": 1, "lora": {"train_embeddings": False}})
        lengths = {"prompt_tokens": 8192, "response_tokens": 256, "num_rejected": m, "num_samples": 64}
        return make_plan(recipe, planned_data(recipe, None, **lengths), card="h200-141gb", num_gpus=1)

    base = plan(*COSTS["logo"][:2]).flops_per_sample
    for name, (objective, m, tokens, none, full) in COSTS.items():
        found = plan(objective, m)
        assert found.largest_row == tokens, name
        work = (found.flops_per_sample + found.flops_before_step_1 / 64) / base
        assert work == pytest.approx(none if recompute == "none" else full, abs=0.012), name


def test_a_reference_is_computed_for_every_draw_or_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Positions that are drawn differ by epoch; the short prompt of LongPO's reference has natural ones."""

    def before(name: str, mode: str, epochs: int) -> float:
        values = {"model": LLAMA, "objective": {"name": name}, "positions": {"mode": mode}, "epochs": epochs}
        recipe = TrainRecipe.model_validate(values)
        return make_plan(recipe, planned_data(recipe, None), card="h100-80gb", num_gpus=8).flops_before_step_1

    assert before("dpo", "natural", 3) == before("dpo", "mixed", 1) == before("dpo", "mixed", 3) / 3 > 0
    assert before("longpo", "mixed", 3) == before("longpo", "natural", 1) > 0
    assert before("logo", "mixed", 3) == before("solopo", "mixed", 3) == 0
    assert main(["plan", "--model", LLAMA, "objective.name=solopo", "objective.loss.name=dpo"]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(2048 of critical chunks)" in printed
    assert "for the untrained model's log-probabilities" in printed


def test_draws_of_a_sample_with_two_prompts_are_those_of_the_whole_one(make_recipe: Recipes) -> None:
    fields: dict[str, Any] = {"positions.mode": "mixed", "data": {}, "epochs": 2}
    recipe = make_recipe(**fields, objective={"name": "solopo"})
    planned = planned_data(recipe, None, prompt_tokens=1200, response_tokens=20, num_samples=5)
    assert len(planned.data.samples[0].chunks) == 3
    assert all(len(positions) == 1200 for positions in draws(recipe, planned))
