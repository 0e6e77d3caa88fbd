"""Checkpoints that a stopped run continues from, and the finished adapter.

A checkpoint is ``step-N/``: trained weights, optimizer and random states by torch's distributed checkpoint, and
``files.json`` with the size and hash of every file. It is written beside its place and renamed, so a kill leaves none
that is half written; the hashes recognise one that was damaged later.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.optim import Optimizer

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.run_dir import read_json, write_json

_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
_FILES = "files.json"


def save(folder: Path, step: int, model: PeftModel, optimizer: Optimizer, *, keep: int) -> None:
    """Write ``folder/step-N`` after ``step`` steps and delete all but the ``keep`` newest."""
    scratch, target = folder / f".step-{step}.tmp", folder / f"step-{step}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        with _quietly_alone():
            save_distributed(_state(model, optimizer), checkpoint_id=scratch)
        write_json(scratch / _FILES, _describe(scratch))
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except (OSError, CheckpointException) as error:
        raise UserError(
            f"cannot write the checkpoint: {error}",
            where=str(target),
            mend="free space, then run the same command again",
        ) from error
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(_path(folder, old))


def restore(folder: Path, model: PeftModel, optimizer: Optimizer) -> int:
    """Load the newest intact checkpoint into ``model`` and ``optimizer``.

    Damaged ones are renamed to ``step-N.damaged`` and said.

    Returns:
        Steps done, 0 if there is no checkpoint.
    """
    for step in _newest_first(folder):
        path = _path(folder, step)
        fault = _fault(path)
        if fault:
            put_aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(put_aside, ignore_errors=True)
            path.rename(put_aside)
            note(f"checkpoint {path.name} is damaged ({fault}): renamed to {put_aside.name}, the one before it is used")
            continue
        state = _state(model, optimizer)
        with _quietly_alone():
            load_distributed(state, checkpoint_id=path)
        set_model_state_dict(model, state["model"], options=_TRAINED_ONLY)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_TRAINED_ONLY)
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        return step
    return 0


def export_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as PEFT does, complete or not at all; PEFT and vLLM load the folder as it is."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        # The vocabulary is never resized; "auto" would ask the hub about it.
        model.save_pretrained(str(scratch), save_embedding_layers=False)
        (scratch / "README.md").unlink(missing_ok=True)  # PEFT's card: a form to fill in
        scratch.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write the adapter: {error}", where=str(folder), mend="free space, then run the same command again"
        ) from error


def _state(model: PeftModel, optimizer: Optimizer) -> dict[str, Any]:
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    # ignore_frozen_params alone lets the frozen head of a tied model through: 113 MB for the embedded one.
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    weights = get_model_state_dict(model, options=_TRAINED_ONLY)
    return {
        "model": {name: value for name, value in weights.items() if name in trained},
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_TRAINED_ONLY),
        "rng": rng,
    }


@contextmanager
def _quietly_alone() -> Iterator[None]:
    """One process needs no process group, and no warning about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _newest_first(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.iterdir() if path.name != _FILES)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    try:
        expected = read_json(folder / _FILES)
    except UserError as error:
        return error.what
    found = _describe(folder)
    names = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    return f"{names[0]} is not as it was written" if names else ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
