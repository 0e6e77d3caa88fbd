"""Read the part of a model's config that describes its text decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a config that describes the text decoder. If the model also takes images or sound, it is the
    config inside its config; otherwise it is the config itself.

    Call this before reading a size, a window or a RoPE.

    Raises:
        UserError: The config holds several text models.
    """
    try:
        return config.get_text_config(decoder=True)
    except ValueError as error:
        mend = "take a model that writes text, such as Llama or Qwen"
        raise UserError("the model's config holds several text models", where=config_name(config), mend=mend) from error


def in_text_config(config: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of the text decoder's config as they lie in the whole config: as they are, or nested by the names
    of the configs around them, such as ``{"text_config": values}``."""
    inner = text_config(config)

    def nested(outer: PreTrainedConfig) -> dict[str, Any] | None:
        if outer is inner:
            return dict(values)
        for name, value in vars(outer).items():
            if hasattr(value, "get_text_config") and (found := nested(value)) is not None:
                return {name: found}
        return None

    return nested(config) or {}


def config_name(config: PreTrainedConfig) -> str:
    """Return what messages call the model of a config: its name or folder, or else its kind."""
    return str(config.name_or_path or config.model_type)


def config_window(config: PreTrainedConfig) -> int:
    """Return the number of positions that a model was made for (``max_position_embeddings``; the tokenizer's
    ``model_max_length`` is not reliable).

    Raises:
        UserError: The config does not give it.
    """
    window = getattr(text_config(config), "max_position_embeddings", None)
    if not isinstance(window, int):
        what = "the model's config does not give its window (max_position_embeddings)"
        raise UserError(what, where=config_name(config), mend="take a model that writes text, or add it to config.json")
    return window


def head_dim(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
