"""Shapes of the models that shipped recipes name, for plans and dry runs without the hub.

They are facts from the models' published configs, written by hand: enough to count weights, memory and positions, and
nothing else. Only ``logodata.models.loading.load_config(name, shapes_only=True)`` reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
_LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


# None of these models ties its output head to its embedding.
_SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        **_LLAMA_3_8B,
        "max_position_embeddings": 8192,
        "rope_parameters": _rope(500_000.0),
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA_3_8B,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "namespace-Pt/Llama-3-8B-Instruct-80K-QLoRA-Merged": {
        **_LLAMA_3_8B,
        "max_position_embeddings": 81920,
        "rope_parameters": _rope(200_000_000.0),
    },
    "meta-llama/Llama-2-7b-chat-hf": {
        **_LLAMA_2_7B,
        "max_position_embeddings": 4096,
        "rope_parameters": _rope(10_000.0),
    },
    # The published config asks for dynamic RoPE, which training refuses. Its author freezes that at 81920 positions and
    # factor 10 (FranxYao/Long-Context-Data-Engineering, issues 6 and 10), which is the fixed base here.
    "yaofu/llama-2-7b-80k": {
        **_LLAMA_2_7B,
        "max_position_embeddings": 81920,
        "rope_parameters": _rope(10_000.0 * (10 * 81920 / 4096 - 9) ** (128 / 126)),
    },
    "mistralai/Mistral-7B-Instruct-v0.2": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "sliding_window": None,
        "max_position_embeddings": 32768,
        "rope_parameters": _rope(1_000_000.0),
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_parameters": _rope(1_000_000.0),
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rope_parameters": _rope(1_000_000.0),
    },
}


def known_shapes(name: str) -> PreTrainedConfig | None:
    """Return a config with the shapes of a hub model; None if the model is not in the table."""
    from transformers import AutoConfig

    facts = _SHAPES.get(name)
    if facts is None:
        return None
    # A copy: a config completes its rope parameters in place.
    rope = dict(facts["rope_parameters"])
    return AutoConfig.for_model(**{"tie_word_embeddings": False, **facts, "rope_parameters": rope})
