"""What an evaluation knows of its model before it loads weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaForCausalLM

from logodata.common.errors import UserError
from logodata.models import write_base_config
from logoeval.recipe import EvalRecipe
from logoeval.session import Session, adapter_fingerprint


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "final"))
    return tmp_path / "final"


def write_scaled(adapter: Path, model_dir: Path, factor: float) -> None:
    config = AutoConfig.from_pretrained(model_dir)
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": factor}
    config.max_position_embeddings = int(2048 * factor)
    write_base_config(adapter, config)


def test_the_window_is_that_of_the_adapter(adapter: Path, tiny_model_dir: Path) -> None:
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=adapter)
    assert Session(recipe).window == 2048
    write_scaled(adapter, tiny_model_dir, 4)
    assert Session(recipe).window == 8192
    Session(recipe).check_window(8192, "niah.lengths")
    with pytest.raises(UserError, match="needs 8193 positions, the model has 8192"):
        Session(recipe).check_window(8193, "niah.lengths")
    assert Session(recipe).model.config.max_position_embeddings == 8192
    assert Session(EvalRecipe(model=str(tiny_model_dir))).window == 2048


def test_the_fingerprint_tells_ropes_apart(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = {adapter_fingerprint(adapter)}
    for factor in (2, 4):
        write_scaled(adapter, tiny_model_dir, factor)
        found.add(adapter_fingerprint(adapter))
    assert len(found) == 3
    shutil.copytree(adapter, tmp_path / "copy")
    assert adapter_fingerprint(tmp_path / "copy") in found
    assert adapter_fingerprint(None) is None
    with pytest.raises(UserError, match="holds no adapter"):
        adapter_fingerprint(tmp_path)
