"""Runs of one process and of several, in folders side by side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.data_sets import TIMES
from tests.distributed.gradients import in_float64, keep_first_gradients

REPOSITORY = Path(__file__).parents[2]

_TIMEOUT_S = 600
"""Ends processes that wait for each other for ever. They take minutes where another worker of pytest is busy, too."""


class RunFolders:
    """Runs in the folders of ``root``, by name. Beside a folder lie the gradients of its first step."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def alone(self, recipe: dict[str, Any], name: str) -> None:
        """A run of this process."""
        with keep_first_gradients((self.root / name).with_suffix(".gradients")):
            run(TrainRecipe.model_validate(recipe), self.root / name)

    def alone_in_float64(self, recipe: dict[str, Any], name: str) -> None:
        with in_float64():
            self.alone(recipe, name)

    def together(
        self, processes: int, module: str, argument: Path, *, by_torchrun: bool = False, **environment: str
    ) -> None:
        """Call a module of tests.distributed in so many processes. What they say on stderr is kept.

        They are forked (:mod:`tests.distributed.forked`). By torchrun each imports everything for itself.
        """
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        launcher = ["tests.distributed.forked", str(processes), module]
        if by_torchrun:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            launcher += ["-m", f"tests.distributed.{module}"]
        done = subprocess.run(
            [sys.executable, "-m", *launcher, str(argument)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        (self.root / "stderr").write_text(done.stderr)
        assert done.returncode == 0, f"see {self.root / 'stderr'}"

    def cut(self, source: str, name: str, after: int) -> None:
        """A copy of a run as a kill after ``after`` steps leaves it."""
        shutil.copytree(self.root / source, self.root / name)
        shutil.rmtree(self.root / name / "final")
        for path in (self.root / name / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > after:
                shutil.rmtree(path)

    def metrics(self, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        lines = (self.root / name / file).read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]

    def final(self, name: str) -> dict[str, torch.Tensor]:
        (file,) = (self.root / name / "final").glob("*.safetensors")
        return load_file(file)

    def check_gradients(self, one: str, other: str, *, rtol: float, atol: float) -> None:
        """The first gradients of two runs are equal, and not zero."""
        expected, found = (load_file((self.root / name).with_suffix(".gradients")) for name in (one, other))
        assert expected.keys() == found.keys()
        assert sum(float(gradient.norm()) for gradient in expected.values()) > 0
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol)
