"""Adapters of a model in training, and its token embedding where that is trained beside them."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from logodata.common.console import note
from logotrain.model.targets import adapter_targets
from logotrain.recipe.settings import LoraSettings


def add_adapters(base: PreTrainedModel, settings: LoraSettings, *, name: str) -> PeftModel:
    """Freeze ``base`` and put float32 adapters into it, whose config calls the base model ``name``.

    Raises:
        UserError: see :func:`logotrain.model.targets.adapter_targets`.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    dtype, tied = embedding.weight.dtype, embedding.weight is head.weight
    linears = {
        path.rpartition(".")[2]
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    targets, train_embedding = adapter_targets(settings, linears, _name_of(base, head), tied=tied, where=name)
    if settings.train_embeddings == "auto":
        reason = "it is tied to the output head" if tied else "as in the paper"
        note(f"token embedding {'trained' if train_embedding else 'frozen'}: {reason} (lora.train_embeddings=auto)")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        modules_to_save=[_name_of(base, embedding)] if train_embedding else None,
        ensure_weight_tying=train_embedding and tied,
    )
    with warnings.catch_warnings():
        # PEFT warns of merging into tied weights. They are parted before that.
        warnings.filterwarnings("ignore", message=".*(tied|tying)", category=UserWarning)
        model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = name  # get_peft_model puts the resolved folder here
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if train_embedding:
        # The embedding is float32 and the layers may be bfloat16: its output is cast, and the input of a tied head.
        model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
        if tied:
            model.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    return model


def _name_of(base: nn.Module, wanted: nn.Module) -> str:
    return next(path.rpartition(".")[2] for path, module in base.named_modules() if module is wanted)
