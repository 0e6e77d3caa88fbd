"""``logotrain plan``: what a run will need, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from logodata.common.errors import UserError
from logotrain.attention.choice import choose_attention
from logotrain.plan.assumed import PlannedData
from logotrain.plan.choices import (
    check_context_size,
    check_recompute,
    choose_step,
    memory_by_recompute,
    recompute_choices,
)
from logotrain.plan.cost import (
    CARDS,
    USED_SHARE,
    compute_seconds,
    forward_flops,
    reference_flops,
    row_flops,
    step_seconds,
)
from logotrain.plan.memory import MemoryEstimate, gigabytes
from logotrain.plan.shape import model_shape, trained_weights
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import ParallelSettings, Recompute, Strategy, TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from logotrain.rows.packing import count_rows, largest_row
from logotrain.schedule import Schedule
from logotrain.trainable import read_traits

_CONTEXTS = (4096, 8192, 16384, 32768, 65536)
_NUM_REJECTED = tuple(range(1, 9))
_LONG_CONTEXTS = (32768, 65536, 131072, 262144, 524288)
_GPUS = (1, 2, 4, 8, 16, 32)
_SHORT = {"none": "none", "selective": "sel.", "full": "full", "tiled": "tiled", "offloaded": "offl.", None: "-"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many weights the model has, how many of them are trained, and how many are the output head's."""

    total: int
    trained: int
    head: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether the card holds a row of one sample, whose responses are all as long as the longest of the data.

    Attributes:
        prompt: length of the prompt, in tokens.
        num_rejected: number of dis-preferred responses.
        recompute: the fastest choice that fits; None if none does.
        total: bytes that each choice needs.
    """

    prompt: int
    num_rejected: int
    recompute: Recompute | None
    total: dict[Recompute, int]


@dataclass(frozen=True, slots=True)
class LongFit:
    """How a number of the cards computes a row of one sample with a long prompt.

    Attributes:
        prompt: length of the prompt, in tokens.
        num_gpus: number of cards.
        context_size: number of cards that compute the row together.
        recompute: None if the row fits in no way.
    """

    prompt: int
    num_gpus: int
    context_size: int
    strategy: Strategy
    recompute: Recompute | None

    def __str__(self) -> str:
        if self.recompute is None:
            return "-"
        return f"{self.context_size} {_SHORT[self.recompute]}{' s' if self.strategy == 'shard' else ''}"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Estimates of a run. Work is in FLOPs, and includes what is computed again. Values per step or sample are means.

    Attributes:
        assumption: what was assumed in place of data; empty if nothing was.
        largest_row: length of the longest row, in tokens.
        samples_per_epoch: number of samples of an epoch.
        mix_per_epoch: number of these that are of ``data.mix``.
        flops_before_step_1: of the untrained model's log-probabilities, where the objective reads them.
        reference_flops_per_sample: see :func:`logotrain.plan.cost.reference_flops`.
        memory: memory of one process under each choice of recompute.
        context_size: number of processes that compute a row together.
        context_reason: why; empty where nothing asks for more than one.
        faster: settings that the model of time finds faster, and how much; empty if there are none.
        fits: what fits one card, by length of the prompt and number of dis-preferred responses.
        long_fits: what fits several of them, by length of the prompt and number of cards.
        misfit: if the largest row does not fit the card, what it needs and what the card has; else empty.
        remedies: changes to recipe or options, each of which makes it fit.
        seconds_before_step_1: expected of these log-probabilities; None as ``seconds_per_step``.
        seconds_per_step: None if the card has no known rate, or the run does not fit it.
        counts_windows_whole: whether layers with windows or chunks are timed as if they attended to everything.
    """

    model: str
    card: str
    num_gpus: int
    attention: str
    assumption: str
    parameters: Parameters
    largest_row: int
    samples_per_epoch: int
    mix_per_epoch: int
    tokens_per_step: float
    total_steps: int
    flops_per_sample: float
    reference_flops_per_sample: float
    flops_per_step: float
    flops_before_step_1: float
    strategy: Strategy
    strategy_reason: str
    context_size: int
    context_reason: str
    recompute: Recompute
    recompute_reason: str
    faster: str
    memory: dict[Recompute, MemoryEstimate]
    fits: list[Fit]
    long_fits: list[LongFit]
    misfit: str
    remedies: list[str]
    seconds_before_step_1: float | None
    seconds_per_step: float | None
    counts_windows_whole: bool

    def check_fits(self) -> None:
        """Refuse a run that the card cannot hold.

        Raises:
            UserError: the run does not fit; the message says what would.
        """
        if self.misfit:
            mend = "no single change helps: take shorter prompts, more GPUs, or tuning=qlora"
            if self.remedies:
                mend = f"each of these fits: {'; '.join(self.remedies)}"
            raise UserError(f"does not fit: {self.misfit}", where=self.model, mend=mend)

    @property
    def hours(self) -> float | None:
        """The hours that the whole run takes; None if the seconds of a step are not known."""
        if self.seconds_per_step is None:
            return None
        return ((self.seconds_before_step_1 or 0) + self.seconds_per_step * self.total_steps) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values, for other programs."""
        values = asdict(self)
        for choice, estimate in self.memory.items():
            values["memory"][choice] |= {"allocated": estimate.allocated, "total": estimate.total}
        return {**values, "hours": self.hours}


def make_plan(recipe: TrainRecipe, planned: PlannedData, *, card: str, num_gpus: int) -> RunPlan:
    """Estimate the run of ``recipe`` on ``num_gpus`` devices of the kind ``card``, a name of ``CARDS``.

    Raises:
        UserError: the model cannot be trained or estimated, or the card does not run what the recipe asks for.
    """
    shape = model_shape(planned.config)
    trained = trained_weights(shape, recipe)
    data = planned.data
    collator = Collator.of(recipe, data.target_length)
    layouts = [collator.layout(sample) for sample in data.example_epoch()]
    device = torch.device("cpu" if card == "cpu" else "cuda")
    traits = read_traits(planned.config)
    attention = choose_attention(
        traits,
        device,
        getattr(torch, recipe.dtype),
        sharing=recipe.sharing,
        wanted=recipe.attention,
        head_width=shape.head_width,
        here=False,
    )
    row_tokens = attention.row_tokens(recipe.row_tokens)
    samples_per_step = min(recipe.samples_per_step, planned.num_samples * recipe.epochs)
    rows_per_step = max(1, count_rows(samples_per_step, layouts, row_tokens))
    check_context_size(recipe, num_gpus, shape.num_heads, "" if attention.shared else attention.reason)
    step = StepPlan(
        shape=shape,
        recipe=recipe,
        row=largest_row(
            [*layouts, *(collator.layout(sample) for sample in data.mix)], row_tokens, collator.pad_to_multiple
        ),
        world_size=num_gpus,
        backend=attention.by,
        shared=attention.shared,
        device_bytes=CARDS[card].memory_bytes,
    )
    chosen = choose_step(step, CARDS[card], rows_per_step)
    step, recompute = chosen.step, chosen.step.recompute
    check_recompute(recompute, step.backend)

    total_steps = Schedule(recipe, planned.num_samples).total_steps
    misfit = ""
    if not chosen.fits and step.device_bytes is not None and total_steps:
        misfit = f"{gigabytes(chosen.needed)} needed, {card} has {gigabytes(step.device_bytes)}"
    longest = max(max(layout.response_lengths) for layout in layouts)
    fits = _fits(step, longest)
    of_each_sample = [replace(step, row=layout) for layout in layouts]
    mean_flops = _mean([row_flops(one) for one in of_each_sample])
    before_flops = 0.0
    if total_steps and recipe.objective.uses_reference:
        untrained = replace(collator, parts=recipe.objective.reference_parts)
        draws = min(total_steps * samples_per_step, planned.num_samples * recipe.epochs)
        of_mix = round(draws * data.mix_per_epoch / planned.num_samples)
        num_long = planned.num_samples - data.mix_per_epoch
        # Those of the mix keep their positions, so that each is computed once.
        computed = (
            (data.samples, draws - of_mix if recipe.redraws_reference else min(draws - of_mix, num_long)),
            (data.mix, min(of_mix, len(data.mix))),
        )
        for samples, times in computed:
            of_untrained = [forward_flops(replace(step, row=untrained.layout(sample))) for sample in samples]
            before_flops += _mean(of_untrained) * times if samples else 0.0
    flops_per_row = mean_flops * samples_per_step / rows_per_step
    return RunPlan(
        model=recipe.model,
        card=card,
        num_gpus=num_gpus,
        attention=str(attention),
        assumption=planned.assumption,
        parameters=Parameters(shape.parameters, trained.total, shape.head_parameters),
        largest_row=step.row.total_length,
        samples_per_epoch=planned.num_samples,
        mix_per_epoch=data.mix_per_epoch,
        tokens_per_step=_mean([layout.total_length for layout in layouts]) * samples_per_step,
        total_steps=total_steps,
        flops_per_sample=mean_flops,
        reference_flops_per_sample=_mean([reference_flops(one) for one in of_each_sample]),
        flops_per_step=mean_flops * samples_per_step,
        flops_before_step_1=before_flops,
        strategy=step.strategy,
        strategy_reason=chosen.why_strategy,
        context_size=step.context_size,
        context_reason=chosen.why_context,
        recompute=recompute,
        recompute_reason=chosen.why_recompute,
        faster=chosen.faster,
        memory=memory_by_recompute(step),
        fits=fits,
        long_fits=_long_fits(step, card, longest),
        misfit=misfit,
        remedies=_remedies(step, fits, card, rows_per_step) if misfit else [],
        seconds_before_step_1=None if misfit else compute_seconds(CARDS[card], before_flops / num_gpus),
        seconds_per_step=None if misfit else step_seconds(CARDS[card], step, flops_per_row, rows_per_step),
        counts_windows_whole=not traits.features.isdisjoint({"sliding", "chunked"}),
    )


def _remedies(step: StepPlan, fits: Sequence[Fit], card: str, rows_per_step: int) -> list[str]:
    """Return single changes under which the step's row, or one with a shorter prompt, fits."""
    recipe = step.recipe

    def holds(name: str = card, world_size: int = step.world_size, **fields: object) -> bool:
        changed = replace(
            step,
            recipe=recipe.model_copy(update=fields),
            world_size=world_size,
            device_bytes=CARDS[name].memory_bytes,
        )
        return changed.device_bytes is not None and choose_step(changed, CARDS[name], rows_per_step).fits

    found = []
    if recipe.recompute != "auto":
        found += [f"recompute={choice}" for choice in recompute_choices(step.backend) if holds(recompute=choice)][:1]
    if trained_weights(step.shape, recipe).embedding and recipe.tuning != "full":
        frozen = recipe.lora.model_copy(update={"train_embeddings": False})
        found += ["lora.train_embeddings=false"] * holds(lora=frozen)
    if recipe.tuning == "lora" and recipe.parallel.strategy != "shard" and recipe.optimizer.name == "adamw":
        found += ["tuning=qlora"] * holds(tuning="qlora")
    size = recipe.parallel.shard_size
    if size is not None and step.strategy == "shard":
        over_all = recipe.parallel.model_copy(update={"shard_size": None})
        found += ["parallel.shard_size=null"] * holds(parallel=over_all)
    free = recipe.parallel.model_copy(update={"strategy": "auto", "context_size": "auto"})
    set_back = "".join(
        f" parallel.{name}=auto" for name in ("strategy", "context_size") if getattr(recipe.parallel, name) != "auto"
    )
    counts = [step.world_size * factor for factor in (1, 2, 4, 8, 16) if set_back or factor > 1]
    counts = [count for count in counts if count % (size or 1) == 0]
    gpus = next((count for count in counts if holds(world_size=count, parallel=free)), None)
    if gpus is not None:
        found.append(f"--gpus {gpus}{set_back}")
    found += [f"--card {name}" for name in CARDS if name != card and holds(name)]
    num_rejected = max(len(sample.response_lengths) for sample in step.row.samples) - 1
    prompts = [
        fit.prompt
        for fit in fits
        if fit.num_rejected == num_rejected
        and (fit.recompute if recipe.recompute == "auto" else fit.total[recipe.recompute] <= (step.device_bytes or 0))
    ]
    if prompts:
        found.append(f"prompts of {max(prompts)} tokens")
    return found


def _row(step: StepPlan, prompt: int, responses: tuple[int, ...]) -> RowLayout:
    """Return a row of one sample of these lengths. Its short prompt, if it has one, is that of the step's row."""
    parts = step.recipe.objective.parts
    return RowLayout(
        tuple(
            SharedPrefixLayout(
                min(prompt, like.prompt_length) if part.short else prompt, responses if part.rejected else responses[:1]
            )
            for part, like in zip(parts, step.row.samples, strict=False)
        )
    )


def _fits(step: StepPlan, response: int) -> list[Fit]:
    """Return what fits with one sample a row and responses of ``response`` tokens, as the step's weights are held and
    its rows split; nothing if memory has no limit."""
    if step.device_bytes is None:
        return []
    found = []
    for prompt in _CONTEXTS:
        for rejected in _NUM_REJECTED if step.recipe.objective.uses_rejected else (0,):
            row = _row(step, prompt, (response,) * (1 + rejected))
            total = {choice: needs.total for choice, needs in memory_by_recompute(replace(step, row=row)).items()}
            first = next((choice for choice, size in total.items() if size <= step.device_bytes), None)
            found.append(Fit(prompt, rejected, first, total))
    return found


def _long_fits(step: StepPlan, card: str, response: int) -> list[LongFit]:
    """Return what fits with one sample a row and responses of ``response`` tokens, on this many cards and on others,
    where the recipe leaves it open; nothing if memory has no limit."""
    if step.device_bytes is None:
        return []
    found = []
    recipe = step.recipe.model_copy(
        update={"recompute": "auto", "parallel": ParallelSettings(strategy="auto", context_size="auto")}
    )
    responses = (response,) * max(len(sample.response_lengths) for sample in step.row.samples)
    for prompt in _LONG_CONTEXTS:
        row = _row(step, prompt, responses)
        for num_gpus in _GPUS:
            other = replace(step, recipe=recipe, row=row, world_size=num_gpus)
            chosen = choose_step(other, CARDS[card], recipe.samples_per_step)
            made = chosen.step
            recompute = made.recompute if chosen.fits else None
            found.append(LongFit(prompt, num_gpus, made.context_size, made.strategy, recompute))
    return found


def render(plan: RunPlan) -> Group:
    """Return the plan as tables for the terminal."""
    card = CARDS[plan.card]
    run = Table("run", "", title=f"{plan.model} on {plan.num_gpus} x {plan.card}", title_justify="left")
    parameters = plan.parameters
    run.add_row("parameters", f"{parameters.total:,}, of the head {parameters.head:,}")
    if not plan.total_steps:
        run.add_row("trained", "nothing: epochs=0")
        return Group(run)
    run.add_row("trained", f"{parameters.trained:,} ({parameters.trained / parameters.total:.2%})")
    if plan.assumption:
        run.add_row("assumed, for want of data", plan.assumption)
    if plan.mix_per_epoch:
        long = plan.samples_per_epoch - plan.mix_per_epoch
        run.add_row("an epoch", f"{long:,} long + {plan.mix_per_epoch:,} short samples (data.mix)")
    run.add_row("largest row", f"{plan.largest_row:,} tokens")
    run.add_row("a step", f"{plan.tokens_per_step:,.0f} tokens, {_flops(plan.flops_per_step)}")
    ratio = plan.reference_flops_per_sample / plan.flops_per_sample
    reference = f"{_flops(plan.reference_flops_per_sample)} as a row a response with all logits, all recomputed"
    run.add_row("a sample", f"{_flops(plan.flops_per_sample)}; {reference}: {ratio:.2f} times as much")
    if plan.flops_before_step_1:
        run.add_row("before step 1", f"{_flops(plan.flops_before_step_1)} for the untrained model's log-probabilities")
    run.add_row("weights", f"{plan.strategy} ({plan.strategy_reason})")
    if plan.context_reason:
        run.add_row("context size", f"{plan.context_size} ({plan.context_reason})")
    run.add_row("attention", plan.attention)
    run.add_row("recompute", f"{plan.recompute} ({plan.recompute_reason})")
    if plan.faster:
        run.add_row("estimated as faster", plan.faster)
    if plan.misfit:
        run.add_row("does not fit", plan.misfit)
    elif plan.seconds_per_step is None or plan.hours is None:
        run.add_row("time", f"{plan.total_steps} steps; not estimated for {plan.card}")
    else:
        rate = f"{USED_SHARE:.0%} of the rate of matrix products, {card.measured_share:.0%} of the datasheet's"
        more = "; too high, since windows count as full attention" if plan.counts_windows_whole else ""
        steps = f"{plan.total_steps} steps of {plan.seconds_per_step:.1f} s"
        if plan.seconds_before_step_1:
            steps += f" after {plan.seconds_before_step_1:.0f} s"
        run.add_row("time", f"{steps}: {plan.hours:.2f} h, at {rate}{more}")

    memory = Table("", *plan.memory, title="memory of a device", title_justify="left")
    estimates = plan.memory.values()
    for name in dict.fromkeys(part for estimate in estimates for part in estimate.parts):
        memory.add_row(name, *(gigabytes(estimate.parts.get(name, 0)) for estimate in estimates))
    memory.add_row("context, fragments", *(gigabytes(estimate.reserve) for estimate in estimates))
    memory.add_section()
    memory.add_row("total", *(gigabytes(estimate.total) for estimate in estimates))
    memory.add_row("fullest at", *(estimate.moment for estimate in estimates))
    if any(estimate.host for estimate in estimates):
        memory.add_row("of the host", *(gigabytes(estimate.host) if estimate.host else "" for estimate in estimates))
    if card.memory_bytes is None:
        return Group(run, memory)

    columns = list(dict.fromkeys(fit.num_rejected for fit in plan.fits))
    title = f"fastest recompute that fits {gigabytes(card.memory_bytes)}, by prompt and M"
    fits = Table("prompt", *(f"M={count}" for count in columns), title=title, title_justify="left")
    for prompt in _CONTEXTS:
        cells = {fit.num_rejected: fit.recompute for fit in plan.fits if fit.prompt == prompt}
        fits.add_row(f"{prompt // 1024}K", *(_SHORT[cells[count]] for count in columns))
    title = "long prompts: GPUs a row, recompute, s where weights are sharded; by prompt and GPUs"
    long_fits = Table("prompt", *(f"{count}" for count in _GPUS), title=title, title_justify="left")
    for prompt in _LONG_CONTEXTS:
        long_fits.add_row(f"{prompt // 1024}K", *(str(fit) for fit in plan.long_fits if fit.prompt == prompt))
    return Group(run, memory, fits, long_fits)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _flops(value: float) -> str:
    return f"{value / 1e15:,.2f} PFLOP" if value >= 1e15 else f"{value / 1e12:,.1f} TFLOP"
