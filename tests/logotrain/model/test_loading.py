"""Adapters on a frozen base: what is trained, in which type, and that the start equals the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.models.loading import load_model
from logotrain.checkpoints.export import copy_tokenizer, export
from logotrain.checkpoints.merged_model import merge
from logotrain.model.adapters import add_adapters
from logotrain.model.loading import load_trainable
from logotrain.parallel import World
from logotrain.plan.shape import model_shape, trained_weights
from logotrain.recipe.settings import LoraSettings, TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]
CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def tied_model_dir(tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path / "tied"
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny_model.config.to_dict(), "tie_word_embeddings": True})
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def trained_names(model: PeftModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def nudge(model: PeftModel) -> None:
    """Move every trained weight, so that saving and loading has something to lose."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_are_trained_and_the_start_equals_the_base(
    make_recipe: Recipes, tiny_model_dir: Path, dtype: str
) -> None:
    model = load_trainable(make_recipe(dtype=dtype), CPU)
    names = trained_names(model)
    assert len(names) == 2 * 4 * 2  # A and B, four projections, two layers
    assert all("lora_" in name for name in names)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in names else getattr(torch, dtype)), name
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, dtype))
    torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=0)


def test_the_seed_decides_the_adapters(make_recipe: Recipes) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)  # whatever ran before must not matter
        return next(p for p in load_trainable(make_recipe(seed=seed), CPU).parameters() if p.requires_grad)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_embeddings_are_trained_unless_tied(
    make_recipe: Recipes, tied_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untied = load_trainable(make_recipe(**{"lora.train_embeddings": "auto"}), CPU)
    assert sum("embed_tokens" in name for name in trained_names(untied)) == 1
    assert "token embedding trained" in capsys.readouterr().err
    tied = load_trainable(make_recipe(**{"lora.train_embeddings": "auto", "model": str(tied_model_dir)}), CPU)
    assert all("lora_" in name for name in trained_names(tied))
    assert "token embedding frozen: it is tied to the output head" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_trained_embeddings_learn_and_come_back_from_final(
    make_recipe: Recipes, tiny_model_dir: Path, tied_model_dir: Path, tmp_path: Path, tied: bool, dtype: str
) -> None:
    folder = tied_model_dir if tied else tiny_model_dir
    model = load_trainable(make_recipe(**{"lora.train_embeddings": True, "model": str(folder), "dtype": dtype}), CPU)
    before = logits(model)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    torch.testing.assert_close(before, logits(base), rtol=0, atol=0 if dtype == "float32" else 0.05)
    embedding = model.get_input_embeddings().weight
    assert embedding.dtype == torch.float32
    assert embedding.requires_grad
    assert (model.get_output_embeddings().weight is embedding) == tied
    model(input_ids=IDS).logits.sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0

    nudge(model)
    trained = logits(model)
    assert (trained - before).abs().max() > 0.1
    export(model, tmp_path / "final", World(), name="tiny", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "final")
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-5 if dtype == "float32" else 0.1)


def test_refuses_a_target_module_that_is_not_there(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"no layer 'c_attn' in the model.*q_proj"):
        add_adapters(tiny_model, LoraSettings(target_modules=("q_proj", "c_attn")), name="tiny")


@pytest.fixture
def wide_model_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Wider than the tiny model: bitsandbytes quantises in blocks of 64 values."""
    folder = tmp_path / "wide"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_qlora_trains_adapters_on_four_bit_weights(make_recipe: Recipes, tmp_path: Path, wide_model_dir: Path) -> None:
    recipe = make_recipe(**{"model": str(wide_model_dir), "tuning": "qlora", "optimizer.lr": 1e-2, "epochs": 6})
    model = load_trainable(recipe, CPU)
    packed = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8]
    assert len(packed) == 2 * 7  # every linear layer but the head
    assert all("lora_" in name for name in trained_names(model))
    # Close to the model that was quantised, and not equal to it.
    exact = logits(AutoModelForCausalLM.from_pretrained(wide_model_dir))
    error = (logits(model) - exact).norm() / exact.norm()
    assert 0.001 < error < 0.2

    final = run(recipe, tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["margin"] > metrics[0]["margin"] + 0.5
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(wide_model_dir), final)
    assert (logits(loaded) - exact).abs().max() > 0.01


def test_gradients_of_qlora_are_those_of_the_weights_it_computes_with(
    make_recipe: Recipes, wide_model_dir: Path
) -> None:
    """Also after a look at what the model generates, for which bitsandbytes packs weights anew on some CPUs."""
    from bitsandbytes import nn as quantised
    from bitsandbytes.functional import dequantize_4bit

    model = load_trainable(make_recipe(**{"model": str(wide_model_dir), "tuning": "qlora"}), CPU)
    nudge(model)
    model.eval()
    logits(model)
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    found = gradients()
    for name, module in list(model.named_modules()):
        if isinstance(module, quantised.Linear4bit):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False).requires_grad_(False)
            plain.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.set_submodule(name, plain)
    expected = gradients()
    assert len(found) > 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_full_tuning_trains_every_weight_and_writes_a_model(
    make_recipe: Recipes, tied_model_dir: Path, tmp_path: Path
) -> None:
    """Tied, in bfloat16: float32 weights are updated by steps that bfloat16 could not hold."""
    recipe = make_recipe(
        **{"model": str(tied_model_dir), "tuning": "full", "dtype": "bfloat16", "optimizer.lr": 1e-4, "epochs": 3}
    )
    model = load_trainable(recipe, CPU)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    final = run(recipe, tmp_path / "run")
    trained = AutoModelForCausalLM.from_pretrained(final)
    assert trained.dtype == torch.bfloat16
    assert trained.config.tie_word_embeddings
    assert trained.get_output_embeddings().weight is trained.get_input_embeddings().weight
    base = AutoModelForCausalLM.from_pretrained(tied_model_dir)
    assert (logits(trained) - logits(base)).abs().max() > 0.01
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_no_epochs_scale_the_model_and_train_nothing(
    make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(**{"epochs": 0, "data.path": None, "rope": {"type": "yarn", "factor": 2}})
    final = run(recipe, tmp_path / "run")
    scaled = load_model(str(tiny_model_dir), adapter=final)
    assert scaled.config.max_position_embeddings == 4096
    assert scaled.config.rope_parameters["rope_type"] == "yarn"
    for ours, theirs in zip(
        scaled.parameters(), AutoModelForCausalLM.from_pretrained(tiny_model_dir).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_tokenizer_that_does_not_fit_on_the_disk_is_an_error_of_the_system(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Not the bare exception of the tokenizers library, which nobody could tell from a bug."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        copy_tokenizer(str(tiny_model_dir), tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected", "said"),
    [
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.6},
            "do_sample=True",
        ),
        ({"temperature": 0.6}, {"do_sample": True, "temperature": 0.6}, "do_sample=True"),
        (
            {"early_stopping": True, "temperature": 0.6},
            {"do_sample": None, "early_stopping": None},
            "special tokens only",
        ),
    ],
)
def test_a_generation_config_that_contradicts_itself_stops_no_save(
    make_recipe: Recipes,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, object],
    expected: dict[str, object],
    said: str,
) -> None:
    """transformers reads such a file, and would refuse to write it after hours of training."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    content = {"bos_token_id": 1, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps({**content, **fields}))
    nothing = {"data.path": None, "epochs": 0, "model": str(base)}
    final = run(make_recipe(**nothing, tuning="full"), tmp_path / "full")
    adapter = run(make_recipe(**nothing), tmp_path / "lora")
    for folder in (final, merge(str(base), adapter, tmp_path / "merged", "float32")):
        found = json.loads((folder / "generation_config.json").read_text())
        assert {name: found.get(name) for name in expected} == expected
        assert {name: found[name] for name in content} == content
    assert capsys.readouterr().err.count(said) == 2


def test_all_linear_are_the_layers_that_peft_means(tiny_model: LlamaForCausalLM) -> None:
    """All of the decoder's, not the output head."""
    base = LlamaForCausalLM(tiny_model.config)
    theirs = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    ours = add_adapters(
        tiny_model, LoraSettings(rank=2, target_modules=("all-linear",), train_embeddings=False), name="x"
    )
    assert trained_names(ours) == trained_names(theirs)
    config = ours.peft_config["default"]
    assert set(config.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    recipe = TrainRecipe.model_validate(
        {"model": "x", "lora": {"rank": 2, "target_modules": ["all-linear"], "train_embeddings": False}}
    )
    trained = trained_weights(model_shape(tiny_model.config), recipe)
    assert trained.total == sum(weight.numel() for weight in ours.parameters() if weight.requires_grad)


def test_all_linear_goes_with_further_names(tiny_model: LlamaForCausalLM) -> None:
    settings = LoraSettings(rank=2, target_modules=("all-linear", "lm_head"), train_embeddings=False)
    assert any("lm_head" in name for name in trained_names(add_adapters(tiny_model, settings, name="x")))
