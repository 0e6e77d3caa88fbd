"""An adapter becomes part of its model: a plain folder for tools that know no adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from logodata.common.errors import UserError
from logodata.common.sealed import move_into_place
from logodata.models import DType, load_model
from logotrain.inputs import check_merge
from logotrain.model import copy_tokenizer, save_model


def merge(model: str, adapter: Path, out: Path, dtype: DType) -> Path:
    """Write ``model`` with ``adapter`` merged, and its tokenizer, to ``out``; complete or not at all.

    The sum is taken in float32 and then rounded to ``dtype``.

    Raises:
        UserError: model or adapter cannot be loaded or do not belong together, or ``out`` exists or cannot be written.
    """
    check_merge(model, adapter, out)
    merged = load_model(model, adapter=adapter, dtype="float32")
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        save_model(merged.to(getattr(torch, dtype)), scratch)
        copy_tokenizer(model, scratch)
        move_into_place(scratch, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the model: {error}", where=str(out), mend="free space, then run it again"
        ) from error
    return out
