from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from logotrain.cli import main
from logotrain.recipe import TrainRecipe
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


def test_refusals(adapter: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert merge(adapter, tiny_model_dir, tmp_path / "there") == 2
    assert "exists already" in capsys.readouterr().err
    assert merge(tmp_path / "there", tiny_model_dir, tmp_path / "out") == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
