"""One row over several processes (``parallel.context_size``), beside the same row in one process."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from logotrain.attention.context_parallel import ALONE, context_group
from logotrain.loss.objective import sample_loss
from logotrain.recipe.objectives import LogoSettings
from measure import Stepper
from patterns import shared_prefix
from shape import Shape, make_model, make_sample, twin


def measure_context(shape: Shape, size: int, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step, of one thread or one GPU a process, by rounds in which both ways take turns.

    Args:
        shape: of model and sample; ``size`` divides the tokens of the row, or it is padded.
        size: processes that compute the row, C.
        device: ``cpu`` (gloo) or ``cuda`` (NCCL, a GPU for each process).
        rounds: how many.

    Returns:
        ``seconds`` and ``cpu_seconds`` (of the busiest process) by way, their ratios, and how far loss and gradient of
        the split row are from those of the whole one.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (shape, size, device, rounds, folder), nprocs=size)
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    print(
        f"C={size}: {statistics.median(result['seconds']['split']):.3f} s a row, "
        f"{result['ratio']:.2f} times as fast as one process ({result['ratio_rounds'][0]:.2f}-"
        f"{result['ratio_rounds'][1]:.2f}), {result['cpu_ratio']:.2f} by the busiest process's seconds on a CPU; loss "
        f"off by {result['loss_difference']:.1e}, gradients by {result['gradient_difference']:.1e}"
    )
    return result


def _work(rank: int, shape: Shape, size: int, device_name: str, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    on_gpu = device_name == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    place = f"file://{folder}/store"
    distributed.init_process_group("nccl" if on_gpu else "gloo", init_method=place, rank=rank, world_size=size)
    groups = {"whole": ALONE, "split": context_group(size)}
    model = make_model(shape, device, torch.bfloat16 if on_gpu else torch.float32)
    stepper, sample = Stepper(model), make_sample(shape, shape.rejected)
    with ExitStack() as stack:
        ways: dict[str, Callable[[], Tensor]] = {}
        for way, group in groups.items():
            how: dict[str, Any] = {"recompute": "none", "group": group, "parts": size}
            logprobs = shared_prefix(twin(model), sample, device, stack, **how)
            ways[way] = lambda logprobs=logprobs: sample_loss(LogoSettings(), logprobs()).loss[0]
        losses, gradients = {}, {}
        for way, loss in ways.items():
            stepper.step(loss)
            losses[way] = stepper.last_loss.item()
            gradients[way] = stepper.gradient().float()
        distributed.all_reduce(gradients["split"])  # each process has that of its tokens
        seconds, busy = ({way: [] for way in ways} for _ in range(2))
        for number in range(rounds):
            for way in list(ways) if number % 2 else list(ways)[::-1]:
                work = partial(stepper.step, ways[way]) if way == "split" or rank == 0 else lambda: None
                elapsed, cpu = _timed(work, device)
                seconds[way].append(elapsed)
                busy[way].append(cpu)
    if rank == 0:
        by_round = [one / many for one, many in zip(seconds["whole"], seconds["split"], strict=True)]
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        off = (gradients["split"] - gradients["whole"]).norm() / gradients["whole"].norm()
        result = {
            "size": size,
            "seconds": seconds,
            "cpu_seconds": busy,
            "ratio": medians["whole"] / medians["split"],
            "ratio_rounds": [min(by_round), max(by_round)],
            "cpu_ratio": statistics.median(busy["whole"]) / statistics.median(busy["split"]),
            "losses": losses,
            "loss_difference": abs(losses["split"] - losses["whole"]) / abs(losses["whole"]),
            "gradient_difference": off.item(),
        }
        (Path(folder) / "result.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def _timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds until all processes have done it, and the most that one of them had a CPU."""
    distributed.barrier()
    started, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    busy = torch.tensor([time.process_time() - cpu], device=device)
    distributed.all_reduce(busy, distributed.ReduceOp.MAX)  # and waits for all
    return time.perf_counter() - started, busy.item()
