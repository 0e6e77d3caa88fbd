"""Shapes of the models that shipped recipes name and of known others, for plans and dry runs without the hub.

They are facts from the models' published configs, written by hand: enough to count weights, memory and positions, and
nothing else. Only ``logodata.models.loading.load_config(name, shapes_only=True)`` reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _Shape(NamedTuple):
    """The config of a text model that does not tie its output head to its embedding."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rope: Mapping[str, Any] = {}
    """What the RoPE parameters hold besides theta."""
    others: Mapping[str, Any] = {}
    """Further fields of the config."""


_LLAMA_3_1_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The published config of yaofu/llama-2-7b-80k asks for dynamic RoPE, which training refuses. Its author freezes that at
# 81920 positions and factor 10 (FranxYao/Long-Context-Data-Engineering, issues 6 and 10), which is the fixed base here.
_LLAMA_2_80K_THETA = 10_000.0 * (10 * 81920 / 4096 - 9) ** (128 / 126)

_SHAPES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": _Shape("llama", 4096, 14336, 32, 32, 8, 128256, 8192, 500_000.0),
    "meta-llama/Llama-3.1-8B-Instruct": _Shape(
        "llama", 4096, 14336, 32, 32, 8, 128256, 131072, 500_000.0, _LLAMA_3_1_ROPE
    ),
    "meta-llama/Meta-Llama-3-70B-Instruct": _Shape("llama", 8192, 28672, 80, 64, 8, 128256, 8192, 500_000.0),
    "meta-llama/Llama-3.1-70B-Instruct": _Shape(
        "llama", 8192, 28672, 80, 64, 8, 128256, 131072, 500_000.0, _LLAMA_3_1_ROPE
    ),
    "meta-llama/Llama-3.3-70B-Instruct": _Shape(
        "llama", 8192, 28672, 80, 64, 8, 128256, 131072, 500_000.0, _LLAMA_3_1_ROPE
    ),
    "namespace-Pt/Llama-3-8B-Instruct-80K-QLoRA-Merged": _Shape(
        "llama", 4096, 14336, 32, 32, 8, 128256, 81920, 200_000_000.0
    ),
    "meta-llama/Llama-2-7b-chat-hf": _Shape("llama", 4096, 11008, 32, 32, 32, 32000, 4096, 10_000.0),
    "yaofu/llama-2-7b-80k": _Shape("llama", 4096, 11008, 32, 32, 32, 32000, 81920, _LLAMA_2_80K_THETA),
    "mistralai/Mistral-7B-Instruct-v0.2": _Shape(
        "mistral", 4096, 14336, 32, 32, 8, 32000, 32768, 1_000_000.0, others={"sliding_window": None}
    ),
    "Qwen/Qwen3-8B": _Shape("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, 1_000_000.0, others={"head_dim": 128}),
    "Qwen/Qwen2.5-7B-Instruct": _Shape("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, 1_000_000.0),
    "Qwen/Qwen2.5-72B-Instruct": _Shape("qwen2", 8192, 29568, 80, 64, 8, 152064, 32768, 1_000_000.0),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _Shape(
        "mixtral",
        4096,
        14336,
        32,
        32,
        8,
        32000,
        32768,
        1_000_000.0,
        others={"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "Qwen/Qwen3-30B-A3B": _Shape(
        "qwen3_moe",
        2048,
        6144,
        48,
        32,
        4,
        151936,
        40960,
        1_000_000.0,
        others={"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
    ),
    "openai/gpt-oss-20b": _Shape(
        "gpt_oss",
        2880,
        2880,
        24,
        64,
        8,
        201088,
        131072,
        150_000.0,
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        {"head_dim": 64, "sliding_window": 128, "num_local_experts": 32, "num_experts_per_tok": 4},
    ),
}

_GEMMA_3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_WHOLE_CONFIGS: dict[str, dict[str, Any]] = {"google/gemma-3-27b-it": _GEMMA_3_27B}
"""Configs of models that also see."""


def known_shapes(name: str) -> PreTrainedConfig | None:
    """Return a config with the shapes of a hub model; None if the model is not in the table."""
    from transformers import AutoConfig

    if name in _WHOLE_CONFIGS:
        return AutoConfig.for_model(**copy.deepcopy(_WHOLE_CONFIGS[name]))
    if name not in _SHAPES:
        return None
    facts = _SHAPES[name]._asdict()
    rope = {"rope_type": "default", "rope_theta": facts.pop("rope_theta"), **facts.pop("rope")}
    return AutoConfig.for_model(tie_word_embeddings=False, rope_parameters=rope, **facts.pop("others"), **facts)
