"""Whether an adapter belongs to a model, told from shapes and names alone, before any weights are read.

PEFT refuses tensors of another shape, but leaves layers without an adapter, and adapters without a layer, as they are:
an adapter of a model with fewer layers would be measured on a part of this one. vLLM does not say it in a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logodata.common.errors import UserError
from logodata.models import ADAPTER_FILES, check_adapter, empty_model, load_config, read_adapter_config

if TYPE_CHECKING:
    from torch import nn

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<matrix>[AB])(?:\.weight)?")


def trained_on(adapter: Path) -> str | None:
    """The name of the model that an adapter was trained on, where its config tells.

    Raises:
        UserError: the folder holds no adapter, or its config is damaged.
    """
    name = read_adapter_config(adapter).get("base_model_name_or_path")
    return str(name) if name else None


def check_adapter_fits(name: str, adapter: Path) -> None:
    """Refuse an adapter whose modules are not all in the model, or not in all of its layers, or of another shape.

    Args:
        name: of the model, as :func:`logodata.models.resolve_model` takes it.
        adapter: folder of the adapter.

    Raises:
        UserError: it does not fit, or a file of it is damaged.
    """
    shapes = _shapes(adapter)
    fault = next(_faults(_skeleton(name), shapes, read_adapter_config(adapter)), None)
    if fault is not None:
        base = trained_on(adapter)
        raise UserError(
            f"the adapter does not fit {name}: {fault}",
            where=str(adapter),
            mend=f"give the model that it was trained on{f', {base}' if base else ''}",
        )


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    check_adapter(adapter)
    path = adapter / ADAPTER_FILES[1]
    try:
        with safe_open(path, framework="pt") as file:
            return {key.removeprefix(_PREFIX): tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="copy the adapter again") from error


def _skeleton(name: str) -> nn.Module:
    """The model without its weights."""
    import torch

    config = load_config(name)
    with torch.device("meta"):
        return empty_model(config, name)


def _faults(model: nn.Module, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> Iterator[str]:
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    adapted = set()
    for key, shape in sorted(shapes.items()):
        lora = _LORA.fullmatch(key)
        if lora is None:  # a module trained whole, such as the embedding
            tensor = tensors.get(key)
            if tensor is not None and tuple(tensor.shape) != shape:
                yield f"{key} has shape {list(shape)}, the model's {list(tensor.shape)}"
            continue
        module = modules.get(lora["module"])
        if module is None:
            yield f"the model has no {lora['module']}"
            continue
        adapted.add(lora["module"])
        yield from _shape_fault(key, shape, lora["matrix"], module)
    # Only a plain list of names means every layer.
    if isinstance(config.get("target_modules"), list) and not any(
        config.get(field) for field in ("layers_to_transform", "layers_pattern", "exclude_modules")
    ):
        counts = _by_kind(modules)
        for kind, count in sorted(_by_kind(adapted).items()):
            if count != counts[kind]:
                yield f"it adapts {count} of {counts[kind]} {kind}"


def _shape_fault(key: str, shape: tuple[int, ...], matrix: str, module: nn.Module) -> Iterator[str]:
    """``A`` is [rank, inputs], ``B`` [outputs, rank]; a linear layer's weight is [outputs, inputs], an embedding's
    [inputs, outputs]."""
    from torch import nn

    if isinstance(module, nn.Linear):
        sizes = {"A": module.in_features, "B": module.out_features}
    elif isinstance(module, nn.Embedding):
        sizes = {"A": module.num_embeddings, "B": module.embedding_dim}
    else:
        return
    found = shape[1] if matrix == "A" else shape[0]
    if found != sizes[matrix]:
        side = "inputs" if matrix == "A" else "outputs"
        yield f"{key} is for {found} {side}, the model has {sizes[matrix]}"


def _by_kind(modules: Iterable[str]) -> Counter[str]:
    """How many modules there are of each name, whatever their layer."""
    return Counter(re.sub(r"\.\d+\.", ".*.", module) for module in modules)
