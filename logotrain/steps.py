"""One training step: the losses of a step's samples, their gradients and the update. And the same losses of held-out
samples, without an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain.interrupt import StopFlag
from logotrain.loss.logprobs import LogprobModel, SampleLogprobs, split_logprobs
from logotrain.loss.objective import sample_loss
from logotrain.loss.reference import ReferenceLogprobs
from logotrain.loss.routers import RouterRecord
from logotrain.metrics import Metrics, mean_metrics
from logotrain.parallel import World, without_backward
from logotrain.prepare import Prepared
from logotrain.recipe.objectives import ObjectiveSettings
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator, Draw, row_length
from logotrain.rows.packing import share_rows

_SHOWN_SAMPLES = 3
"""The number of samples that an error about a step names."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the steps of a run have in common.

    Attributes:
        router_weight: weight of the router loss in a sample's loss; None leaves it out.
    """

    recipe: TrainRecipe
    world: World
    prepared: Prepared
    optimizer: Optimizer
    collator: Collator
    router_weight: float | None

    def rows(self, draws: Sequence[Draw]) -> list[tuple[list[int], bool]]:
        """Return this process's rows of a step, each as indices into ``draws`` and whether the row counts."""
        group = self.prepared.model.context_group  # its processes compute the same rows
        return share_rows(
            [self.collator.layout(sample) for _, sample in draws],
            self.world.size // group.size,
            self.world.rank // group.size,
            row_tokens=self.prepared.attention.row_tokens(self.recipe.row_tokens),
            attention_share=self.prepared.attention_share,
        )


def train_step(
    run: Run, draws: Sequence[Draw], reference: ReferenceLogprobs | None, *, step: int, lr: float, stop: StopFlag
) -> tuple[Metrics, float] | None:
    """Make update number ``step`` (from 1), and return its metrics and gradient norm.

    None means that the run was asked to stop before the end of the step; then nothing has changed.

    Raises:
        UserError: a metric or the gradient norm is not finite.
    """
    world, model, sharded = run.world, run.prepared.model, run.prepared.sharded
    run.optimizer.zero_grad(set_to_none=True)
    found: list[tuple[int, Metrics]] = []
    rows = run.rows(draws)
    for number, (indices, counts) in enumerate(rows):
        if world.any(bool(stop)):
            return None
        if sharded:
            # Unsharded gradients of full tuning are too large to keep until the last row.
            last = number == len(rows) - 1 or run.recipe.tuning == "full"
            model.set_requires_gradient_sync(last)  # type: ignore[operator]  # FSDP adds it
        losses = list(_row_losses(run, [draws[index] for index in indices], reference))
        if counts:
            found += [(index, metrics) for index, (_, metrics) in zip(indices, losses, strict=True)]
        # FSDP averages gradients over processes, but len(draws) counts the samples of all processes. Processes that
        # compute a row together each have a part of its gradient.
        weight = (world.size if sharded else 1) / len(draws) if counts else 0.0
        (torch.stack([loss for loss, _ in losses]).sum() * weight).backward()
    everything = dict(pair for pairs in world.gather(found) for pair in pairs)
    for index in sorted(everything):
        _check_finite(everything[index], draws[index], f"step {step}", untrained=step == 1)
    parameters = trained_weights(model)
    if not sharded:
        world.add_gradients(parameters)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    norm = clip_grad_norm_(parameters, run.recipe.optimizer.max_grad_norm)
    grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    if not math.isfinite(grad_norm):
        names = [sample.id for _, sample in draws]
        more = f" and {len(names) - _SHOWN_SAMPLES} more" if len(names) > _SHOWN_SAMPLES else ""
        where = f"step {step}, samples {', '.join(names[:_SHOWN_SAMPLES])}{more}"
        raise _not_finite(f"gradient norm is {grad_norm}", where, untrained=step == 1)
    run.optimizer.step()
    return mean_metrics([everything[index] for index in sorted(everything)]), grad_norm


def measure(
    run: Run,
    draws: Sequence[Draw],
    reference: ReferenceLogprobs | None,
    *,
    step: int,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> Metrics | None:
    """Return the metrics of held-out draws, as means, after ``step`` updates. The model is not changed.

    They are computed in blocks as large as a step. ``advance`` is told the number of samples of each block that is
    done. None means that the run was asked to stop before the last block.

    Raises:
        UserError: a metric is not finite.
    """
    found: dict[int, Metrics] = {}
    with without_backward(run.prepared.model):
        for start in range(0, len(draws), run.recipe.samples_per_step):
            if run.world.any(bool(stop)):
                return None
            block = draws[start : start + run.recipe.samples_per_step]
            for indices, _ in run.rows(block):
                losses = _row_losses(run, [block[index] for index in indices], reference)
                found |= {start + index: metrics for index, (_, metrics) in zip(indices, losses, strict=True)}
            advance(len(block))
    everything = {index: metrics for part in run.world.gather(found) for index, metrics in part.items()}
    for index, draw in enumerate(draws):
        _check_finite(everything[index], draw, f"validation after step {step}", untrained=step == 0)
    return mean_metrics([everything[index] for index in range(len(draws))])


def check_update(run: Run, step: int) -> None:
    """Refuse weights that the update of ``step`` made infinite or NaN, because a run cannot continue from them.

    Raises:
        UserError: a trained weight is not finite.
    """
    own = (
        weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained_weights(run.prepared.model)
    )
    # aminmax returns NaN if there is one. Unlike isfinite it needs no memory, and full tuning has none to spare.
    extremes = [extreme for weight in own if weight.numel() for extreme in torch.aminmax(weight.detach())]
    if run.world.any(not all(math.isfinite(extreme.item()) for extreme in extremes)):
        raise _not_finite("the update made weights infinite or NaN", f"step {step}")


def trained_weights(model: LogprobModel) -> list[nn.Parameter]:
    """Return the weights that the optimizer updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _row_losses(
    run: Run, draws: Sequence[Draw], reference: ReferenceLogprobs | None
) -> Iterator[tuple[Tensor, Metrics]]:
    """Compute one row, and yield the loss, a scalar, and the metrics of each of its samples."""
    row = run.collator(draws).to(run.world.device)
    routers = RouterRecord(loss=run.router_weight is not None)
    parts, count = split_logprobs(run.prepared.model(row, routers), row), len(run.collator.parts)
    for place, draw in enumerate(draws):
        expected = None if reference is None else reference.of(draw, run.world.device)
        own = slice(place * count, (place + 1) * count)
        loss, metrics = _sample_loss(draw[1], parts[own], run.recipe.objective, expected)
        if run.router_weight is not None:
            router_loss = torch.stack(routers.losses[own]).mean()
            loss = loss + run.router_weight * router_loss
            metrics = metrics.model_copy(update={"loss": loss.item(), "router_loss": router_loss.item()})
        if routers.shares:
            metrics = metrics.model_copy(update={"expert_share": max(routers.shares[own])})
        yield loss, metrics


def _sample_loss(
    sample: PreferenceSample, parts: Sequence[SampleLogprobs], settings: ObjectiveSettings, reference: Tensor | None
) -> tuple[Tensor, Metrics]:
    """Return the loss of one sample, a scalar with gradients, and its metrics."""
    (first, *others), prompt = parts, None
    if settings.scores_prompt:
        prompt = first.prompt
    long_chosen = others[0].responses[0] if others else None
    terms = sample_loss(settings, first.responses, long_chosen=long_chosen, prompt=prompt, reference=reference)
    chosen = first.responses[0].mean().item()
    compared = {"chosen_logp": chosen}
    if terms.margin is not None:
        margin = terms.margin.item()
        compared |= {"margin": margin, "rejected_logp": chosen - margin, "accuracy": float(margin > 0)}
    if terms.reward_margin is not None:
        reward = terms.reward_margin.item()
        compared |= {"reward_margin": reward, "reward_accuracy": float(reward > 0)}
    if long_chosen is not None:  # responses were compared under the short prompt
        compared = {f"short_{name}": value for name, value in compared.items()}
        compared["chosen_logp"] = long_chosen.mean().item()
    ended = [float(response.ended) for response in sample.rejected] if settings.uses_rejected else []
    return terms.loss[0], Metrics(
        loss=terms.loss.item(),
        preference_loss=terms.preference.item(),
        sft_loss=terms.sft.item(),
        distance=None if terms.distance is None else terms.distance.item(),
        **compared,
        chosen_ended=float(sample.chosen.ended),
        rejected_ended=sum(ended) / len(ended) if ended else None,
        tokens=row_length(sample, settings.parts),
    )


def _check_finite(metrics: Metrics, draw: Draw, when: str, *, untrained: bool) -> None:
    if metrics.fault is not None:
        raise _not_finite(metrics.fault, f"{when}, sample {draw[1].id}", untrained=untrained)


def _not_finite(what: str, where: str, *, untrained: bool = False) -> UserError:
    if untrained:
        mend = (
            "no update was made yet: try dtype=float32 or a lower beta of the objective; else the model's weights are "
            "damaged"
        )
    else:
        mend = (
            "checkpoints from before are kept; start again in another -o with a lower optimizer.lr, or a lower beta of "
            "the objective"
        )
    return UserError(what, where=where, mend=mend)
