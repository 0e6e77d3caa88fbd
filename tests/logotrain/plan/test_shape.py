"""Sizes of every family: those of the model itself, or one line."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from logodata.common.errors import UserError
from logotrain.model.adapters import add_adapters
from logotrain.plan.shape import Experts, ModelShape, model_shape, trained_weights
from logotrain.recipe.settings import TrainRecipe

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_ff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("head_dim", "rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "layer_types": ["full_attention"] * 2,
}
LAYERS_OF_OTHER_KINDS = {
    "bamba", "dots3_note_text", "gemma4_assistant", "gpt_neo", "granitemoehybrid", "mamba2", "musicgen",
    "musicgen_melody", "zamba", "zamba2", "zaya",
}  # fmt: skip
"""Their configs cannot be made small by these fields; they are refused for other reasons."""

FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - LAYERS_OF_OTHER_KINDS)
DENSE = {
    "apertus", "arcee", "bitnet", "bloom", "codegen", "cohere", "diffllama", "ernie4_5", "exaone4", "falcon", "gemma",
    "gemma2", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "helium", "llama", "mistral", "mpt",
    "nemotron", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm",
    "starcoder2",
}  # fmt: skip
"""Families of equal layers: to refuse one of these would be a fault."""
OTHERS = {
    "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "flex_olmo", "gemma3_text", "gemma4_text", "glm4_moe", "gpt_oss",
    "granitemoe", "jetmoe", "kimi_linear", "lfm2", "llama4_text", "minimax", "mixtral", "olmo_hybrid", "olmoe",
    "phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next",
}  # fmt: skip
"""Mixtures of experts and models whose layers differ: to refuse one of these would be a fault, too."""
STATE_SPACES = {"falcon_h1", "falcon_mamba", "jamba", "mamba", "nemotron_h", "recurrent_gemma"}


def tiny(family: str, *, mixed: bool = False) -> PreTrainedConfig:
    """Return a small config of a family; with ``mixed`` its first layer has linear attention."""
    cls = CONFIG_MAPPING[family]
    known = set(cls().to_dict()) - set(cls.attribute_map)
    fields = {name: value for name, value in SIZES.items() if name in known}
    if mixed:
        fields["layer_types"] = ["linear_attention", "full_attention"]
    try:
        return cls(**fields)
    except Exception:  # some have kinds of layers of their own
        fields.pop("layer_types")
        return cls(**fields)


def shape_or_line(config: PreTrainedConfig) -> tuple[ModelShape | None, str]:
    try:
        return model_shape(config), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_is_that_of_the_model_or_one_line(family: str) -> None:
    config = tiny(family)
    if family in DENSE | OTHERS:
        shape = model_shape(config)
    else:
        shape, line = shape_or_line(config)
        assert family not in STATE_SPACES or shape is None
        if shape is None:
            assert re.search("not a decoder of attention layers|no decoder layers|cannot load the model", line)
            assert "\n" not in line
            return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    if family in DENSE:
        (layer,) = shape.layers
        assert layer.count == shape.num_layers == 2
        assert (shape.hidden, shape.vocabulary, shape.num_heads) == (32, 61, 4)
        assert layer.intermediate == (128 if family in ("bloom", "mpt") else 48)
        assert sum(linear.weights for linear in layer.linears) <= layer.token_weights <= layer.parameters
        assert layer.query_width == layer.output_width == 32
        assert 8 <= layer.key_width == layer.value_width <= 32
        assert layer.attends
        assert not layer.experts
        assert not shape.caveat


def test_kinds_of_layers() -> None:
    config = tiny("deepseek_v3")
    config.first_k_dense_replace, config.num_hidden_layers, config.v_head_dim = 1, 3, 6
    config.num_key_value_heads = config.num_attention_heads
    dense, mixture = model_shape(config).layers
    assert (dense.count, mixture.count) == (1, 2)
    assert dense.experts == ()
    assert mixture.experts == (
        Experts(4, chosen=2, intermediate=16, kept=3, weights=4 * 3 * 16 * 32, stacked=4 * 2 * 16 * 32, in_tiles=True),
    )
    assert {linear.name for linear in mixture.linears if linear.in_tiles} == {"gate_proj", "up_proj", "down_proj"}
    assert dense.mlp_in_tiles
    assert mixture.mlp_in_tiles
    assert mixture.intermediate == 16, "the shared expert"
    assert (mixture.query_width, mixture.key_width, mixture.value_width, mixture.output_width) == (64, 64, 24, 24)


@pytest.mark.parametrize(
    ("family", "chosen", "intermediate", "kept"),
    [("mixtral", 2, 48, 3), ("gpt_oss", 2, 48, 6), ("qwen3_moe", 2, 16, 3), ("jetmoe", 2, 48, 3)],
)
def test_experts(family: str, chosen: int, intermediate: int, kept: int) -> None:
    (layer,) = model_shape(tiny(family)).layers
    found = layer.experts[0]
    assert (found.chosen, found.intermediate, found.kept) == (chosen, intermediate, kept)


def test_a_layer_with_a_state_is_no_attention() -> None:
    shape = model_shape(tiny("qwen3_5_text", mixed=True))
    assert [layer.attends for layer in shape.layers] == [False, True]
    assert shape.caveat == "a rough estimate: 1 of 2 layers have no attention to tokens"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "qwen3_5_text"])
def test_adapters_are_counted_in_every_layer(family: str) -> None:
    config = tiny(family, mixed=family == "qwen3_5_text")
    recipe = TrainRecipe.model_validate({"model": "m"})
    adapted = add_adapters(AutoModelForCausalLM.from_config(config), recipe.lora, name="m")
    counted = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained_weights(model_shape(config), recipe).total == counted


@pytest.mark.parametrize("target", ["c_attn", "all-linear"])
def test_what_takes_no_adapter_is_refused_by_plan_and_training_in_one_line(target: str) -> None:
    config = tiny("gpt2")  # its Conv1D are no linear layers
    recipe = TrainRecipe.model_validate({"model": "m", "lora": {"target_modules": [target]}})
    with pytest.raises(UserError, match=f"no layer '{target}' in the model") as planned:
        trained_weights(model_shape(config), recipe)
    with pytest.raises(UserError) as trained:
        add_adapters(AutoModelForCausalLM.from_config(config), recipe.lora, name="m")
    assert str(planned.value) == str(trained.value)
