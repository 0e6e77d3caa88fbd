"""Reading torch's distributed checkpoints without running what a stranger wrote into them.

torch keeps a checkpoint's table of contents (``.metadata``), and every value that is no tensor, as pickles, and loads
them without restraint. Here the table may name the classes that torch writes there and nothing else, values are loaded
with ``weights_only``, and files lie in the checkpoint's folder.
"""

from __future__ import annotations

import io
import pickle
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

_CLASSES = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        (table.__name__, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""What torch 2.11 to 2.13 name in a table of contents; dtypes besides."""


def load_checkpoint(state: dict[str, Any], folder: Path, *, alone: bool) -> None:
    """Fill ``state`` from a checkpoint, in place.

    Args:
        state: as it was saved, with tensors to copy into.
        folder: of the checkpoint.
        alone: there is one process, and no process group.

    Raises:
        UserError: the files hold something else than a checkpoint of ours, or do not fit ``state``.
    """
    reader = _Reader(folder)
    try:
        load_distributed(state, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        if reader.fault is not None:  # torch looks for another table then, and tells of that one
            raise reader.fault from error
        pass_on(error)  # torch makes every exception a fault of the checkpoint, an interrupt too
        cause, _ = next(iter(error.failures.values()))
        raise cause if isinstance(cause, UserError) else _refusal(folder, cause) from error


class _Reader(FileSystemReader):
    fault: Exception | None = None
    """What the first table that was read had, or met."""

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
        # torch unpickles what it is given here: it gets what we pickled ourselves.
        own, name = io.BytesIO(), read_item.storage_index.fqn
        try:
            plain = torch.load(value, weights_only=True)
        except Exception as error:  # torch's own text advises to load it without restraint
            pass_on(error)
            raise pickle.UnpicklingError(f"{name} is no plain value") from error
        torch.save(plain, own)
        own.seek(0)
        super().load_bytes(read_item, own)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _refusal(folder: Path, error: BaseException) -> UserError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"not a checkpoint that can be read safely: {reason}", where=str(folder), mend=_MEND)
