"""Parts of gpu.py: the largest rows that fit, the memory of a training step against the plan, full fine-tuning."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch.optim import AdamW

from gpu_part import SMALL, Bench, gib
from logotrain.attention.shared_prefix import choose_backend, use_shared_prefix
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.loss.objective import sample_loss
from logotrain.model.adapters import add_adapters
from logotrain.model.recompute import checkpoint_layers
from logotrain.parallel import World, lone_group, shard
from logotrain.plan.choices import choose_step, recompute_choices
from logotrain.plan.cost import CARDS, row_flops
from logotrain.plan.memory import MemoryEstimate, estimate_memory
from logotrain.plan.shape import model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Recompute, TrainRecipe
from logotrain.rows.collate import Collator, Row
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from shape import Shape, make_sample, model_config, random_llama

WINDOW = 2**20
"""The models' window. No length that is tried here exceeds it."""

THREE_BILLION = Shape(3072, 8192, 28, 24, 8, 128256, rank=32, prompt=8192, response=256, rejected=2)
"""The shape of Llama-3.2-3B, whose head is its embedding."""


class Trial:
    """A model with its optimizer's state, made of the trainer's own pieces. It runs steps of rows of any length.

    Args:
        bench: the device and its deadline.
        shape: the model's shape.
        recipe: what is trained, and how.
        tied: whether the head is the embedding.
        stack: closes what the trial opens.
    """

    def __init__(self, bench: Bench, shape: Shape, recipe: TrainRecipe, stack: ExitStack, *, tied: bool) -> None:
        self.bench, self.shape, self.recipe = bench, shape, recipe
        dtype = getattr(torch, recipe.dtype)
        self.config = model_config(shape, max_position_embeddings=WINDOW, tie_word_embeddings=tied)
        self.model_shape = model_shape(self.config)
        self.backend, _ = choose_backend(bench.attention, bench.device, dtype)
        full = recipe.tuning == "full"
        base = random_llama(self.config, bench.device, torch.float32 if full else dtype)
        self.model = LogprobModel(
            base if full else add_adapters(base, recipe.lora, name="random"),
            autocast=torch.bfloat16 if recipe.narrow_adapters else None,
        ).train()
        self.sharded = recipe.mixed_precision
        if self.sharded:
            stack.enter_context(lone_group(World()))
            shard(self.model, recipe, World())
        stack.enter_context(use_shared_prefix(self.model.causal_lm, self.backend))
        self.optimizer = AdamW([weight for weight in self.model.parameters() if weight.requires_grad], fused=True)
        self.recompute: Recompute = "none"
        self.step(self.row(min(shape.prompt, 64), 1))  # makes the optimizer's state

    def row(self, prompt: int, rejected: int) -> Row:
        sample = make_sample(replace(self.shape, prompt=prompt, rejected=rejected), rejected)
        recipe = self.recipe.model_copy(
            update={"positions": self.recipe.positions.model_copy(update={"mode": "natural"})}
        )
        return Collator.of(recipe, WINDOW)([(0, sample)]).to(self.bench.device)

    def step(self, row: Row, num_rows: int = 2) -> float:
        """Make an update from equal rows, and return the first row's loss."""
        first = 0.0
        for number in range(num_rows):
            [logprobs] = split_logprobs(self.model(row), row)
            loss = sample_loss(self.recipe.objective, logprobs.responses).loss[0]
            first = first if number else loss.item()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return first

    def set_recompute(self, choice: Recompute) -> None:
        checkpoint_layers(self.model, choice)
        self.recompute = choice

    def predicted(self, prompt: int, rejected: int) -> MemoryEstimate:
        """As the planner estimates it."""
        return estimate_memory(self.plan(prompt, rejected))

    def flops(self, prompt: int, rejected: int) -> float:
        return row_flops(self.plan(prompt, rejected))

    def plan(self, prompt: int, rejected: int, device_bytes: int | None = None) -> StepPlan:
        return StepPlan(
            self.model_shape,
            self.recipe,
            RowLayout((SharedPrefixLayout(prompt, (self.shape.response,) * (1 + rejected)),)),
            self.recompute,
            strategy="shard" if self.sharded else "replicate",
            backend=self.backend,
            device_bytes=device_bytes,
        )

    def peak(self, prompt: int, rejected: int) -> dict[str, int | None]:
        """Measure the most bytes that a step allocates from its second row on, and those that the allocator held.

        Both are None if the step does not fit.
        """
        row = self.row(prompt, rejected)
        if not self.bench.on_gpu:  # the step runs, and its peak is counted on fake tensors
            from benchmarks.simulate import simulate_step

            self.step(row)
            if self.sharded:
                return {"allocated": None, "reserved": None}
            return {"allocated": simulate_step(self.config, self.plan(prompt, rejected)).peak, "reserved": None}
        gc.collect()  # what an attempt that did not fit left in cycles
        try:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            if not self.sharded:  # as if a row had gone before
                for group in self.optimizer.param_groups:
                    for weight in group["params"]:
                        weight.grad = torch.zeros_like(weight)
            self.step(row, num_rows=2 if self.sharded else 1)
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            return {"allocated": None, "reserved": None}
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

    def seconds(self, prompt: int, rejected: int, rounds: int) -> list[float]:
        """Measure the seconds of a step of one row with its update, once a round."""
        row, meter = self.row(prompt, rejected), self.bench.meter()
        self.step(row, num_rows=1)
        return [meter.steady_seconds(lambda: self.step(row, num_rows=1)) for _ in range(rounds)]


@dataclass(frozen=True)
class Cap:
    """An amount of memory: that of the card, or of a smaller card."""

    name: str
    bytes: int


def caps(bench: Bench, trial: Trial) -> list[Cap]:
    """Return 80 GB, if the card has more, and the whole card; on a CPU two sizes that suit the small shape."""
    if bench.on_gpu:
        total = torch.cuda.mem_get_info()[1]
        memory = CARDS["h100-80gb"].memory_bytes
        assert memory is not None
        return [Cap("80 GB", memory)] * (memory < total) + [Cap("whole card", total)]
    trial.set_recompute("none")
    size = trial.predicted(bench.shape.prompt, 8).total
    return [Cap("pretended", size), Cap("pretended, larger", size + 4 * 2**20)]


def hold(cap: Cap) -> None:
    """Limit torch's allocator to what a card of this size has left, after what CUDA itself has taken."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (cap.bytes - outside) / total))


def largest(bench: Bench) -> dict[str, Any]:
    """Find the largest M that fits, in 80 GB first."""
    result: dict[str, Any] = {"largest": [], "summary": []}
    with ExitStack() as stack:
        _find_largest("num_rejected", _lora_trial(bench, stack), result)
    return result


def _lora_trial(bench: Bench, stack: ExitStack) -> Trial:
    recipe = TrainRecipe.model_validate({"model": "random", "dtype": str(bench.dtype).removeprefix("torch.")})
    return Trial(bench, bench.shape, recipe, stack, tied=False)


def _find_largest(what: str, trial: Trial, result: dict[str, Any]) -> None:
    """Find the largest size that fits, for each amount of memory, without recomputation and with some."""
    bench, choices, sizes = trial.bench, recompute_choices(trial.backend), caps(trial.bench, trial)
    choices, sizes = (choices[:1], sizes[:1]) if bench.small else (choices[:2], sizes)
    for recompute, cap in product(choices, sizes):
        trial.set_recompute(recompute)
        # Only without recompute: the longer rows of the other choices take half a minute each.
        entry = {"cap": cap.name, "recompute": recompute, **_largest(trial, cap, what, fine=recompute == "none")}
        result["largest"].append({"what": what, **entry})
        result["summary"].append(
            f"largest {what} in {cap.name}, recompute {recompute}: {entry['fits']} fit, "
            f"{entry['does_not_fit']} do not; plan {entry['predicted']}"
        )
        bench.save(result)


def memory(bench: Bench) -> dict[str, Any]:
    """Measure the memory of a training step and compare it with the plan; find the longest prompts that fit."""
    shape = bench.shape
    result: dict[str, Any] = {"against_plan": [], "fits": [], "largest": [], "summary": []}
    with ExitStack() as stack:
        trial = _lora_trial(bench, stack)
        choices = recompute_choices(trial.backend)
        for rejected, recompute in product((2, 8), choices):
            trial.set_recompute(recompute)
            found, expected = trial.peak(shape.prompt, rejected), trial.predicted(shape.prompt, rejected)
            error = None if found["allocated"] is None else expected.allocated / found["allocated"] - 1
            result["against_plan"].append(
                {
                    "num_rejected": rejected,
                    "recompute": recompute,
                    **found,
                    "predicted_allocated": expected.allocated,
                    "predicted_total": expected.total,
                    "error": error,
                }
            )
            off = "did not fit" if error is None else f"{gib(found['allocated'])}, plan off by {error:+.1%}"
            result["summary"].append(f"M={rejected}, recompute {recompute}: {off}; reserved {gib(found['reserved'])}")
            bench.save(result)

        for cap in caps(bench, trial):
            chosen = choose_step(trial.plan(shape.prompt, 8, cap.bytes), CARDS["h100-80gb"], 1)
            choice, reason = chosen.step.recompute, chosen.why_recompute
            trial.set_recompute(choice)
            fits = _fits(trial, cap, shape.prompt, 8)
            result["fits"].append(
                {"cap": cap.name, "num_rejected": 8, "recompute": choice, "why": reason, "fits": fits}
            )
            result["summary"].append(
                f"M=8 at {shape.prompt} in {cap.name}: {'fits' if fits else 'DOES NOT FIT'}, {choice}"
            )
            bench.save(result)
        _find_largest("prompt", trial, result)
    return result


def _fits(trial: Trial, cap: Cap, prompt: int, rejected: int) -> bool:
    if not trial.bench.on_gpu:
        found = trial.peak(prompt, rejected)["allocated"]
        return found is not None and found <= cap.bytes - trial.predicted(prompt, rejected).reserve
    hold(cap)
    try:
        return trial.peak(prompt, rejected)["allocated"] is not None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _largest(trial: Trial, cap: Cap, what: str, *, fine: bool) -> dict[str, int | None]:
    """Find the largest M, or prompt, that fits, while there is time.

    The sizes around the plan's are tried first; ``fine`` then bisects down to 2 %.

    Returns:
        The plan's size, the largest that was seen to fit, and the smallest that was seen not to fit; None: not seen.
    """
    shape = trial.shape
    least, most = (1, 256) if what == "num_rejected" else (16, WINDOW // 2)

    def arguments(size: int) -> tuple[int, int]:
        return (shape.prompt, size) if what == "num_rejected" else (size, shape.rejected)

    if trial.predicted(*arguments(most)).total <= cap.bytes:
        return {"predicted": most, "fits": None, "does_not_fit": None}  # more than anybody wants
    planned = bisect(lambda size: trial.predicted(*arguments(size)).total <= cap.bytes, least - 1, most)
    rate = 0.3 * trial.bench.product_rate()

    def affordable(size: int) -> bool:
        return trial.flops(*arguments(size)) / rate + 5 < trial.bench.left()

    low: int | None = None
    high: int | None = None
    sizes = [max(least, int(planned * share)) for share in (0.97, 1.06, 0.9, 1.15, 0.75, 1.3, 0.5, 2)]
    for size in sizes:
        if (low is not None and size <= low) or (high is not None and size >= high):
            continue
        if not affordable(size):
            break
        if _fits(trial, cap, *arguments(size)):
            low = size
        else:
            high = size
        if low is not None and high is not None:
            break
    while fine and low is not None and high is not None and high - low > max(1, planned // 50):
        middle = (low + high) // 2
        if not affordable(middle):
            break
        low, high = (middle, high) if _fits(trial, cap, *arguments(middle)) else (low, middle)
    return {"predicted": planned, "fits": low, "does_not_fit": high}


def bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number in [low, high] for which it holds. It must hold for ``low`` and up to the answer."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def full(bench: Bench) -> dict[str, Any]:
    """Measure full fine-tuning of a 3B shape in one process under FSDP's mixed precision, as the trainer does it."""
    shape = SMALL if bench.small else THREE_BILLION
    recipe = TrainRecipe.model_validate({"model": "random", "tuning": "full"})
    result: dict[str, Any] = {"steps": [], "summary": []}
    with ExitStack() as stack:
        trial = Trial(bench, shape, recipe, stack, tied=True)
        result["parameters"] = trial.model_shape.parameters
        for recompute in recompute_choices(trial.backend):
            if bench.left() < 20:
                break
            trial.set_recompute(recompute)
            found, expected = trial.peak(shape.prompt, shape.rejected), trial.predicted(shape.prompt, shape.rejected)
            entry: dict[str, Any] = {"recompute": recompute, **found, "predicted_allocated": expected.allocated}
            if found["allocated"] is None and bench.on_gpu:
                result["steps"].append(entry)
                result["summary"].append(f"recompute {recompute}: does not fit")
                continue
            times = trial.seconds(shape.prompt, shape.rejected, rounds=5)
            rate = trial.flops(shape.prompt, shape.rejected) / statistics.median(times)
            entry |= {
                "seconds": times,
                "flops_per_second": rate,
                "share_of_matrix_product": rate / bench.product_rate(),
            }
            allocated = found["allocated"]
            off = "unknown" if allocated is None else f"{expected.allocated / allocated - 1:+.1%}"
            result["summary"].append(
                f"recompute {recompute}: {statistics.median(times):.3f} s a sample with its update, "
                f"{entry['share_of_matrix_product']:.0%} of the matrix product, {gib(allocated)}, plan off by {off}"
            )
            result["steps"].append(entry)
            bench.save(result)
    return result
