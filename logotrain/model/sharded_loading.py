"""Weights that go from their files straight into shards: no process ever holds a whole model in host memory.

transformers reads a model one weight after another, and converts on the way what its files name, stack or transpose
otherwise. As soon as a weight is there it is cut to this process's share, and a hollow weight takes its place: of the
same shape and dtype, but a single zero in memory. Adapters are made on hollow weights as on whole ones, with the same
random numbers. FSDP then shards weights without values (torch's device ``meta``), and the shares are put into its
shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig

from logodata.common.console import progress
from logodata.models.loading import skeleton
from logotrain.recipe.settings import TrainRecipe

_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""The variable that keeps transformers' threads from reading ahead, up to the whole model."""


def why_whole(recipe: TrainRecipe, config: PreTrainedConfig, *, tried: bool) -> str:
    """Return why every process must hold the whole model before it is sharded; empty if none must.

    ``tried`` says whether a small copy of the model was tried (:func:`logotrain.trainable.read_traits`).
    """
    if recipe.tuning == "lora" and recipe.lora.use_dora:
        return "DoRA starts from the lengths of the weights' columns"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantised"
    return "" if tried else "the model is tried as a whole"


class Shares:
    """The share of each weight that one process will hold: an equal part of its rows, as FSDP splits them.

    Args:
        rank: number of the process among those that hold one copy of the weights together.
        size: number of these processes.
        device: where the shares are held.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self._rank, self._size, self._device = rank, size, device
        self._shares: dict[nn.Parameter, Tensor] = {}

    @contextmanager
    def cut(self, recipe: TrainRecipe, config: PreTrainedConfig) -> Iterator[None]:
        """Cut the weights of the model of ``recipe`` while transformers reads them within the block.

        Weights that may be tied stay whole until the model is sharded, because transformers compares them. So does the
        token embedding where it may be trained beside adapters, because PEFT copies it then.
        """
        empty = skeleton(config, recipe.model)
        weights = dict(empty.named_parameters(remove_duplicate=False))
        tied = {*empty.all_tied_weights_keys, *empty.all_tied_weights_keys.values()}
        whole: set[Any] = {weight.shape for path, weight in weights.items() if path in tied}
        if recipe.tuning != "full" and recipe.lora.train_embeddings:
            whole.add(empty.get_input_embeddings().weight.shape)
        with progress("weights read", len(weights)) as bar:

            def cut(_module: nn.Module, _name: str, weight: nn.Parameter) -> nn.Parameter | None:
                if weight.is_meta or not getattr(weight, "_is_hf_initialized", False):  # it does not come from a file
                    return None
                bar.advance()
                if weight in self._shares or weight.shape in whole or not weight.ndim:
                    return None
                hollow = nn.Parameter(weight.new_zeros(()).expand(weight.shape), requires_grad=weight.requires_grad)
                vars(hollow).update(vars(weight))
                self._shares[hollow] = self._share(weight.detach())
                return hollow

            before = os.environ.get(_ONE_BY_ONE, "")
            os.environ[_ONE_BY_ONE] = "1"
            handle = register_module_parameter_registration_hook(cut)  # type: ignore[arg-type]  # torch says None
            try:
                yield
            finally:
                handle.remove()
                os.environ[_ONE_BY_ONE] = before

    def _share(self, weight: Tensor) -> Tensor:
        """Return a copy of this process's rows of a weight. The last processes may get fewer, or none."""
        parts = weight.chunk(self._size)
        part = parts[self._rank] if self._rank < len(parts) else weight[:0]
        return part.to(self._device, copy=True, memory_format=torch.contiguous_format)

    @contextmanager
    def put_into(self, model: nn.Module) -> Iterator[None]:
        """Take the hollow weights out of ``model`` before FSDP shards it within the block, and fill its shards after.

        Raises:
            ValueError: FSDP splits a weight otherwise.
        """
        empty = {
            weight: nn.Parameter(
                torch.empty(weight.shape, dtype=weight.dtype, device="meta"), requires_grad=weight.requires_grad
            )
            for weight in self._shares
        }
        shares: dict[str, Tensor] = {}
        for path, module in model.named_modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                if weight in empty:
                    setattr(module, name, empty[weight])
                    shares[f"{path}.{name}"] = self._shares[weight]
        self._shares.clear()
        yield
        filled: dict[nn.Parameter, nn.Parameter] = {}
        state = {
            path: filled.setdefault(weight, _filled(weight, shares[path]))
            for path, weight in model.named_parameters(remove_duplicate=False)
            if path in shares
        }
        model.load_state_dict(state, strict=False, assign=True)


def _filled(weight: nn.Parameter, share: Tensor) -> nn.Parameter:
    """Return a weight that FSDP sharded without values, with ``share``, in its dtype, as its values on this process."""
    if not isinstance(weight, DTensor) or weight.to_local().shape != share.shape:
        raise ValueError(f"FSDP splits a weight of shape {tuple(weight.shape)} otherwise than {tuple(share.shape)}")
    values = DTensor.from_local(
        share.to(weight.dtype),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return nn.Parameter(values, requires_grad=weight.requires_grad)
