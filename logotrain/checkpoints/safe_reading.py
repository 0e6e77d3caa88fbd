"""Read torch's distributed checkpoints without running code that somebody put into them.

torch stores a checkpoint's table of contents (``.metadata``) and all values that are not tensors as pickles, and loads
them without checks. Here the table may name only the classes that torch writes there, values are loaded with
``weights_only``, and all files must lie in the checkpoint's folder.
"""

from __future__ import annotations

import io
import pickle
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as table
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from logodata.common.errors import UserError, pass_on

_MEND = "continue your own runs only; delete this checkpoint if the run is yours, the one before it is used then"

_IN_TABLE = """BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties
TensorStorageMetadata _MEM_FORMAT_ENCODING"""
_CLASSES = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((table.__name__, name) for name in _IN_TABLE.split()),
}
"""The classes that torch 2.11 to 2.15 write into a table of contents, besides dtypes."""


def load_checkpoint(state: dict[str, Any], folder: Path, *, alone: bool) -> None:
    """Copy the values of a checkpoint into ``state``, a state dict of the shape that was saved.

    ``alone`` says that there is one process and no process group.

    Raises:
        UserError: the files are not a checkpoint of logotrain, or they do not fit ``state``.
    """
    reader = _Reader(folder)
    try:
        load_distributed(state, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        if reader.fault is not None:  # torch then looks for another table and reports only that one
            raise reader.fault from error
        pass_on(error)  # torch wraps every exception in CheckpointException, even an interrupt
        cause, _ = next(iter(error.failures.values()))
        raise cause if isinstance(cause, UserError) else _refusal(folder, cause) from error


def saved_names(folder: Path) -> frozenset[str]:
    """Return the dotted names of what a checkpoint holds, such as ``model.lm_head.weight``.

    Raises:
        UserError: the files are not a checkpoint of logotrain.
    """
    return frozenset(_Reader(folder).read_metadata().state_dict_metadata)


class _Reader(FileSystemReader):
    fault: Exception | None = None
    """The first error met while reading a table of contents."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's signature
        folder = Path(self.path)
        try:
            with open(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
                found = _Unpickler(file).load()
            if not isinstance(found, Metadata):
                raise pickle.UnpicklingError(f"a {type(found).__name__}, not a table of contents")
            found.storage_meta = found.storage_meta or table.StorageMeta()
            found.storage_meta.load_id = self.load_id
            for place in found.storage_data.values():
                name = place.relative_path
                if not isinstance(name, str) or PurePath(name).name != name or (folder / name).is_symlink():
                    raise pickle.UnpicklingError(f"data in {name!r}, outside of its folder")
        except Exception as error:  # a pickle can fail in any way
            self.fault = self.fault or (error if isinstance(error, MemoryError) else _refusal(folder, error))
            raise self.fault from error
        return found


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # torch unpickles these bytes without checks, so the value is loaded safely and pickled anew.
        own, name = io.BytesIO(), read_item.storage_index.fqn
        try:
            plain = torch.load(value, weights_only=True)
        except Exception as error:  # torch's message would advise to load it without weights_only
            pass_on(error)
            raise pickle.UnpicklingError(f"{name} is no plain value") from error
        torch.save(plain, own)
        own.seek(0)
        super().load_bytes(read_item, own)


def _member(kind: object, name: object) -> Enum:
    """Return a member of an enumeration, which Python 3.11.0 to 3.11.3 pickle as ``getattr(kind, name)``."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind.__members__[str(name)]
    raise pickle.UnpicklingError(f"it asks for {name!r} of {kind!r}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) in _CLASSES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _refusal(folder: Path, error: BaseException) -> UserError:
    if isinstance(error, OSError):  # the files may be as they should be
        what = f"cannot read the checkpoint: {error.strerror or error}"
        return UserError(what, where=str(folder), mend="check the file system, then run the same command again")
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"not a checkpoint that can be read safely: {reason}", where=str(folder), mend=_MEND)
