"""Write docs/models.md: how each model of the installed transformers trains. ``python -m tests.models_page``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from logodata.common.errors import UserError
from logodata.models.loading import empty_model
from logodata.models.logprobs import decoder_of
from logodata.models.tiny import small_configs
from logotrain.attention.choice import Traits
from logotrain.model.targets import adapter_targets
from logotrain.recipe.settings import LoraSettings
from logotrain.trainable import read_traits

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START = "<!-- written by tests/models_page.py -->"

FIELDS: dict[str, dict[str, Any]] = {
    "dots1": {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""Fields of configs whose defaults describe no model."""

WORDS = {"sliding": "windows", "chunked": "chunks", "softcap": "capped scores", "sinks": "sinks"}


def kinds() -> list[str]:
    """Every kind of causal language model, and of model of images and text."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def config_of(kind: str) -> PreTrainedConfig:
    """The default config of a kind, as a decoder."""
    config = AutoConfig.for_model(kind, **FIELDS.get(kind, {}))
    if getattr(config, "is_decoder", True) is False:
        config.is_decoder = True
    return config


def row(kind: str) -> str:
    """The line of the table."""
    try:
        config = config_of(kind)
    except Exception:  # each config has its own for what it lacks
        return f"| `{kind}` | not tried: its default config describes no model | | |"
    try:
        traits = read_traits(config)
    except UserError as error:
        if error.what.startswith("transformers has no causal language model"):
            return f"| `{kind}` | no causal language model: an encoder and a decoder | | |"
        return f"| `{kind}` | refused: {error.what} | | |"
    if traits.obstacle.startswith("no small copy"):
        return f"| `{kind}` | separate rows: its default config gives no small copy to try | {targets(config)} | |"
    gaps = "" if traits.takes_gaps else "natural positions only"
    return f"| `{kind}` | {how(traits)} | {targets(config)} | {gaps} |"


def how(traits: Traits) -> str:
    """In words."""
    if traits.obstacle:
        return f"separate rows: {traits.obstacle}"
    return " with ".join(["shared", *filter(None, [", ".join(WORDS[name] for name in sorted(traits.features))])])


def targets(config: PreTrainedConfig) -> str:
    """The layers that get an adapter by default."""
    for small in small_configs(config):
        try:
            with torch.device("meta"):
                model = empty_model(small, "m")
        except UserError:
            continue
        head = model.get_output_embeddings()
        paths = [
            path
            for path, module in decoder_of(model).named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        try:
            found, _ = adapter_targets(LoraSettings(), paths, "lm_head", tied=False, where="m")
        except UserError:
            return "none by default"
        return " ".join(found)
    return ""


def main() -> None:
    """Rewrite the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    text = PAGE.read_text(encoding="utf-8")
    table = ["| kind | how it trains | adapters by default | |", "| --- | --- | --- | --- |"]
    for kind in kinds():
        table.append(row(kind))
        print(table[-1], file=sys.stderr, flush=True)
    before, _, rest = text.partition(START)
    _, heading, after = rest.partition("\n## ")
    PAGE.write_text(f"{before}{START}\n\n" + "\n".join(table) + f"\n{heading}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
