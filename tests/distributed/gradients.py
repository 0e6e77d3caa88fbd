"""The whole gradient of a run's first step, written as it meets the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from logotrain import steps


@contextmanager
def keep_first_gradients(path: Path, *, write: bool = True) -> Iterator[None]:
    """Within the block the first gradients that are clipped go to ``path``, before they are."""
    clip, seen = steps.clip_grad_norm_, []

    def spy(parameters: list[Any], *arguments: Any) -> Any:
        if not seen:
            seen.append(True)
            found = {}
            for number, parameter in enumerate(parameters):
                gradient = parameter.grad
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                found[f"{number:03}"] = whole.detach().clone().contiguous()
            if write:
                save_file(found, path)
        return clip(parameters, *arguments)

    with patch.object(steps, "clip_grad_norm_", spy):
        yield
