"""Adapters of a model in training, and its token embedding where that is trained beside them."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import read_json
from logodata.models.adapters import BASE_CONFIG, fill_adapter, read_peft_config
from logodata.models.logprobs import decoder_of
from logodata.models.text_config import text_config
from logotrain.model.targets import adapter_parameters, adapter_targets
from logotrain.recipe.settings import LoraSettings


def add_adapters(base: PreTrainedModel, settings: LoraSettings, *, name: str) -> PeftModel:
    """Freeze ``base`` and put float32 adapters into it, whose config calls the base model ``name``.

    Raises:
        UserError: see :func:`logotrain.model.targets.adapter_targets`; or PEFT has no adapter for a layer.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    dtype, tied = embedding.weight.dtype, embedding.weight is head.weight
    modules = decoder_of(base).named_modules()
    linears = {path for path, module in modules if isinstance(module, nn.Linear) and module is not head}
    targets, train_embedding = adapter_targets(settings, linears, _name_of(base, head), tied=tied, where=name)
    parameters = adapter_parameters(settings, _parameters(base), where=name)
    if settings.train_embeddings == "auto":
        reason = "it is tied to the output head" if tied else "as in the paper"
        note(f"token embedding {'trained' if train_embedding else 'frozen'}: {reason} (lora.train_embeddings=auto)")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        target_modules=_in_decoder(targets, base),
        target_parameters=parameters or None,
        modules_to_save=[_name_of(base, embedding)] if train_embedding else None,
        ensure_weight_tying=train_embedding and tied,
    )
    with warnings.catch_warnings():
        # PEFT warns of merging into tied weights. They are parted before that.
        warnings.filterwarnings("ignore", message=".*(tied|tying)", category=UserWarning)
        # Of its own ranks for stacks that no layer has, after the redirection that is told below.
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match", category=RuntimeWarning)
        # PEFT 0.21 asks for what transformers 5.24 has under another name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            model = get_peft_model(base, config)
        except ValueError as error:  # a layer whose weights the model's own kernels read past the layer, as in Mamba
            refused = [target for target in targets if f"'{target}'" in str(error)]
            others = ",".join(target for target in targets if target not in refused)
            raise UserError(
                f"lora.target_modules: PEFT has no adapters for {', '.join(refused) or 'these layers'}: {error}",
                where=name,
                mend=f"leave them out: lora.target_modules=[{others}]" if refused and others else "name other layers",
            ) from error
    model.peft_config["default"].base_model_name_or_path = name  # get_peft_model puts the resolved folder here
    redirected = sorted({*(config.target_parameters or ())} - {*parameters})
    if redirected:
        note(
            f"adapters: PEFT gives those of {', '.join(sorted({*targets} - {*config.target_modules}))} to the weights "
            f"{', '.join(redirected)} of experts and routers; linear layers of these names get none"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if train_embedding:
        # The embedding is float32 and the layers may be bfloat16: its output is cast, and the input of a tied head.
        model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
        if tied:
            model.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    return model


_FIELDS = {
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
    "target_modules": "lora.target_modules",
    "target_parameters": "lora.target_parameters",
    "modules_to_save": "lora.train_embeddings",
}
"""Fields of an adapter's config, and ours that decide them."""


def start_from(model: PeftModel, folder: Path) -> None:
    """Copy the weights of another adapter of the same settings and the same RoPE into ``model``.

    Raises:
        UserError: the folder holds no such adapter.
    """
    theirs, ours = read_peft_config(folder), model.peft_config["default"]
    for field, name in _FIELDS.items():
        found, wanted = (_comparable(getattr(config, field, None)) for config in (theirs, ours))
        if found != wanted:
            raise UserError(
                f"lora.init_adapter: its {field} is {_shown(found)}, {name} makes it {_shown(wanted)}",
                where=str(folder),
                mend=f"set {name} as it was trained, or merge it first (logotrain merge)",
            )
    path = folder / BASE_CONFIG
    if path.exists():
        before, now = read_json(path), text_config(model.get_base_model().config).to_dict()
        rope = before.get("text_config", before).get("rope_parameters")
        if rope != json.loads(json.dumps(now.get("rope_parameters"))):
            raise UserError(
                "lora.init_adapter: it was trained with another RoPE",
                where=str(path),
                mend="set rope as it was trained, or merge it first (logotrain merge)",
            )
    fill_adapter(model, folder)
    note(f"adapters start from {folder}")


def _comparable(value: Any) -> Any:
    """Return a value of an adapter's config such that equal settings are equal; nothing is None however it is spelt."""
    if isinstance(value, list | tuple | set):
        return sorted(value) or None
    return value or None


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _parameters(base: PreTrainedModel) -> list[str]:
    """Return the names of the matrices and stacks of matrices in the decoder's layers that no linear layer holds."""
    return [
        f"{path}.{name}"
        for path, module in decoder_of(base).named_modules()
        if not isinstance(module, nn.Linear | nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim in (2, 3) and "bias" not in name
    ]


def _in_decoder(targets: list[str], base: PreTrainedModel) -> list[str] | str:
    """Return the targets for PEFT, as a pattern if parts of the model that see or hear have layers of these names."""
    paths = {module: path for path, module in base.named_modules()}
    decoder, head = paths[decoder_of(base)], paths[base.get_output_embeddings()]
    ours = re.compile(rf"(?:{re.escape(decoder)}\..*|{re.escape(head)})")
    others = {
        path.rpartition(".")[2]
        for module, path in paths.items()
        if isinstance(module, nn.Linear) and not ours.fullmatch(path)
    }
    if others.isdisjoint(targets):
        return targets
    names = "|".join(re.escape(name) for name in targets)
    return rf"(?:{re.escape(decoder)}\.(?:.*\.)?)?(?:{names})"


def _name_of(base: nn.Module, wanted: nn.Module) -> str:
    return next(path.rpartition(".")[2] for path, module in base.named_modules() if module is wanted)
