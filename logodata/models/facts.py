"""Read facts about a model that results depend on: its window, stop tokens, kind of attention and fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.user_files import visible_files
from logodata.models.embedded import GGUF_SHA256
from logodata.models.loading import EMBEDDED, load_config, resolve_model
from logodata.models.text_config import config_window, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def model_window(name: str, adapter: Path | None = None) -> int:
    """Return :func:`config_window` of a model, or the window that it was extended to when ``adapter`` was trained.

    Raises:
        UserError: There is no such model or adapter, or its config gives no number of positions.
    """
    return config_window(load_config(name, adapter=adapter))


def model_eos_ids(name: str) -> tuple[int, ...]:
    """Return the ids at which the model's generation config stops; empty if there is no such config."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(resolve_model(name)).eos_token_id
    except OSError:
        return ()
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def limited_attention(config: PreTrainedConfig) -> list[str]:
    """Return the kinds of the model's layers that do not attend to all earlier tokens, such as
    ``sliding_attention``."""
    config = text_config(config)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    return sorted(kinds - {"full_attention"})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary. If two tokenizers have the same one, their ids mean the same."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode("utf-8")).hexdigest()[:16]


@cache
def model_fingerprint(name: str) -> str:
    """Return what identifies a model's weights in manifests and caches.

    For the embedded model it is the hash of its GGUF file. For a folder it is a hash over ``config.json`` and the
    names, sizes and three megabytes of each safetensors file (a full hash of 100 GB would take minutes). For a hub name
    it is the commit, if transformers tells it.
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
