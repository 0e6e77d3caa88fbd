"""One training step as it is planned: a model, its largest row, and how a process computes it."""

from __future__ import annotations

from dataclasses import dataclass

from logotrain.plan.shape import ModelShape
from logotrain.recipe.settings import Backend, Recompute, Strategy, TrainRecipe, scores_prompt
from logotrain.rows.layout import RowLayout


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What memory and work of a step follow from. ``dataclasses.replace`` asks what another choice would need.

    Attributes:
        shape: sizes of the model.
        recipe: what is trained, and how.
        row: the largest row.
        recompute: what the backward pass computes again.
        strategy: who holds which weights.
        world_size: number of processes.
        backend: what computes the attention.
        num_rows: rows of a process in a step; from the second one on gradients are there before the forward pass.
        device_bytes: memory of a device; None: no limit is known.
    """

    shape: ModelShape
    recipe: TrainRecipe
    row: RowLayout
    recompute: Recompute = "none"
    strategy: Strategy = "replicate"
    world_size: int = 1
    backend: Backend = "flash"
    num_rows: int = 2
    device_bytes: int | None = None

    @property
    def scored_positions(self) -> int:
        """Positions of the row that the output head reads."""
        scored = sum(sum(sample.response_lengths) for sample in self.row.samples)
        if scores_prompt(self.recipe.objective):
            scored += sum(sample.prompt_length - 1 for sample in self.row.samples)
        return scored
