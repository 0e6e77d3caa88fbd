"""Tiny models of many kinds, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from logodata.models.loading import model_class

VOCABULARY = 269

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""Fields of a tiny config, by the names that most models share."""


SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

QWEN_VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"text_config": {**SIZES, **SLIDING}, "vision_config": VISION}),
    "gpt_oss": ("gpt_oss", {**SIZES, **SLIDING, **EXPERTS}),
    "qwen3_5": ("qwen3_5_text", {**SIZES, **LINEAR}),
    "olmo3": ("olmo3", {**SIZES, **SLIDING}),
    "granite": ("granite", {**SIZES, "logits_scaling": 8.0, "attention_multiplier": 0.3}),
    "cohere2": ("cohere2", {**SIZES, **SLIDING}),
    "seed_oss": ("seed_oss", SIZES),
    "llama4": (
        "llama4_text",
        {**SIZES, **EXPERTS, "attention_chunk_size": 8, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    ),
    "falcon_h1": ("falcon_h1", {**SIZES, **MAMBA}),
    "deepseek_v3": ("deepseek_v3", {**SIZES, **MLA}),
    "gemma2": ("gemma2", {**SIZES, **SLIDING}),
    "mixtral": ("mixtral", {**SIZES, **EXPERTS, "sliding_window": None}),
    "stablelm": ("stablelm", SIZES),
    "bloom": (
        "bloom",
        {"vocab_size": 269, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_position_embeddings": 256},
    ),
    "llava": (
        "llava",
        {
            "text_config": {"model_type": "llama", **SIZES},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
    ),
    "mistral3": (
        "mistral3",
        {
            "text_config": {"model_type": "mistral", **SIZES, "sliding_window": None},
            "vision_config": {"model_type": "pixtral", **VISION},
        },
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {"text_config": {**SIZES, "rope_parameters": QWEN_ROPE}, "vision_config": QWEN_VISION},
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {
            "text_config": {**SIZES, "rope_parameters": QWEN_ROPE},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        },
    ),
    "mistral": ("mistral", {**SIZES, "sliding_window": 8}),
}
"""The kind of config and its fields."""


def make_tiny(name: str, **more: Any) -> PreTrainedModel:
    """One of :data:`MODELS`, or of a kind of config with the fields ``more``."""
    kind, fields = MODELS.get(name, (name, {}))
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**fields, **more})
    model: PreTrainedModel = model_class(config).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save_tiny(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """Write it as a model folder."""
    make_tiny(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
