"""Adapters on stacked experts: each weight that is named gets one, PEFT loads it, and merging changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.models.adapter_fit import check_served_whole
from logodata.models.loading import load_model
from logotrain.cli import main
from logotrain.model.adapters import add_adapters
from logotrain.recipe.settings import LoraSettings, TrainRecipe
from logotrain.run import run
from tests.logotrain.loss.test_routers import mixture

Recipes = Callable[..., TrainRecipe]

EXPERTS = ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")


def trained(kind: str, settings: LoraSettings) -> set[str]:
    model = add_adapters(mixture(kind), settings, name="m")
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("kind", "layers"), [("mixtral", 2), ("qwen3_moe", 1), ("gpt_oss", 2), ("olmoe", 2)])
def test_experts_get_adapters_beside_linear_layers(kind: str, layers: int) -> None:
    settings = LoraSettings(rank=2, train_embeddings=False)
    found = trained(kind, settings.model_copy(update={"target_parameters": EXPERTS}))
    more = found - trained(kind, settings)
    assert len(more) == layers * 2 * 2  # two stacks with two matrices each
    assert all(".mlp.experts." in name for name in more)


def test_a_router_may_get_one_and_is_trained_with_its_loss(
    make_recipe: Recipes, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    mixture("mixtral").float().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    recipe = make_recipe(model=str(tmp_path / "model"), epochs=1, **{"lora.target_parameters": ("mlp.gate.weight",)})
    run(recipe, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert all(weights[name].any() for name in weights if ".mlp.gate.lora_B" in name)
    assert sum(".mlp.gate." in name for name in weights) == 4
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["router_loss"] > 2  # even is 2 experts a token


@pytest.mark.slow
def test_compiled_layers_train_the_same_adapters(
    make_recipe: Recipes,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    # Layers share their code, and its limit. One layer may use half of it.
    limit = torch._dynamo.config.recompile_limit // 2
    mixture("mixtral", num_hidden_layers=1).float().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    lines = []
    with torch._dynamo.config.patch(recompile_limit=limit):  # monkeypatch would hide it from all later tests
        for compiled in (False, True):  # before the first step layers are compiled while no router is recorded
            settings = {"lora.target_parameters": EXPERTS, "max_steps": 1, "compile": compiled, "recompute": "full"}
            run(make_recipe(model=str(tmp_path / "model"), router_loss=0.5, **settings), tmp_path / str(compiled))
            metrics = (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines()
            lines.append([json.loads(line) for line in metrics])
    for ours, theirs in zip(*lines, strict=True):
        for key in ("loss", "router_loss", "expert_share", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)
    assert "recompile_limit" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mlp.experts.gate_up_prj", r"did you mean 'mlp\.experts\.gate_up_proj'\?"),
        (
            "zzz",
            r"its weights outside of linear layers: mlp\.experts\.down_proj, mlp\.experts\.gate_up_proj, mlp\.gate",
        ),
        ("q_proj.weight", "its weights outside of linear layers"),
    ],
)
def test_a_name_that_no_weight_has_is_refused(target: str, said: str) -> None:
    settings = LoraSettings(target_parameters=(target,))
    with pytest.raises(UserError, match=rf"m: lora\.target_parameters: no parameter '{target}' in the model \({said}"):
        add_adapters(mixture("mixtral"), settings, name="m")


def test_a_redirection_by_peft_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In models that transformers 4 built of linear experts, PEFT takes names of the old layers for the stacks."""
    found = trained("qwen3_moe", LoraSettings(rank=2, target_modules=("all-linear",), train_embeddings=False))
    assert any(".mlp.experts." in name for name in found)
    said = " ".join(capsys.readouterr().err.split())
    assert "PEFT gives those of down_proj, gate_proj, up_proj to the weights down_proj, gate_up_proj" in said


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    "more", [{}, {"dtype": "bfloat16"}, {"lora.target_modules": ["all-linear"]}, {"recompute": "full"}]
)
def test_a_run_is_loaded_by_peft_and_merged(
    kind: str,
    more: dict[str, object],
    make_recipe: Recipes,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    folder, adapter = tmp_path / kind, tmp_path / "run" / "final"
    mixture(kind).float().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    settings = {"model": str(folder), "lora.target_parameters": EXPERTS, "optimizer.lr": 0.1, "epochs": 1}
    run(make_recipe(**{**settings, **more}), tmp_path / "run")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert {*EXPERTS} <= {*config["target_parameters"]}
    assert config["target_parameters"] == sorted(config["target_parameters"])
    loaded = PeftModel.from_pretrained(load_model(str(folder), dtype="float32"), str(adapter))
    assert main(["merge", str(adapter), "--model", str(folder), "-o", str(tmp_path / "merged")]) == 0
    merged = load_model(str(tmp_path / "merged"), dtype="float32")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs, base = (
            model(input_ids=ids).logits for model in (merged, loaded, load_model(str(folder), dtype="float32"))
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert (ours - base).abs().max() > 0.01
    parameters = dict(merged.named_parameters())
    before = dict(load_model(str(folder), dtype="float32").named_parameters())
    for name in EXPERTS:
        (path,) = [path for path in parameters if path.endswith(f"layers.1.{name}")]
        assert not torch.equal(parameters[path], before[path])
    with pytest.raises(UserError, match="target_parameters"):
        check_served_whole(str(folder), adapter)
