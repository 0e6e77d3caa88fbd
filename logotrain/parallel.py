"""Run on one process or many: torchrun's environment, communication between processes, and sharded weights."""

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

TIMEOUT = timedelta(minutes=60)
"""The longest time that a process waits for the others, in every group. Reading 16 GB of weights over a slow
network takes long."""


@dataclass(frozen=True, slots=True)
class World:
    """This process and the number of processes of a run. With one process all methods work without a process group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on any process."""
        if self.size == 1:
            return flag
        import torch
        from torch import distributed

        raised = torch.tensor(int(flag))
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return bool(raised.item())

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` on the main process while the others wait, and return its result on every process.

        Raises:
            UserError, OSError: ``action`` raised it; every process raises it.
            RuntimeError: ``action`` raised something else, which the main process raises.
        """
        if self.size == 1:
            return action()
        from torch import distributed

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (UserError, OSError) as error:
                outcome[1] = error
            except Exception as error:
                # The others must not wait, and what is raised may not be one that can be sent.
                distributed.broadcast_object_list([None, RuntimeError(f"the main process failed: {error!r}")], src=0)
                raise
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes, in place. One that only some have counts as zeros for the others. A weight
        for which none has one gets none, so that weight decay leaves it."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        parameters = list(parameters)
        known = torch.tensor([int(parameter.grad is not None) for parameter in parameters])
        distributed.all_reduce(known, op=distributed.ReduceOp.MAX)
        pending = []
        for parameter, is_known in zip(parameters, known.tolist(), strict=True):
            if not is_known:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(distributed.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()

    def same_start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the values of the main process to all others, in place."""
        if self.size == 1:
            return
        from torch import distributed

        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def under_torchrun() -> bool:
    """Return whether torchrun started this process. Some clusters set one of its variables for all jobs."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


@contextmanager
def launched() -> Iterator[World]:
    """Yield the world that torchrun started, with an open process group; without torchrun, a world of one process.

    On GPUs tensors are sent by NCCL and Python objects by gloo. An open group is used as it is and stays open.
    """
    if not under_torchrun():
        yield World()
        return
    import torch
    from torch import distributed

    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if torch.cuda.is_available():
        started, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if started > there:  # all processes find it, and one tells
            raise UserError(
                f"{started} processes on this machine, which has {there} GPUs", mend=f"--nproc-per-node {there}"
            )
        torch.cuda.set_device(world.local_rank)
    if distributed.is_initialized():
        yield world
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


@contextmanager
def without_backward(model: nn.Module) -> Iterator[None]:
    """Run forward passes without gradients within the block, and free the weights that sharding gathered for them.

    A backward pass would free them. If they stayed, the next saved state would hold whole weights, not this process's
    shard.
    """
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
    """Open a process group within the block also for one process, because FSDP needs one."""
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
    """Shard the weights of ``model`` over the processes with FSDP2, one group of weights per decoder layer.

    With ``parallel.shard_size`` below the number of processes, each block of so many processes holds a copy of the
    weights, and gradients are summed over the copies too (HSDP).

    The embedding, the last norm and the head are in the outermost group. In full tuning in bfloat16, layers compute in
    bfloat16 on float32 weights, and gradients are summed in float32; otherwise each weight is used in its own dtype.
    A single process needs :func:`lone_group` around this call and all that follows.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import _set_pg_timeout
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    from logotrain.model.recompute import decoder_layers

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if recipe.mixed_precision else MixedPrecisionPolicy()
    shares = recipe.parallel.shares(world.size)
    sizes = {"shard": shares} if shares == world.size else {"replicate": world.size // shares, "shard": shares}
    mesh = init_device_mesh(world.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for group in mesh.get_all_groups():  # those of several dimensions are new ones
        _set_pg_timeout(TIMEOUT, group)
    settings: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": recipe.parallel.reshard_after_forward,
        "mp_policy": policy,
    }
    for layer in decoder_layers(model):
        fully_shard(layer, **settings)
    # The backward pass begins with the weights of the outermost group, so they are not freed.
    fully_shard(model, **{**settings, "reshard_after_forward": False})
    register_fsdp_forward_method(model, "generate")
