"""Peak memory of a real training step, counted on fake tensors: no weights, no accelerator, seconds for 8B.

The oracle of :mod:`logotrain.plan.memory`, which estimates the same by formula: here the model's own code runs,
forward, backward and optimizer, and every storage is counted from its birth to its death. What kernels hold inside
themselves and what the allocator wastes is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed import device_mesh
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from logodata.models.loading import empty_model
from logotrain.attention import kernels
from logotrain.attention.context_parallel import ContextGroup
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.loss.objective import sample_loss
from logotrain.model import recompute
from logotrain.model.adapters import add_adapters
from logotrain.model.recompute import checkpoint_layers
from logotrain.parallel import World, shard
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Backend, TrainRecipe
from logotrain.rows.collate import Row
from logotrain.rows.layout import RowLayout

_BLOCK = 512
"""CUDA's allocator hands out multiples of this many bytes."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one process holds in a step, when the optimizer has its state. In bytes.

    Attributes:
        states: weights and optimizer state.
        kept: for the backward pass, when the forward pass of the first row has ended; gathered weights included.
        peak: of everything.
    """

    states: int
    kept: int
    peak: int


def simulate_step(config: PreTrainedConfig, step: StepPlan) -> Simulated:
    """Run a step with as many equal rows as it has, once the optimizer has its state, and count.

    Args:
        config: of the model.
        step: its back end is ``flash`` or ``sdpa``.
    """
    recipe, backend, num_rows = step.recipe, step.backend, step.num_rows
    shards = step.world_size if step.strategy == "shard" else None
    processes = step.world_size if shards or step.context_size > 1 else None
    recompute.tiled_classes(config)  # tried on real tensors
    with (
        _process_group(processes),
        FakeTensorMode(allow_non_fake_inputs=True),
        _backend(backend),
        _host_memory(),
        _all_scored_here(),
        _Count() as count,
    ):
        model = _fake_model(config, recipe)
        checkpoint_layers(model, step.recompute)
        if step.context_size > 1:
            model.context_group = ContextGroup(0, step.context_size, distributed.group.WORLD)
        if shards is not None:
            shard(model, recipe, World(0, shards, 0))
        padding = -step.row.total_length % step.context_size
        row = _row(replace(step.row, padding=step.row.padding + padding), recipe.objective.scores_prompt)
        optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
        with use_shared_prefix(model.causal_lm, backend):
            states = kept = 0
            for rows in _steps(optimizer, num_rows, sharded=shards is not None):
                states, kept, count.peak = count.now, 0, count.now
                for number in range(rows):
                    if shards is not None:
                        last = number == rows - 1 or recipe.tuning == "full"
                        model.set_requires_gradient_sync(last)  # type: ignore[operator]  # FSDP adds it
                    logprobs = model(row)
                    losses = [
                        sample_loss(
                            recipe.objective,
                            sample.responses,
                            prompt=sample.prompt if recipe.objective.scores_prompt else None,
                        ).loss
                        for sample in split_logprobs(logprobs, row)
                    ]
                    loss = torch.stack(losses).sum()
                    kept = kept or count.now - states
                    loss.backward()
                    del logprobs, losses, loss
                optimizer.step()
                optimizer.zero_grad()
        return Simulated(states, kept, count.peak)


def _steps(optimizer: AdamW, num_rows: int, *, sharded: bool) -> Iterator[int]:
    """Yield the number of rows of each step to run. The last one has ``num_rows``, and finds the optimizer's state.

    FSDP2 makes gradients itself, so a whole step of one row makes the state of sharded weights.
    """
    if sharded:
        yield 1
    else:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    yield num_rows


class _Count(TorchDispatchMode):
    """Bytes of all storages that operators made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Self:
        count, resize = self, self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)  # FSDP2 empties and refills the storages of gathered weights
            count._see(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._add(tree_leaves(result))
        return result

    def _add(self, values: Iterable[Any]) -> None:
        for tensor in values:
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                for storage in get_untyped_storages(tensor):
                    self._see(storage)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        known = self._live.get(key)
        if known is None:
            if not size:
                return
            known = (0, weakref.ref(storage, partial(self._died, key)))
        self._live[key] = (size, known[1])
        self.now += size - known[0]
        self.peak = max(self.peak, self.now)

    def _died(self, key: int, _reference: Any) -> None:
        self.now -= self._live.pop(key)[0]


def _fake_model(config: PreTrainedConfig, recipe: TrainRecipe) -> LogprobModel:
    """The model to train, its weights fake tensors; inside a fake mode."""
    full = recipe.tuning == "full"
    with torch.device("meta"):
        base = empty_model(config, recipe.model, dtype=torch.float32 if full else getattr(torch, recipe.dtype))
        model = LogprobModel(
            base if full else add_adapters(base, recipe.lora, name="simulated"),
            torch.bfloat16 if recipe.narrow_adapters else None,
        )
    made: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight is one weight
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight not in made:
                made[weight] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
            module._parameters[name] = None if weight is None else made[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def _row(layout: RowLayout, prompt_is_scored: bool) -> Row:
    """A row of zeros of the given lengths."""
    counts = tuple(
        (sample.prompt_length - 1 if prompt_is_scored else 0, *sample.response_lengths) for sample in layout.samples
    )
    scored = torch.zeros(sum(map(sum, counts)), dtype=torch.int64)
    tokens = torch.zeros(1, layout.total_length, dtype=torch.int64)
    return Row(tokens, tokens, scored, scored, counts, layout)


@contextmanager
def _backend(backend: Backend) -> Iterator[None]:
    """Torch's variable-length kernel, whose fake form needs no CUDA, whatever this machine has."""
    kernel = kernels._torch_varlen if backend == "flash" else None
    kernels.forget_rows()
    try:
        with patch.object(kernels, "varlen_kernel", lambda: kernel):
            yield
    finally:
        kernels.forget_rows()


@contextmanager
def _all_scored_here() -> Iterator[None]:
    """Every scored position is this process's, as none of its group can have more."""

    def everywhere(mask: Tensor) -> Tensor:
        return torch.arange(mask.numel(), device=mask.device)[:, None]

    with patch.object(torch, "nonzero", everywhere):
        yield


@contextmanager
def _host_memory() -> Iterator[None]:
    """Host memory is not the device's: there a tensor is its shape, on ``meta``, which does not count."""

    def back(tensor: Tensor, device: torch.device) -> Tensor:
        return torch.empty_like(tensor, device=device)

    with (
        patch.object(recompute, "to_host", partial(torch.empty_like, device="meta")),
        patch.object(recompute, "from_host", back),
    ):
        yield


@contextmanager
def _process_group(size: int | None) -> Iterator[None]:
    """Processes that exist in name only."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if size is None:
        yield
        return
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    make = device_mesh.init_device_mesh

    def mesh(_device: str, sizes: tuple[int, ...], **names: Any) -> device_mesh.DeviceMesh:
        with unset_fake_temporarily():  # it reads numbers, so it must be made of real tensors
            return make("cpu", sizes, **names)

    try:
        with patch.object(device_mesh, "init_device_mesh", mesh):
            yield
    finally:
        distributed.destroy_process_group()
