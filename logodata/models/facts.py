"""Facts about a model that results depend on: its window, its stop tokens, its kind of attention, its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.user_files import visible_files
from logodata.models.embedded import (
    GGUF_SHA256,
)
from logodata.models.loading import EMBEDDED, load_config, resolve_model
from logodata.models.text_config import config_window, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def model_window(name: str, adapter: Path | None = None) -> int:
    """:func:`config_window` of the model of this name, or what it was extended to when ``adapter`` was trained.

    Raises:
        UserError: there is no such model or adapter, or its config says nothing of positions.
    """
    return config_window(load_config(name, adapter=adapter))


def model_eos_ids(name: str) -> tuple[int, ...]:
    """Ids at which the model's generation config stops; empty where there is none."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(resolve_model(name)).eos_token_id
    except OSError:
        return ()
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def length_dependent_rope(config: PreTrainedConfig) -> str | None:
    """The RoPE type, if its frequencies depend on the length of what is read (``dynamic``, ``longrope``), else None.

    Under such a type a token's states change with what follows it in a row or stands beside it in a batch, so shared
    prompts, batches of unequal rows and one-pass perplexity curves would not equal separate runs.
    """
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            return str(parameters["rope_type"])
    return None


def limited_attention(config: PreTrainedConfig) -> list[str]:
    """Kinds of the model's layers that do not attend to everything before them, such as ``sliding_attention``."""
    config = text_config(config)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    return sorted(kinds - {"full_attention"})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary: two tokenizers with the same one give ids that mean the same."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode("utf-8")).hexdigest()[:16]


@cache
def model_fingerprint(name: str) -> str:
    """What identifies a model's weights in manifests and caches.

    The embedded model: its GGUF's hash. A folder: hash over the names, sizes and headers of its safetensors files and
    its ``config.json`` (a full hash of 100 GB would take minutes). A hub name: the commit, where transformers tells it.
    """
    if name == EMBEDDED:
        return GGUF_SHA256[:16]
    path = Path(resolve_model(name))
    if not path.is_dir():
        commit: Any = getattr(load_config(name), "_commit_hash", None)
        return f"{name}@{commit or 'unknown'}"
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(visible_files(path, (".safetensors",), below=False)):
        with open(file, "rb") as handle:
            # The first megabyte covers the header; the middle and the end tell fine-tuned copies apart.
            for offset in (0, file.stat().st_size // 2, max(file.stat().st_size - 2**20, 0)):
                handle.seek(offset)
                digest.update(handle.read(2**20))
        digest.update(os.fsencode(f"{file.name}:{file.stat().st_size}"))
    return digest.hexdigest()[:16]
