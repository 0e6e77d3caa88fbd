"""Adapters on a frozen base: what is trained, in which type, and that the start equals the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logotrain.checkpoint import export
from logotrain.model import add_adapters, load_trainable
from logotrain.parallel import World
from logotrain.recipe import LoraSettings, TrainRecipe

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


def test_refuses_before_the_weights_are_read(make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A model folder with only a config: the refusal must come first."""
    config = LlamaConfig.from_pretrained(tiny_model_dir)
    config.attention_dropout = 0.1
    config.save_pretrained(tmp_path / "config-only")
    with pytest.raises(UserError, match="attention_dropout"):
        load_trainable(make_recipe(model=str(tmp_path / "config-only")), CPU)
