"""What strangers put into files, for every test in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.path, "code ran")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The file that only code of a stranger's writes; that it would is tried out first."""
    trap = tmp_path / "code-ran"
    torch.save({"weight": Payload(trap)}, tmp_path / "proof.bin")
    torch.load(tmp_path / "proof.bin", weights_only=False)
    assert trap.read_text() == "code ran"
    trap.unlink()
    return trap
