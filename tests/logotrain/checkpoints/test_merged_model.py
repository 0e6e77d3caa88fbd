from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from logodata.models.adapters import write_base_config
from logodata.models.loading import load_model
from logotrain.cli import main
from logotrain.model.rope import scaled_config
from logotrain.recipe.settings import RopeSettings, TrainRecipe
from logotrain.run import run
from tests.conftest import make_model


@pytest.fixture
def adapter(make_recipe: Callable[..., TrainRecipe], tmp_path: Path) -> Path:
    return run(make_recipe(max_steps=2, optimizer={"lr": 0.05}), tmp_path / "run")


def merge(adapter: Path, model: Path, out: Path, *more: str) -> int:
    return main(["merge", str(adapter), "--model", str(model), "-o", str(out), *more])


def test_merged_folder_gives_the_adapters_logits(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert merge(adapter, tiny_model_dir, tmp_path / "merged", "--dtype", "float32") == 0
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        before = base(ids).logits
        wanted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.01, "the adapter changes something"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_merged_folder_keeps_the_scaled_rope(kind: str, adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Logits of a row that reaches four times the old window, from the folder alone."""
    rope = RopeSettings.model_validate({"type": kind, "factor": 4})
    config = scaled_config(AutoConfig.from_pretrained(tiny_model_dir), rope)
    write_base_config(adapter, config)
    assert merge(adapter, tiny_model_dir, tmp_path / "merged", "--dtype", "float32") == 0
    row = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37, dtype=torch.long)}
    row["position_ids"] = torch.linspace(0, 8191, 37).long()[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    unscaled = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", config=AutoConfig.from_pretrained(tiny_model_dir)
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, config=config)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(base, str(adapter))(**row).logits
        found, without = merged(**row).logits, unscaled(**row).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - without).abs().max() > 0.01, "the scaling changes something"
    assert merged.config.max_position_embeddings == 8192
    assert merged.config.rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "layer_replication": [(0, 2), (1, 2)]},
    ],
    ids=str,
)
def test_merged_folder_of_a_tied_model(lora: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    """A weight that two layers share is written twice where the adapter changes one of them."""

    def make() -> LlamaForCausalLM:
        return make_model(len(tiny_tokenizer), tie_word_embeddings=True)

    make().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(make(), LoraConfig(r=4, init_lora_weights=False, **lora))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    assert merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged") == 0
    ids = torch.arange(3, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(make(), str(tmp_path / "adapter"))(ids).logits
        found, before = merged(ids).logits, make()(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.01, "the adapter changes something"


def test_the_head_of_a_tied_model_trained_here(
    make_recipe: Callable[..., TrainRecipe], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    make_model(len(tiny_tokenizer), tie_word_embeddings=True).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    settings = {"model": str(base), "lora.target_modules": ["q_proj", "lm_head"], "optimizer.lr": 0.05, "max_steps": 2}
    trained = run(make_recipe(**settings), tmp_path / "run")
    assert merge(trained, base, tmp_path / "merged") == 0
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(trained))(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        measured = load_model(str(base), adapter=trained)(ids).logits
        before = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(measured, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - before).abs().max() > 0.01, "the adapter changes something"


@pytest.mark.parametrize("named", [True, False])
def test_the_weights_keep_their_type(
    named: bool, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    make_model(len(tiny_tokenizer)).bfloat16().save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    if not named:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "dtype": None}))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(make_model(len(tiny_tokenizer)), lora).save_pretrained(str(tmp_path / "adapter"))
    if named:  # the config's type is the model's, whatever the file's
        make_model(len(tiny_tokenizer)).save_pretrained(tmp_path / "whole")
        shutil.copy(tmp_path / "whole" / "model.safetensors", base)
    for asked, written in ((None, torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        out = tmp_path / f"merged-{asked}"
        assert merge(tmp_path / "adapter", base, out, *(("--dtype", asked) if asked else ())) == 0
        said = f"weights are written in {str(written).removeprefix('torch.')}, as {'asked' if asked else 'the model'}"
        assert said in capsys.readouterr().err
        weights = load_file(out / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {written}
        kept = load_file(base / "model.safetensors")["lm_head.weight"]
        assert torch.equal(weights["lm_head.weight"], kept.to(written))
        assert AutoConfig.from_pretrained(out).dtype == written


def test_quantised_weights_take_no_adapter(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "quantization_config": four}))
    assert merge(adapter, tmp_path / "base", tmp_path / "out") == 2
    assert "weights are quantised: merging" in capsys.readouterr().err


def test_refusals(adapter: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert merge(adapter, tiny_model_dir, tmp_path / "there") == 2
    assert "exists already" in capsys.readouterr().err
    assert merge(tmp_path / "there", tiny_model_dir, tmp_path / "out") == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
