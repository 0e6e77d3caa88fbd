"""Merge an adapter into its model and write a model folder, for tools that cannot load adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import move_into_place
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.adapters import merge_adapter
from logodata.models.loading import DType, load_config, load_model
from logotrain.checkpoints.export import copy_tokenizer, explained_writes, save_model
from logotrain.inputs import check_merge


def merge(model: str, adapter: Path, out: Path, dtype: DType | None = None) -> Path:
    """Write ``model`` with ``adapter`` merged, and its tokenizer, to ``out``, completely or not at all.

    Weights are added in float32 or wider and then rounded to ``dtype``, by default the dtype of the model's weights.

    Returns:
        ``out``.

    Raises:
        UserError: the model or the adapter cannot be loaded, they do not belong together, the model's weights are
            quantised, or ``out`` exists or cannot be written.
    """
    check_merge(model, adapter, out)
    config = load_config(model, adapter=adapter)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            "the model's weights are quantised: merging an adapter would round them again",
            where=model,
            mend="give the model before quantisation",
        )
    check_adapter_fits(model, adapter)
    own = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
    base = load_model(model, config=config, dtype="float32" if own is not None and own.itemsize < 4 else None)
    written: torch.dtype = getattr(torch, dtype) if dtype else own or base.dtype
    base.to(torch.promote_types(base.dtype, torch.float32))  # type: ignore[arg-type]  # transformers loses its type
    merged = merge_adapter(base, adapter)
    name = str(written).removeprefix("torch.")
    note(f"weights are written in {name}, {'as asked' if dtype else 'as the model has them (--dtype changes it)'}")
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    with explained_writes(out):
        save_model(merged.to(written), scratch)  # type: ignore[arg-type]
        copy_tokenizer(model, scratch)
        move_into_place(scratch, out)
    return out
