"""The choices of a training run that depend on memory: who holds which weights, how many processes compute a row
together, and what is computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from logodata.common.errors import UserError
from logotrain.plan.cost import Card, row_flops, step_seconds
from logotrain.plan.memory import MemoryEstimate, estimate_memory, gigabytes
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import TILED, Implementation, Recompute, Strategy, TrainRecipe

_NEAR = 1.1
"""Times that are this close count as equal. The model of time is no better."""


def check_strategy(recipe: TrainRecipe, world_size: int) -> None:
    """Refuse what a strategy cannot compute: full tuning in bfloat16 by replicas, because only sharding computes it;
    shards of 4-bit weights, or under bitsandbytes' optimizers; and shares of a number that does not divide the number
    of processes.

    Raises:
        UserError: the recipe asks for it.
    """
    by_shards = recipe.parallel.strategy == "shard" and world_size > 1
    if by_shards and recipe.tuning == "qlora":
        raise UserError("4-bit weights cannot be sharded", mend="set parallel.strategy=replicate, or tuning=lora")
    name = recipe.optimizer.name
    if name != "adamw" and recipe.mixed_precision:
        raise UserError(
            f"optimizer.name={name} cannot update sharded weights, and full tuning in bfloat16 shards them, on one "
            "process, too",
            mend="set dtype=float32, or optimizer.name=adamw",
        )
    if name != "adamw" and by_shards:
        raise UserError(
            f"optimizer.name={name} cannot update sharded weights",
            mend="set parallel.strategy=replicate, or optimizer.name=adamw",
        )
    size = recipe.parallel.shard_size
    if size is not None and world_size > 1 and world_size % size:
        divisors = ", ".join(str(one) for one in range(2, world_size + 1) if world_size % one == 0)
        raise UserError(
            f"parallel.shard_size={size} does not divide the number of processes, {world_size}",
            mend=f"set it to one of {divisors}, or to null, which splits the weights over all",
        )
    if recipe.mixed_precision and recipe.parallel.strategy == "replicate" and world_size > 1:
        raise UserError(
            f"parallel.strategy=replicate cannot tune all weights in bfloat16 on {world_size} processes: only FSDP "
            "computes in bfloat16 on float32 weights",
            mend="set parallel.strategy to shard or auto, or dtype=float32",
        )


def check_context_size(recipe: TrainRecipe, world_size: int, num_heads: int, why_separate: str) -> None:
    """Refuse a ``parallel.context_size`` that is not possible.

    Args:
        recipe: its setting is checked.
        world_size: number of processes.
        num_heads: number of query heads of the model; any number where rows are not shared.
        why_separate: why responses do not share their prompt; empty if they do.

    Raises:
        UserError: it does not divide the processes, is larger than the heads, or rows are not shared.
    """
    size = recipe.parallel.context_size
    if size == "auto" or size < 2:
        return
    wanted = f"parallel.context_size={size}"
    if world_size % size:
        raise UserError(
            f"{wanted} does not divide the number of processes, {world_size}",
            mend=f"start as many with torchrun --nproc-per-node {size}, or set parallel.context_size=auto",
        )
    if why_separate:
        raise UserError(
            f"{wanted}: rows are split only where responses share their prompt, and here they do not: {why_separate}",
            where=recipe.model,
            mend="set parallel.context_size=1",
        )
    if size > num_heads:
        raise UserError(
            f"{wanted} is more than the model's {num_heads} attention heads",
            where=recipe.model,
            mend=f"set parallel.context_size={num_heads} or less",
        )


def recompute_choices(backend: Implementation) -> tuple[Recompute, ...]:
    """Return the choices of recompute that an attention back end allows, from the fastest to the smallest.

    FlexAttention's compiled kernel is no operator whose result could be kept, so ``selective`` would compute all again.
    """
    choices = get_args(Recompute)
    return tuple(choice for choice in choices if choice != "selective" or backend not in ("flex", "eager"))


def check_recompute(choice: Recompute, backend: Implementation) -> None:
    """Refuse a choice that is not among :func:`recompute_choices`.

    Raises:
        UserError: it would recompute more than it says.
    """
    if choice not in recompute_choices(backend):
        is_flex = backend == "flex"
        by = "FlexAttention" if is_flex else "transformers' eager attention, which these rows need,"
        raise UserError(
            f"recompute=selective cannot keep what {by} computed",
            mend="set recompute=full" + ", or attention=flash or sdpa" * is_flex,
        )


def memory_by_recompute(step: StepPlan) -> dict[Recompute, MemoryEstimate]:
    """Return the memory of the step under each choice of recompute that the back end allows."""
    return {choice: estimate_memory(replace(step, recompute=choice)) for choice in recompute_choices(step.backend)}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A step whose strategy, context size and recompute are chosen.

    Attributes:
        needed: bytes that a device must have.
        fits: whether it has them.
        why_strategy, why_context, why_recompute: the reasons, one line each.
        faster: settings that the model of time finds faster, and how much; empty if there are none.
    """

    step: StepPlan
    needed: int
    fits: bool
    why_strategy: str
    why_context: str
    why_recompute: str
    faster: str


def choose_step(step: StepPlan, card: Card, num_rows: int) -> Chosen:
    """Choose strategy, context size and recompute where the recipe says ``auto``.

    A row stays on one device, without tiles and host memory, where it fits so: with replicated weights if it can, and
    with the least that is computed again. Else the fastest choice that fits is taken, by
    :func:`logotrain.plan.cost.step_seconds`; of those that are nearly as fast, the first in this order: fewer processes
    for a row, no tiles and no host memory, replicated weights, less that is computed again. On a card without rates it
    is the first that fits. If none fits, it is the one that needs least.

    Args:
        step: its own strategy, context size, recompute and number of rows of a process are not read.
        card: the device.
        num_rows: number of rows of the step over all processes.
    """
    tried = [_Tried.of(candidate, card, num_rows) for candidate in _candidates(step, card, num_rows)]
    fitting = [it for it in tried if it.fits]
    fastest = min(fitting, key=lambda it: it.seconds) if fitting else None
    if fastest is None:
        chosen = min(tried, key=lambda it: it.needed)
    elif _is_plain(fitting[0].step):
        chosen = fitting[0]
    else:
        chosen = next(it for it in fitting if it.seconds <= _NEAR * fastest.seconds)
    return Chosen(
        chosen.step,
        chosen.needed,
        chosen.fits,
        _only_strategy(step) or _why_strategy(chosen, tried),
        _why_context(chosen, tried),
        _why_recompute(chosen, tried),
        _settings(fastest, chosen) if fastest is not None and chosen.seconds > _NEAR * fastest.seconds else "",
    )


def _is_plain(step: StepPlan) -> bool:
    return step.context_size == 1 and step.recompute not in TILED


def _settings(faster: _Tried, chosen: _Tried) -> str:
    """Return what to set for a faster step, and how much faster it is."""
    step = faster.step
    settings = f"parallel.context_size={step.context_size} parallel.strategy={step.strategy} recompute={step.recompute}"
    return f"{settings}: {chosen.seconds / faster.seconds:.1f} times as fast"


@dataclass(frozen=True, slots=True)
class _Tried:
    """A candidate: bytes that a device must have, whether it has them, and seconds of a step; 0 if not known."""

    step: StepPlan
    needed: int
    fits: bool
    seconds: float

    @classmethod
    def of(cls, step: StepPlan, card: Card, num_rows: int) -> _Tried:
        needed = estimate_memory(step).total
        fits = step.device_bytes is None or needed <= step.device_bytes
        return cls(step, needed, fits, step_seconds(card, step, row_flops(step), num_rows) or 0)

    def beats(self, others: list[_Tried]) -> str:
        """Say why none of these was chosen."""
        fitting = [it for it in others if it.fits]
        if not fitting:
            return f"needs {gigabytes(min(it.needed for it in others))} of {gigabytes(self.step.device_bytes or 0)}"
        fastest = min(fitting, key=lambda it: it.seconds)
        if not self.seconds:
            return f"fits only with recompute={fastest.step.recompute}"
        return f"takes {fastest.seconds / self.seconds:.1f} times as long"


def _why_strategy(chosen: _Tried, tried: list[_Tried]) -> str:
    if not chosen.fits:
        return "it needs least"
    if chosen.step.strategy == "shard":
        return f"replicate {chosen.beats([it for it in tried if it.step.strategy == 'replicate'])}"
    have = gigabytes(chosen.step.device_bytes or 0)
    return f"{have} holds the whole model and a row, {gigabytes(chosen.needed)}"


def _why_context(chosen: _Tried, tried: list[_Tried]) -> str:
    """Return why several processes compute a row; empty if one does because nothing asks for more."""
    if chosen.step.recipe.parallel.context_size != "auto":
        return "as asked for"
    if chosen.step.context_size == 1:
        return ""
    return f"1 {chosen.beats([it for it in tried if it.step.context_size == 1])}"


def _why_recompute(chosen: _Tried, tried: list[_Tried]) -> str:
    step = chosen.step
    if step.recipe.recompute != "auto":
        return "as asked for"
    if step.device_bytes is None:
        return "no limit of memory is known"
    have, caveat = gigabytes(step.device_bytes), step.shape.caveat and f"; {step.shape.caveat}"
    if not chosen.fits:
        return f"it needs least; {gigabytes(chosen.needed)} will not fit in {have}{caveat}"
    alike = (step.strategy, step.context_size)
    before = [it for it in tried[: tried.index(chosen)] if (it.step.strategy, it.step.context_size) == alike]
    larger = ""
    for it in before:
        if not it.fits:
            larger = f", {it.step.recompute} with {gigabytes(it.needed)} does not"
    return f"{gigabytes(chosen.needed)} fits in {have}{larger}{_untiled(step)}{caveat}"


def _only_strategy(step: StepPlan) -> str:
    """Return why there is only one strategy; empty if there are two."""
    recipe = step.recipe
    if recipe.mixed_precision:
        return "only FSDP computes in bfloat16 on float32 weights"
    if step.world_size == 1:
        return "one process"
    if recipe.parallel.strategy != "auto":
        return "as asked for"
    if recipe.tuning == "qlora":
        return "4-bit weights cannot be split"
    if recipe.optimizer.name != "adamw":
        return f"optimizer.name={recipe.optimizer.name} cannot update weights that are split"
    if recipe.tuning == "full":
        return "full tuning"
    return "no limit of memory is known" if step.device_bytes is None else ""


def _strategies(step: StepPlan) -> tuple[Strategy, ...]:
    recipe = step.recipe
    if not _only_strategy(step):
        return ("replicate", "shard")
    if recipe.mixed_precision:
        return ("shard",)
    if step.world_size > 1 and recipe.parallel.strategy != "auto":
        return (recipe.parallel.strategy,)
    return (least_memory(recipe),) if step.world_size > 1 else ("replicate",)


def least_memory(recipe: TrainRecipe) -> Strategy:
    """Return the strategy for several processes where memory is not estimated."""
    return "shard" if recipe.tuning == "full" and recipe.optimizer.name == "adamw" else "replicate"


def _context_sizes(step: StepPlan) -> list[int]:
    """Return the numbers of processes that can compute a row together, evenly."""
    asked = step.recipe.parallel.context_size
    if asked != "auto":
        return [asked]
    most = step.world_size if step.shared and step.device_bytes is not None else 1
    return [size for size in range(1, most + 1) if step.world_size % size == step.shape.num_heads % size == 0]


def _candidates(step: StepPlan, card: Card, num_rows: int) -> Iterator[StepPlan]:
    """Yield all that can be chosen, the plainest first."""
    asked = step.recipe.recompute
    groups: list[list[Recompute]] = [[asked]] if asked != "auto" else [[], []]
    if asked == "auto":
        for choice in recompute_choices(step.backend):
            groups[choice in TILED].append(choice)
    for size in _context_sizes(step):
        rows = -(-num_rows // (step.world_size // size))
        for choices in groups:
            for strategy in _strategies(step):
                for choice in choices:
                    made = replace(step, strategy=strategy, context_size=size, recompute=choice, num_rows=rows)
                    if choice == asked or _is_possible(made, card):
                        yield made


def _is_possible(step: StepPlan, card: Card) -> bool:
    """Return whether a choice of recompute does something: there is a part that runs in tiles, or there is host memory
    beside the device's, and enough."""
    if step.recompute == "tiled":
        return any(layer.has_tiles for layer in step.shape.layers)
    if step.recompute != "offloaded":
        return True
    enough = step.host_bytes is None or estimate_memory(step).host <= step.host_bytes
    return card.host_link is not None and enough


def _untiled(step: StepPlan) -> str:
    """Return how many layers have nothing that runs in tiles, if they should."""
    without = sum(layer.count for layer in step.shape.layers if not layer.has_tiles)
    if step.recompute not in TILED or not without:
        return ""
    return f"; {without} of {step.shape.num_layers} layers have no MLP that runs in tiles"
