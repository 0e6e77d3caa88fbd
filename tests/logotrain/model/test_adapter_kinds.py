"""rsLoRA, DoRA, a start from another adapter, and the optimizers of bitsandbytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from logodata.common.errors import UserError
from logotrain import inputs, trainer
from logotrain.checkpoints.merged_model import merge
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.logotrain.test_trainer import assert_same_run, crash, interfere, metrics_of

Recipes = Callable[..., TrainRecipe]
IDS = torch.tensor([[3, 14, 15, 92, 65]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def test_rslora_is_lora_with_alpha_times_the_root_of_the_rank(make_recipe: Recipes, tmp_path: Path) -> None:
    run(make_recipe(**{"lora.use_rslora": True, "lora.rank": 4, "lora.alpha": 8}), tmp_path / "rs")
    run(make_recipe(**{"lora.rank": 4, "lora.alpha": 16}), tmp_path / "plain")
    assert metrics_of(tmp_path / "rs") == metrics_of(tmp_path / "plain")
    assert json.loads((tmp_path / "rs" / "final" / "adapter_config.json").read_text())["use_rslora"]


@pytest.mark.parametrize("kind", ["use_rslora", "use_dora"])
def test_what_is_trained_is_what_is_loaded_and_merged(
    make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trained: list[PeftModel] = []
    export = trainer.export

    def spy(model: PeftModel, *arguments: Any, **options: Any) -> None:
        trained.append(model)
        export(model, *arguments, **options)

    monkeypatch.setattr(trainer, "export", spy)
    final = run(make_recipe(**{f"lora.{kind}": True, "optimizer.lr": 1e-2}), tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    before = logits_of(base).clone()
    found = logits_of(PeftModel.from_pretrained(base, final))
    torch.testing.assert_close(found, logits_of(trained[0]))
    assert (found - before).abs().max() > 0.01
    merged = AutoModelForCausalLM.from_pretrained(merge(str(tiny_model_dir), final, tmp_path / "merged"))
    torch.testing.assert_close(logits_of(merged), found, rtol=1e-4, atol=1e-4)


def test_dora_shares_prompts_exactly_and_goes_on(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(**{"lora.use_dora": True, "checkpoint.asynchronous": False})
    run(recipe, tmp_path / "shared")
    run(make_recipe(**{"lora.use_dora": True}, sharing="none"), tmp_path / "separate")
    for ours, theirs in zip(metrics_of(tmp_path / "shared"), metrics_of(tmp_path / "separate"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    weights = load_file(tmp_path / "shared" / "final" / "adapter_model.safetensors")
    lengths = [value for name, value in weights.items() if "magnitude" in name]
    assert len(lengths) == 8
    with monkeypatch.context() as patch:
        interfere(patch, 7, crash)
        with pytest.raises(RuntimeError):
            run(recipe, tmp_path / "cut")
    run(recipe, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "shared")


def test_a_run_starts_from_the_adapter_of_another(make_recipe: Recipes, build_dir: Path, tmp_path: Path) -> None:
    held_out = {"data.validation": str(build_dir)}
    first = run(make_recipe(**held_out, **{"optimizer.lr": 1e-2}), tmp_path / "first")
    recipe = make_recipe(**held_out, **{"lora.init_adapter": str(first)}, objective={"name": "dpo"})
    run(recipe, tmp_path / "second")
    read = [(tmp_path / name / "validation.jsonl").read_text().splitlines() for name in ("first", "second")]
    last, start = json.loads(read[0][-1]), json.loads(read[1][0])
    assert (start["margin"], start["chosen_logp"]) == pytest.approx((last["margin"], last["chosen_logp"]), abs=1e-6)
    assert last["margin"] != pytest.approx(json.loads(read[0][0])["margin"], abs=1e-3)
    # DPO's reference is the model as it starts.
    assert metrics_of(tmp_path / "second")[0]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_an_adapter_of_other_settings_is_no_start(make_recipe: Recipes, tmp_path: Path) -> None:
    final = run(make_recipe(max_steps=1), tmp_path / "first")
    for fields, said in (
        ({"lora.rank": 2}, "its r is 4, lora.rank makes it 2"),
        ({"lora.use_dora": True}, "its use_dora is None, lora.use_dora makes it True"),
        ({"lora.target_modules": ["q_proj"]}, "its target_modules is k_proj, o_proj, q_proj, v_proj, lora.target"),
        ({"rope": {"type": "yarn", "factor": 2}}, "it was trained with another RoPE"),
        ({"lora.init_adapter": str(tmp_path / "none")}, "no"),
        ({"tuning": "full"}, "full tuning starts from no adapter"),
    ):
        with pytest.raises(UserError, match=said):
            run(make_recipe(**{"lora.init_adapter": str(final), **fields}), tmp_path / "second")


def test_another_adapter_in_its_place_is_refused(make_recipe: Recipes, tmp_path: Path) -> None:
    final = run(make_recipe(max_steps=1), tmp_path / "first")
    recipe = make_recipe(**{"lora.init_adapter": str(final)}, max_steps=2)
    run(recipe, tmp_path / "second")
    (tmp_path / "second" / "final").rename(tmp_path / "elsewhere")
    other = run(make_recipe(max_steps=2), tmp_path / "other")
    name = "adapter_model.safetensors"
    (final / name).write_bytes((other / name).read_bytes())
    with pytest.raises(UserError, match="init_adapter"):
        run(recipe, tmp_path / "second")


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw"])
def test_optimizers_of_bitsandbytes_train_and_go_on(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # The token embedding has more than the 4,096 weights below which bitsandbytes keeps 32 bits.
    fields = {"lora.train_embeddings": True, "optimizer.weight_decay": 0.0, "optimizer.eps": 1e-3}
    run(make_recipe(**fields), tmp_path / "adamw")
    recipe = make_recipe(**fields, **{"optimizer.name": name, "checkpoint.asynchronous": False})
    run(recipe, tmp_path / "whole")
    tolerance = {"rel": 1e-4, "abs": 1e-5} if name == "paged_adamw" else {"rel": 2e-2, "abs": 2e-3}
    for ours, theirs in zip(metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "adamw"), strict=True):
        assert ours == pytest.approx(theirs, **tolerance)
    differs = metrics_of(tmp_path / "whole")[-1]["loss"] != metrics_of(tmp_path / "adamw")[-1]["loss"]
    assert differs or name == "paged_adamw"  # 8 bits round
    with monkeypatch.context() as patch:
        interfere(patch, 7, crash)
        with pytest.raises(RuntimeError):
            run(recipe, tmp_path / "cut")
    if name.startswith("paged"):  # bitsandbytes' own loading would copy what is paged to the GPU, for good
        monkeypatch.delattr("bitsandbytes.optim.optimizer.Optimizer8bit.load_state_dict")
        monkeypatch.setattr("torch.optim.Optimizer.load_state_dict", pytest.fail)
    run(recipe, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_optimizers_need_bitsandbytes(make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        run(make_recipe(**{"optimizer.name": "paged_adamw"}), tmp_path / "run")


def test_optimizers_of_bitsandbytes_are_not_sharded(make_recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer.name=adamw_8bit cannot update sharded weights"):
        run(make_recipe(**{"optimizer.name": "adamw_8bit"}, tuning="full", dtype="bfloat16"), tmp_path / "run")
