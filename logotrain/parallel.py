"""One process or many: torchrun's environment, what the processes tell each other, and who holds which weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from logodata.common.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from logotrain.recipe.settings import TrainRecipe

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=60)
"""Longest that a process waits for the others: reading 16 GB of weights over a slow network is no fault."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run. With one process every method works without a process group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.size == 1:
            return flag
        import torch
        from torch import distributed

        raised = torch.tensor(int(flag))
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return bool(raised.item())

    def on_main(self, action: Callable[[], T]) -> T:
        """The result of ``action``, run by the main process while the others wait.

        Raises:
            UserError: raised by ``action``, on every process.
        """
        if self.size == 1:
            return action()
        from torch import distributed

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes, in place; one that computed nothing contributes zeros."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        pending = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(distributed.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()

    def same_start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the main one's values."""
        if self.size == 1:
            return
        from torch import distributed

        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def under_torchrun() -> bool:
    """Whether torchrun started this process: some clusters set one of its variables for all jobs."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


@contextmanager
def launched() -> Iterator[World]:
    """The world that torchrun started, its process group open within the block; without torchrun one process.

    On GPUs tensors travel by NCCL and Python objects by gloo. A group that is open already is used, and left open.
    """
    if not under_torchrun():
        yield World()
        return
    import torch
    from torch import distributed

    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    if distributed.is_initialized():
        yield world
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


@contextmanager
def without_backward(model: nn.Module) -> Iterator[None]:
    """Forwards without gradients. What sharding gathered for them is freed at the end, as a backward pass would do:
    otherwise the next state that is saved would hold whole weights in place of this process's part."""
    import torch
    from torch.distributed.fsdp import FSDPModule

    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


@contextmanager
def lone_group(world: World) -> Iterator[None]:
    """Within the block there is a process group also for one process: FSDP wants one."""
    from torch import distributed
    from torch._C._distributed_c10d import HashStore

    if world.size > 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def shard(model: nn.Module, recipe: TrainRecipe, world: World) -> None:
    """Split the weights of ``model`` over the processes with FSDP2, a group of weights a decoder layer.

    Embedding, last norm and head stay in the outermost group. Under full tuning in bfloat16 layers compute in bfloat16
    on float32 weights, and gradients are summed in float32; otherwise every weight is used in the type it has. One
    process needs :func:`lone_group` around it and all that follows.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    from logotrain.model.recompute import decoder_layers

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if recipe.mixed_precision else MixedPrecisionPolicy()
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(world.device.type, (world.size,)),
        "reshard_after_forward": recipe.parallel.reshard_after_forward,
        "mp_policy": policy,
    }
    for layer in decoder_layers(model):
        fully_shard(layer, **settings)
    fully_shard(model, **{**settings, "reshard_after_forward": False})  # its weights are needed again at once
    register_fsdp_forward_method(model, "generate")
