"""Files of strangers: what could run code must not be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from logodata.common.errors import UserError
from logodata.evaluators.embedding import SentenceEmbedder
from logodata.models import check_adapter, load_model


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.path, "code ran")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The file that only a loaded pickle writes."""
    trap = tmp_path / "code-ran"
    torch.load(_pickle(tmp_path / "proof.bin", trap), weights_only=False)
    assert trap.read_text() == "code ran"  # the payload works
    trap.unlink()
    return trap


def _pickle(path: Path, trap: Path) -> Path:
    torch.save({"weight": Payload(trap)}, path)
    return path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_of_pickles_is_refused(tiny_model_dir: Path, tmp_path: Path, trap: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    _pickle(folder / name, trap)
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder))
    assert not trap.exists()


def test_an_embedding_model_of_pickles_is_refused(tiny_model_dir: Path, tmp_path: Path, trap: Path) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    _pickle(folder / "pytorch_model.bin", trap)
    with pytest.raises(UserError, match="cannot load the embedding model"):
        SentenceEmbedder(str(folder), 2, "evaluator.embedding_model")
    assert not trap.exists()


def test_an_adapter_of_pickles_is_refused(tmp_path: Path, trap: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    _pickle(tmp_path / "adapter_model.bin", trap)
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        check_adapter(tmp_path)
    assert not trap.exists()
