"""The finished model: an adapter as PEFT and vLLM load it, or a model folder as transformers does."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from logodata.common.console import note
from logodata.common.errors import UserError, pass_on
from logodata.common.files import read_json, seal, write_json
from logodata.models.adapters import write_base_config
from logodata.models.loading import load_tokenizer
from logotrain.parallel import World


def export(model: PreTrainedModel | PeftModel, folder: Path, world: World, *, name: str, dtype: torch.dtype) -> None:
    """Write the finished model to ``folder``, completely or not at all. All processes call this; the main one writes.

    It is an adapter in float32 that PEFT and vLLM load, with ``base_config.json``. After full tuning it is a model
    folder with weights in ``dtype`` and the tokenizer of ``name``, the model that the recipe names. The main process
    then holds the whole model in host memory, in ``dtype``; a weight at a time comes to it.

    Raises:
        UserError: the folder cannot be written.
    """
    scratch = folder.with_name(f".{folder.name}.tmp")
    adapter = Adapter.of(model, world)
    whole = {} if isinstance(model, PeftModel) else _whole_weights(model, world, dtype)

    def write() -> None:
        with explained_writes(folder):
            shutil.rmtree(scratch, ignore_errors=True)
            if adapter is not None:
                adapter.write(scratch)
            else:
                _write_model(model, whole, name, scratch, dtype)
            seal(scratch, folder)

    world.on_main(write)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A copy of a PEFT model's adapter in host memory, whole, as PEFT names and writes it.

    A module's state must not be asked for in the background: under sharding that changes the module, while it trains.
    """

    weights: dict[str, Tensor]
    config: PeftConfig
    base_config: PreTrainedConfig

    @staticmethod
    def of(model: PreTrainedModel | PeftModel, world: World) -> Adapter | None:
        """Return the copy on the main process, and None on the others and for a model without an adapter.

        All processes call this together.
        """
        if not isinstance(model, PeftModel):
            return None
        copies: dict[str, Tensor] = {}
        for name, parameter in trained_parameters(model).items():
            value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if world.is_main:
                copies[name] = value.detach().to("cpu", copy=True)
        if not world.is_main:
            return None
        # The vocabulary is never resized; "auto" would ask the hub about it.
        weights = get_peft_model_state_dict(model, state_dict=copies, save_embedding_layers=False)
        config: Any = copy.deepcopy(model.peft_config["default"])
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # PEFT writes a set in the order of its hashes
        if config.target_parameters:
            config.target_parameters = sorted(config.target_parameters)
        return Adapter(weights, config, model.get_base_model().config)

    def write(self, folder: Path) -> None:
        """Write ``adapter_config.json``, ``adapter_model.safetensors`` and ``base_config.json``."""
        folder.mkdir(parents=True)
        # Tied weights are one tensor under two names; a file holds each name's own.
        weights = {name: value.contiguous().clone() for name, value in self.weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(folder))
        write_base_config(folder, self.base_config)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name. A tied one stands under each of its names."""
    return {name: value for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}


def _whole_weights(model: PreTrainedModel, world: World, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights and saved buffers of a model on the main process, and nothing on the others.

    All processes call this together. Weights are rounded before they are gathered, which halves what is sent.
    """
    whole: dict[str, Tensor] = {}
    # A tied weight has several names; the file holds the first.
    names = {key for key, _ in model.named_parameters()} | {key for key, _ in model.named_buffers()}
    for name, value in model.state_dict().items():
        if name not in names:
            continue
        rounded = value.to(dtype) if value.is_floating_point() else value
        gathered = rounded.full_tensor() if isinstance(rounded, DTensor) else rounded
        if world.is_main:
            whole[name] = gathered.to("cpu")
    return whole


def _write_model(
    model: PreTrainedModel, weights: dict[str, Tensor], name: str, folder: Path, dtype: torch.dtype
) -> None:
    save_model(model, folder, state_dict=weights)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})
    copy_tokenizer(name, folder)


def save_model(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Call ``save_pretrained`` with a ``generation_config.json`` that it accepts.

    It refuses one whose fields contradict each other. Sampling fields without ``do_sample`` are common, and are written
    with it. Of any other such file only the special tokens are written.

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
    """Write the tokenizer of the model ``name`` into ``folder``; a failed write raises OSError."""
    tokenizer = load_tokenizer(name, needs_template=False)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # a full disk, as the tokenizers library says it


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    """Turn a failed write within the block into an error of one line.

    Raises:
        UserError: it names ``target`` and what the system said.
    """
    try:
        yield
    except (OSError, CheckpointException, SafetensorError) as error:
        pass_on(error)
        raise UserError(
            f"cannot write: {_reason(error)}", where=str(target), mend="free space, then run the same command again"
        ) from error


def _reason(error: BaseException) -> str:
    """Return what the system said. torch reports a traceback of every process; the first one's cause is taken."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{error}".splitlines()[0]
