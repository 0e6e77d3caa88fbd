"""Rotary embeddings whose frequencies depend on the length of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logodata.models.text_config import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def length_dependent_rope(config: PreTrainedConfig) -> str | None:
    """Return the RoPE type if its frequencies depend on the length of the input (``dynamic``, ``longrope``), else None.

    Under such a type, a token's states change with what follows it in a row or stands beside it in a batch. So shared
    prompts, batches of unequal rows and one-pass perplexity curves would differ from separate runs.
    """
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            return str(parameters["rope_type"])
    return None


def reset_rope(model: PreTrainedModel) -> None:
    """Forget the lengths that a model has read. Frequencies of type ``dynamic`` stay at those of the longest row so far
    until a row within the original window comes."""
    import torch

    from logodata.models.logprobs import decoder_of

    if length_dependent_rope(model.config):
        with torch.inference_mode():
            decoder_of(model)(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
