"""Scaled frequencies against the papers' formulas in float64, through transformers' own rotary embedding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from logodata.common.errors import UserError
from logotrain.model.rope import own_rope, scaled_config
from logotrain.recipe.settings import RopeSettings

THETA, WINDOW, DIMENSION = 500000.0, 8192, 128


def llama(**changes: Any) -> LlamaConfig:
    """The heads of Llama-3-8B on a small model."""
    settings: dict[str, Any] = {
        "hidden_size": 2 * DIMENSION,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "max_position_embeddings": WINDOW,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    }
    return LlamaConfig(**{**settings, **changes})


def scaled(config: PreTrainedConfig, kind: str, factor: float) -> PreTrainedConfig:
    return scaled_config(config, RopeSettings.model_validate({"type": kind, "factor": factor}))


def plain(theta: float = THETA, dimension: int = DIMENSION) -> np.ndarray:
    return theta ** (-np.arange(0, dimension, 2, dtype=np.float64) / dimension)


def yarn(factor: float, window: int = WINDOW) -> np.ndarray:
    """YaRN section 3.2: mix by r = window / wavelength; ramp ends rounded outwards to dimensions, as in its code."""
    frequencies = plain()

    def dimension_that_turns(times: float) -> float:
        return DIMENSION * math.log(window / (times * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = math.floor(dimension_that_turns(32)), math.ceil(dimension_that_turns(1))
    interpolated = np.clip((np.arange(DIMENSION // 2) - low) / (high - low), 0, 1)
    return frequencies / factor * interpolated + frequencies * (1 - interpolated)


@pytest.mark.parametrize("factor", [2.0, 8.0, 7.8125])
@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_frequencies_and_attention_factor(kind: str, factor: float) -> None:
    expected = {
        "linear": plain() / factor,
        "ntk": plain(THETA * factor ** (DIMENSION / (DIMENSION - 2))),
        "yarn": yarn(factor),
    }[kind]
    config = scaled(llama(), kind, factor)
    assert config.max_position_embeddings == WINDOW * factor
    assert isinstance(config.max_position_embeddings, int)
    embedding = LlamaRotaryEmbedding(config)
    np.testing.assert_allclose(embedding.inv_freq.double().numpy(), expected, rtol=1e-5)
    attention_factor = 0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0
    assert embedding.attention_scaling == pytest.approx(attention_factor, rel=1e-9)


def test_ntk_keeps_the_highest_frequency_and_interpolates_the_lowest() -> None:
    before = LlamaRotaryEmbedding(llama()).inv_freq
    after = LlamaRotaryEmbedding(scaled(llama(), "ntk", 8)).inv_freq
    assert after[0] == before[0]
    assert float(before[-1] / after[-1]) == pytest.approx(8, rel=1e-5)


def test_yarn_keeps_fast_frequencies_and_interpolates_slow_ones() -> None:
    """By counted turns within the old window, as the paper states it; not the code's ramp over dimensions."""
    ratio = LlamaRotaryEmbedding(scaled(llama(), "yarn", 8)).inv_freq.double().numpy() / plain()
    turns = WINDOW * plain() / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1, rtol=1e-5)
    np.testing.assert_allclose(ratio[turns < 0.8], 1 / 8, rtol=1e-5)
    assert (np.diff(ratio) <= 1e-6).all()


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_positions_of_a_bfloat16_model_are_computed_in_float32(kind: str) -> None:
    """At position 80,000 bfloat16 steps are 512 wide: only the finished cos and sin may be rounded to it."""
    config = scaled(llama(), kind, 10)
    positions = torch.tensor([[0, 1, 4095, 8191, 65537, 79999, 81919]])
    embedding = LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1, dtype=torch.bfloat16), positions)
    assert cos.dtype == sin.dtype == torch.bfloat16
    angles = positions[0].double()[:, None] * embedding.inv_freq.double()
    for found, function in ((cos, torch.cos), (sin, torch.sin)):
        wanted = (function(angles) * embedding.attention_scaling).repeat(1, 2)
        torch.testing.assert_close(found[0].double(), wanted, rtol=2**-8, atol=0.01)


def test_the_config_given_is_left_alone() -> None:
    config = llama()
    before = config.to_dict()
    copied = scaled_config(config, None)
    assert copied is not config
    assert copied.to_dict() == before
    scaled(config, "yarn", 4)
    assert config.to_dict() == before


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_survives_saving(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = scaled(llama(), kind, 8)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters == config.rope_parameters
    assert loaded.max_position_embeddings == WINDOW * 8
    assert torch.equal(LlamaRotaryEmbedding(loaded).inv_freq, LlamaRotaryEmbedding(config).inv_freq)
    assert not caplog.records  # transformers checks the parameters and only warns


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}])
def test_legacy_config_files(scaling: Any, tmp_path: Path) -> None:
    """As model folders of transformers 4 write it: ``rope_theta`` and ``rope_scaling`` at the top."""
    content = {**llama().to_dict(), "rope_theta": 1e6, "rope_scaling": scaling}
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = scaled(AutoConfig.from_pretrained(tmp_path), "yarn", 4)
    assert config.rope_parameters == config.rope_scaling
    assert config.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": WINDOW,
    }


@pytest.mark.parametrize("family", [MistralConfig, Qwen2Config, Qwen3Config])
def test_other_families(family: type[PreTrainedConfig]) -> None:
    """head_dim is read where it stands: Qwen3's differs from hidden_size / heads, Qwen2 has none."""
    config = family(hidden_size=64, num_attention_heads=8, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    dimension = 128 if family is Qwen3Config else 8
    theta = scaled(config, "ntk", 2).rope_parameters["rope_theta"]
    assert theta == pytest.approx(1e6 * 2 ** (dimension / (dimension - 2)))


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    ("changes", "factor", "message"),
    [
        ({"rope_parameters": LLAMA31}, 2, "'llama3' already"),
        (
            {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            2,
            "'dynamic'",
        ),
        (
            {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            2,
            "'linear'",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, 2, "only 0.5"),
        ({}, 1.3, "times the window of 8192 is 10649.6"),
        ({"max_position_embeddings": 10}, 1.15, "is 11.5"),
    ],
)
def test_refusals(changes: dict[str, Any], factor: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaled(llama(**changes), "yarn", factor)


def test_a_decimal_factor_is_taken_as_written() -> None:
    """1.1 times 2000 is 2200, though not in binary."""
    assert scaled(llama(max_position_embeddings=2000), "linear", 1.1).max_position_embeddings == 2200


def test_refuses_a_rope_that_differs_between_layers_and_none_at_all() -> None:
    from transformers import Gemma3TextConfig, GPT2Config

    for config in (Gemma3TextConfig(), GPT2Config()):
        with pytest.raises(UserError, match="no RoPE, or not the same in every layer"):
            scaled(config, "linear", 2)


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk"])
def test_a_scaled_model_computes_with_its_own_rope_for_a_while(kind: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(scaled(llama(), kind, 4)).eval()
    plain = LlamaForCausalLM(llama()).eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        own, before = plain(ids).logits, model(ids).logits
        with own_rope(model, llama()):
            assert torch.equal(model(ids).logits, own)
        assert torch.equal(model(ids).logits, before)
    assert (own - before).abs().max() > 1e-5


def test_a_model_without_frequencies_is_not_taken_for_unscaled() -> None:
    model = LlamaForCausalLM(llama())
    model.model.rotary_emb = torch.nn.Identity()
    with pytest.raises(UserError, match="LlamaForCausalLM keeps no RoPE frequencies"), own_rope(model, llama()):
        pass
