"""The model to train: a frozen base with adapters (and the token embedding where that is wanted), or all of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from logodata.common.console import note, progress
from logodata.models import load_config, load_model, load_tokenizer
from logotrain.recipe import LoraSettings, TrainRecipe
from logotrain.rope import scaled_config
from logotrain.shape import check_adapters
from logotrain.shared_prefix import check_config
from logotrain.trainable import noise_settings


def load_trainable(recipe: TrainRecipe, device: torch.device) -> PreTrainedModel | PeftModel:
    """The model as training starts: with fresh adapters, which change nothing yet, or with all its weights trained.

    Trained weights are float32; frozen ones have ``recipe.dtype``. It is in evaluation mode and stays there
    (:class:`logotrain.logprobs.LogprobModel`); what that turns off is said.

    Raises:
        UserError: the model cannot be loaded, its attention cannot be shared, or a target module is not in it.
    """
    config = scaled_config(load_config(recipe.model), recipe.rope)
    check_config(config)  # before gigabytes of weights are read
    dtype = "float32" if recipe.tuning == "full" else recipe.dtype
    with progress("weights read", 1) as bar:
        base = load_model(
            recipe.model, config=config, dtype=dtype, device=str(device), four_bits=recipe.tuning == "qlora"
        )
        bar.advance()
    base.config.use_cache = False
    if recipe.tuning == "qlora":
        _keep_differentiable(base)
    torch.manual_seed(recipe.seed)
    model = base if recipe.tuning == "full" else add_adapters(base, recipe.lora, name=recipe.model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    note(f"{recipe.model}: {trained:,} of {base.num_parameters():,} weights are trained")
    if noise := noise_settings(base):
        fields = ", ".join(f"{field}={value:g}" for field, value in noise.items())
        note(f"{recipe.model}: dropout and jitter are off in training, policy and reference are one function: {fields}")
    return model.eval()


def _keep_differentiable(base: PreTrainedModel) -> None:
    """Keep weights of 4 bits in the layout that has a backward pass.

    On a CPU with AVX512-BF16 bitsandbytes packs them anew at the first forward in evaluation mode, such as a look at
    what the model generates, and for good: gradients of all later steps end there, and only a warning says so.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # bitsandbytes adds it


def save_model(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """``save_pretrained``, which no ``generation_config.json`` of the base model can stop.

    transformers reads one whose fields contradict each other, and refuses to write it. Sampling fields without
    ``do_sample`` are common: they are written with it. Of any other such file the special tokens are kept.

    Args:
        model: to write.
        folder: for its files.
        options: of ``save_pretrained``.

    Raises:
        OSError, SafetensorError: the folder cannot be written.
    """
    generation: GenerationConfig = model.generation_config
    fault = _contradiction(generation)
    if fault:
        before, generation.do_sample = generation.do_sample, True
        if not _contradiction(generation):
            note(f"generation_config.json has sampling fields and do_sample={before}: written with do_sample=True")
        else:
            tokens = {name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id")}
            model.generation_config = GenerationConfig(**tokens)
            note(f"generation_config.json is written with its special tokens only: {fault}")
    model.save_pretrained(folder, **options)


def _contradiction(generation: GenerationConfig) -> str:
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


def copy_tokenizer(name: str, folder: Path) -> None:
    """Write the tokenizer of the model ``name`` into ``folder``.

    Raises:
        OSError: the folder cannot be written.
    """
    tokenizer = load_tokenizer(name, needs_template=False)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # a full disk, as the tokenizers library says it


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
