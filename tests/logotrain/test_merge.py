from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from logodata.models import write_base_config
from logotrain.cli import main
from logotrain.recipe import RopeSettings, TrainRecipe
from logotrain.rope import scaled_config
from logotrain.run import run


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


def test_refusals(adapter: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert merge(adapter, tiny_model_dir, tmp_path / "there") == 2
    assert "exists already" in capsys.readouterr().err
    assert merge(tmp_path / "there", tiny_model_dir, tmp_path / "out") == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
