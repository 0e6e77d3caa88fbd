"""Adapters of a model in training: which layers get one, and whether the token embedding is trained beside them."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from logodata.common.console import note
from logodata.common.errors import UserError
from logotrain.recipe.settings import LoraSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def add_adapters(base: PreTrainedModel, settings: LoraSettings, *, name: str) -> PeftModel:
    """Freeze ``base`` and put float32 adapters into it. ``name`` is what the saved adapter will call its base model."""
    linears = {
        path.rpartition(".")[2]: module for path, module in base.named_modules() if isinstance(module, nn.Linear)
    }
    modules, head = set(linears), base.get_output_embeddings()
    targets = settings.targets(path for path, module in linears.items() if module is not head)
    embedding = base.get_input_embeddings()
    tied = embedding.weight is base.get_output_embeddings().weight
    check_adapters(settings, modules, _name_of(base, head), tied=tied, where=name)
    train_embeddings = not tied if settings.train_embeddings == "auto" else settings.train_embeddings
    if settings.train_embeddings == "auto":
        reason = "it is tied to the output head" if tied else "as in the paper"
        note(f"token embedding {'trained' if train_embeddings else 'frozen'}: {reason} (lora.train_embeddings=auto)")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        modules_to_save=[_name_of(base, embedding)] if train_embeddings else None,
        ensure_weight_tying=train_embeddings and tied,
    )
    dtype = embedding.weight.dtype
    with warnings.catch_warnings():
        # Of merging into tied weights: they are parted first.
        warnings.filterwarnings("ignore", message=".*(tied|tying)", category=UserWarning)
        model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = name  # get_peft_model puts the resolved folder here
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if train_embeddings:
        # A float32 embedding among bfloat16 layers: cast where it hands over.
        model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
        if tied:
            model.get_output_embeddings().register_forward_pre_hook(_to_weight_dtype)
    return model


def _to_weight_dtype(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)


def _name_of(base: nn.Module, wanted: nn.Module) -> str:
    return next(path.rpartition(".")[2] for path, module in base.named_modules() if module is wanted)


def check_adapters(settings: LoraSettings, linears: Collection[str], head: str, *, tied: bool, where: str) -> None:
    """Refuse adapters on layers that are not there, and on a tied output head whose embedding is trained as well.

    Args:
        settings: which layers get adapters.
        linears: names of the model's linear layers, the output head among them.
        head: its name.
        tied: whether embedding and output head are one weight.
        where: name of the model, for messages.

    Raises:
        UserError: see above.
    """
    targets = settings.targets(())
    missing = [target for target in targets if target not in linears]
    if missing:
        raise UserError(
            f"lora.target_modules: no layer {missing[0]!r} in the model",
            where=where,
            mend=f"its linear layers: {', '.join(sorted(linears))}",
        )
    if tied and head in targets and settings.train_embeddings is True:
        raise UserError(
            f"{head!r} is tied to the token embedding: it cannot get an adapter and be trained whole with it",
            where=where,
            mend=f"leave {head} out of lora.target_modules, or set lora.train_embeddings=false",
        )
