"""Read adapters, and attach or merge them into a model: all of an adapter and nothing else.

PEFT takes what it finds. A tensor that its file lacks keeps its random values, a tensor that fits nowhere is ignored,
and merging into a weight that two layers share changes both. Here an adapter that is not whole or does not fit is
refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from logodata.common.errors import UserError, pass_on
from logodata.common.files import file_sha256, read_json, write_atomic

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files that make a folder an adapter."""

_PICKLE = "adapter_model.bin"
_SAVE = "save the adapter again"
_MISMATCH = re.compile(r"size mismatch for (?P<name>\S+): .*?Size\((?P<found>.*?)\).*Size\((?P<wanted>.*?)\)")


def check_adapter(folder: Path) -> None:
    """Raise a :class:`UserError` unless ``folder`` holds an adapter (config and safetensors)."""
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing == [ADAPTER_FILES[1]] and (folder / _PICKLE).is_file():
        what = f"no {ADAPTER_FILES[1]}, and {_PICKLE} is a pickle, which can run code and is never read"
        raise UserError(what, where=str(folder), mend=f"{_SAVE} as safetensors: PEFT's save_pretrained does")
    if missing:
        mend = "give RUN/final of a finished logotrain run"
        raise UserError(f"holds no adapter (no {missing[0]})", where=str(folder), mend=mend)


def adapter_fingerprint(adapter: Path | None) -> str | None:
    """Return a hash of an adapter's config and weights, and of the RoPE it was trained with; None for no adapter.

    Raises:
        UserError: There is no adapter in the folder.
    """
    if adapter is None:
        return None
    check_adapter(adapter)
    digest = hashlib.sha256()
    for file in (adapter / name for name in (*ADAPTER_FILES, BASE_CONFIG)):
        if file.is_file():  # adapters of other trainers have no base config
            digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()[:16]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return ``adapter_config.json`` of an adapter.

    Raises:
        UserError: ``folder`` holds no adapter, or its config is damaged.
    """
    check_adapter(folder)
    config = read_json(folder / ADAPTER_FILES[0])
    if not isinstance(config, dict):
        raise UserError("not an adapter's config", where=str(folder / ADAPTER_FILES[0]), mend="copy the adapter again")
    return config


def trained_on(folder: Path) -> str | None:
    """Return the name of the model that an adapter was trained on; None if its config does not tell.

    Raises:
        UserError: The folder holds no adapter, or its config is damaged.
    """
    name = read_adapter_config(folder).get("base_model_name_or_path")
    return str(name) if name else None


def attach_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the layers of an adapter into the model, beside its weights, and fill them with the adapter's tensors.

    Raises:
        UserError: The adapter is damaged, or of a kind that is more than layers. Or its file lacks a tensor, holds one
            that the model has no place for, or one of another shape.
    """
    config, tensors = read_peft_config(folder), _read_tensors(folder)
    with _as_user_error(folder):
        return _attach(model, config, tensors, folder).eval()


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the model, which is changed, with the adapter merged into its weights.

    The adapter stays beside quantised weights, because merging would round them again. A weight that an adapted layer
    shares with another one, such as the output head with the token embedding, is copied first: the adapter changes one
    of them.

    Raises:
        UserError: See :func:`attach_adapter`; or the adapter does not change weights.
    """
    wrapped = attach_adapter(model, folder)
    if getattr(model, "is_quantized", False):
        return model
    with warnings.catch_warnings(action="ignore"):
        return _merge(wrapped, folder).eval()


def check_adapter_shapes(skeleton: PreTrainedModel, folder: Path) -> list[str]:
    """Refuse what :func:`merge_adapter` would refuse, before weights are read.

    ``skeleton`` is the model on torch's device ``meta``, and is changed. The few kinds that compute with weights when
    they are created cannot be checked this way.

    Returns:
        Names of weights that the adapter changes and another layer shares.

    Raises:
        UserError: See :func:`merge_adapter`.
    """
    import torch

    config, tensors = read_peft_config(folder), _read_tensors(folder)
    unknown = sorted(name for name, value in read_adapter_config(folder).items() if value and not hasattr(config, name))
    if unknown:
        from logodata.common.console import note

        note(f"{folder}: this version of PEFT does not know {', '.join(unknown)} in the config, and ignores it")
    shared: list[str] = []
    with _as_user_error(folder), torch.device("meta"):
        try:
            tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
            wrapped = _attach(skeleton, config, tensors, folder, low_cpu_mem_usage=True)
            shared = sorted(weight.path for weight in _adapted(wrapped))
            _merge(wrapped, folder)
        except RuntimeError as error:
            if not _needs_values(error):
                raise
    return shared


def read_peft_config(folder: Path) -> PeftConfig:
    """Return the config of an adapter as PEFT reads it.

    Raises:
        UserError: It is damaged, or of a kind that does not change the model's layers, or changes them differently each
            time.
    """
    from peft import PeftConfig, PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    read_adapter_config(folder)
    with _as_user_error(folder):
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    # X-LoRA chooses among adapters in other folders, depending on its input.
    if not issubclass(tuner, BaseTuner) or config.peft_type == PeftType.XLORA:
        raise _no_weights(folder, config)
    start = str(getattr(config, "init_lora_weights", ""))
    if "_niter_" in start:
        what = f"init_lora_weights={start} removes another random part of the model's weights at each loading"
        mend = f"{_SAVE} with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA"
        raise UserError(what, where=str(folder), mend=mend)
    config.inference_mode = True
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_FILES[1]
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="copy the adapter again") from error
    if not tensors:
        raise UserError("holds no tensors", where=str(path), mend=_SAVE)
    for name, tensor in sorted(tensors.items()):
        if not tensor.numel():
            mend = f"{_SAVE}, with the weights gathered from all processes"
            raise UserError(f"{name} is empty (shape {list(tensor.shape)})", where=str(path), mend=mend)
        numbers = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite does not support float8
        if not torch.isfinite(numbers).all():
            raise UserError(f"{name} holds numbers that are not finite", where=str(path), mend=_SAVE)
    return tensors


def _attach(
    model: PreTrainedModel, config: PeftConfig, tensors: dict[str, Tensor], folder: Path, **options: Any
) -> PeftModel:
    """Give the model the adapter's layers, filled with its tensors."""
    from peft import PeftModel
    from peft.mapping_func import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    kind: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    wrapped: PeftModel = kind(model, config, **options)
    _fill(wrapped, tensors, folder)
    return wrapped


def fill_adapter(wrapped: PeftModel, folder: Path) -> None:
    """Copy the tensors of an adapter into the adapter layers that a model has already.

    Raises:
        UserError: See :func:`attach_adapter`.
    """
    read_peft_config(folder)
    tensors = _read_tensors(folder)
    with _as_user_error(folder):
        _fill(wrapped, tensors, folder)


def _fill(wrapped: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill the adapter's layers. A tensor that the model with this adapter would save, and that is not filled, is
    missing, whatever names an older PEFT wrote."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(wrapped, tensors)
    except KeyError as error:
        raise _does_not_fit(folder, f"its file lacks {error.args[0]}") from error
    state = wrapped.state_dict(keep_vars=True)
    unfilled = set(result.missing_keys)
    filled = {id(value) for name, value in state.items() if name not in unfilled}
    saved = get_peft_model_state_dict(wrapped, state_dict=state, save_embedding_layers=False)
    missing = [name for name, value in saved.items() if name not in tensors and id(value) not in filled]
    faults = {"its file lacks": missing, "the model has no place for": result.unexpected_keys}
    if missing or result.unexpected_keys:
        raise _does_not_fit(folder, "; ".join(f"{what} {some(names)}" for what, names in faults.items() if names))


def some(names: Sequence[str]) -> str:
    """Return the first of some names, in alphabetical order, with the number of the others."""
    return min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _does_not_fit(folder: Path, fault: str) -> UserError:
    base = trained_on(folder)
    return UserError(
        f"the adapter does not fit the model: {fault}",
        where=str(folder),
        mend=f"give the model that it was trained on{f', {base}' if base else ''}, or {_SAVE}",
    )


def _no_weights(folder: Path, config: PeftConfig, reason: str = "") -> UserError:
    kind = getattr(config.peft_type, "value", config.peft_type)
    return UserError(
        f"this adapter ({kind}) does not change the model's weights and cannot be merged{reason and f': {reason}'}",
        where=str(folder),
        mend="use it through PEFT itself, or train one that does, such as LoRA",
    )


def _merge(wrapped: PeftModel, folder: Path) -> PreTrainedModel:
    import torch

    _copy(_adapted(wrapped))
    try:
        merged: PreTrainedModel = wrapped.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        pass_on(error)
        if _needs_values(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, NotImplementedError):
            raise _no_weights(folder, wrapped.active_peft_config, reason) from error
        raise _does_not_fit(folder, reason) from error
    # Layers made of others (layer_replication) are ordinary layers now. The model itself ties the weights in its list.
    tied = {*merged.all_tied_weights_keys, *merged.all_tied_weights_keys.values()}
    _copy(shared for shared in _shared(merged) if shared.path not in tied)
    return merged


class _Shared(NamedTuple):
    """A parameter of a module that another module shares."""

    path: str
    module: nn.Module
    name: str


def _shared(model: nn.Module) -> list[_Shared]:
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return [
        _Shared(f"{path}.{name}", module, name)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if owners[id(parameter)] > 1
    ]


def _adapted(wrapped: PeftModel) -> list[_Shared]:
    """Return the shared parameters of layers that the adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in wrapped.modules() if isinstance(layer, BaseTunerLayer)]
    changed = {id(module) for layer in layers for module in layer.get_base_layer().modules()}
    return [shared for shared in _shared(wrapped) if id(shared.module) in changed]


def _copy(weights: Iterable[_Shared]) -> None:
    """Give each module a parameter of its own."""
    from torch import nn

    for _, module, name in weights:
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def _needs_values(error: Exception) -> bool:
    """Whether an error says that the device ``meta`` has no values to compute with. torch has no type for it."""
    return isinstance(error, RuntimeError) and "meta" in str(error).lower()


@contextmanager
def _as_user_error(folder: Path) -> Iterator[None]:
    """Turn any error of PEFT about an adapter, whose config may hold anything, into a :class:`UserError`."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT's are about what is checked here
            yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        pass_on(error)
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if mismatch := _MISMATCH.search(str(error)):
            name = mismatch["name"].replace(".default", "")
            said = f"{name} has shape {mismatch['found']}, the model's {mismatch['wanted']}"
        if mismatch or isinstance(error, RuntimeError | ValueError):
            raise _does_not_fit(folder, said) from error
        what = f"cannot load the adapter: {type(error).__name__} {said}"
        raise UserError(what, where=str(folder), mend="copy the adapter again") from error


BASE_CONFIG = "base_config.json"
"""The file beside an adapter with the base model's config as trained, context extension included."""


def write_base_config(folder: Path, config: PreTrainedConfig) -> None:
    """Write the base model's config, as trained, beside the adapter in ``folder``.

    A scaled RoPE is part of what the adapter learned, but not of its weights. :func:`load_model` and the vLLM engine
    apply it. PEFT alone does not: with it, load the base model with ``config=AutoConfig.from_pretrained(FILE)``.
    """
    # Fields with default values are written too: another model's default could differ.
    content = json.loads(config.to_json_string(use_diff=False))
    content.pop("_name_or_path", None)  # a path of this machine
    write_atomic(folder / BASE_CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")
