"""Check that an adapter fits a model, and the program that will apply it, before any weights are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.errors import UserError
from logodata.common.verbosity import quiet_transformers
from logodata.models.adapters import check_adapter_shapes, read_peft_config
from logodata.models.loading import load_config, skeleton

if TYPE_CHECKING:
    from peft import PeftConfig

_PLAIN_FIELDS = {
    # vLLM reads these, or the adapter's tensors show them as well.
    *("r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    # These mean nothing once the adapter is trained.
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout"),
}
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the model's own weights as they are. PiSSA and others remove a part of
them."""


def check_adapter_fits(name: str, adapter: Path) -> list[str]:
    """Refuse an adapter that is damaged, lacks a tensor, holds one too many, or cannot be merged.

    It returns and raises what :func:`logodata.models.adapters.check_adapter_shapes` does.
    """
    quiet_transformers()
    return check_adapter_shapes(skeleton(load_config(name), name), adapter)


def check_served_whole(name: str, adapter: Path) -> None:
    """Refuse an adapter that vLLM, in this process or as a server, would apply only in part.

    vLLM adds the product of two matrices to a layer's weight, scaled by one number for all layers. It ignores whatever
    else the config says.

    Raises:
        UserError: See :func:`check_adapter_fits`; or the adapter has parts that vLLM ignores.
    """
    shared = check_adapter_fits(name, adapter)
    more = [*_beyond_plain_lora(read_peft_config(adapter)), *(f"{weight}, which two layers share" for weight in shared)]
    if more:
        what = f"vLLM applies plain LoRA only; this adapter has more: {', '.join(more)}"
        raise UserError(what, where=str(adapter), mend="merge it (logotrain merge), or use engine.kind=transformers")


def _beyond_plain_lora(config: PeftConfig) -> list[str]:
    from peft import LoraConfig

    if type(config) is not LoraConfig:
        return [f"kind {getattr(config.peft_type, 'value', config.peft_type)}"]
    plain = LoraConfig()
    found = []
    for name in sorted({field.name for field in fields(config)} - _PLAIN_FIELDS):
        value, default = getattr(config, name), getattr(plain, name)
        if name == "init_lora_weights":
            if value not in _PLAIN_INITS:
                found.append(f"{name}={value}")
        elif value != default and (value or default):
            found.append(name)
    return found
