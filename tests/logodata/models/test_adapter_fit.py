"""Adapters against models that they were not made for; none of their weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import trained_on
from tests.conftest import make_model


@pytest.fixture
def make_adapter(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    from peft import LoraConfig, get_peft_model

    def make(*, lora: dict[str, Any] | None = None, **changes: Any) -> Path:
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **(lora or {})})
        model = get_peft_model(make_model(**{"vocab_size": len(tiny_tokenizer), **changes}), config)
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"layers_to_transform": [1]},
        {"target_modules": r".*\.1\.mlp\.up_proj"},
    ],
    ids=str,
)
def test_an_adapter_fits_its_own_model(
    lora: dict[str, Any], make_adapter: Callable[..., Path], tiny_model_dir: Path
) -> None:
    check_adapter_fits(str(tiny_model_dir), make_adapter(lora=lora))


@pytest.mark.parametrize(
    ("lora", "changes", "fault"),
    [
        ({}, {"hidden_size": 32}, r"q_proj\.lora_A\.weight has shape \[2, 32\], the model's \[2, 64\]"),
        ({}, {"num_key_value_heads": 4}, r"v_proj\.lora_B\.weight has shape \[64, 2\], the model's \[32, 2\]"),
        (
            {},
            {"num_hidden_layers": 3},
            r"the model has no place for .*layers\.2\.self_attn\.q_proj\.lora_A\.weight and 3 more",
        ),
        ({}, {"num_hidden_layers": 1}, r"its file lacks .*layers\.1\.self_attn\.q_proj\.lora_A\.weight and 3 more"),
        ({"target_modules": ["embed_tokens"]}, {"vocab_size": 300}, r"has shape \[2, 300\], the model's \[2, \d+\]"),
        ({"modules_to_save": ["embed_tokens"]}, {"vocab_size": 300}, r"has shape \[300, 64\], the model's \[\d+, 64\]"),
    ],
)
def test_another_models_adapter_is_refused(
    lora: dict[str, Any],
    changes: dict[str, Any],
    fault: str,
    make_adapter: Callable[..., Path],
    tiny_model_dir: Path,
) -> None:
    adapter = make_adapter(lora=lora, **changes)
    with pytest.raises(UserError, match=f"the adapter does not fit .*{fault}") as error:
        check_adapter_fits(str(tiny_model_dir), adapter)
    assert error.value.mend == "give the model that it was trained on, or save the adapter again"
    config = adapter / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "base_model_name_or_path": "org/other"}), encoding="utf-8")
    assert trained_on(adapter) == "org/other"
    with pytest.raises(UserError, match="give the model that it was trained on, org/other"):
        check_adapter_fits(str(tiny_model_dir), adapter)


def test_a_damaged_adapter_is_named(make_adapter: Callable[..., Path], tiny_model_dir: Path) -> None:
    adapter = make_adapter()
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot read"):
        check_adapter_fits(str(tiny_model_dir), adapter)
