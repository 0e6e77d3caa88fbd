"""One training step as it is planned: a model, its largest row, and how a process computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from logotrain.plan.shape import LayerShape, ModelShape
from logotrain.recipe.settings import Implementation, Recompute, Strategy, TrainRecipe
from logotrain.rows.layout import RowLayout


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All that the memory and the work of a step follow from.

    Attributes:
        row: the largest row of the run.
        world_size: number of processes.
        context_size: number of processes that compute one row together.
        num_rows: number of rows of one process in a step. From the second one on, gradients are in memory before the
            forward pass.
        device_bytes: memory of one device; None if no limit is known.
        host_bytes: memory of the machine for one process; None if no limit is known.
        shared: whether the responses of a sample share one computation of their prompt.
    """

    shape: ModelShape
    recipe: TrainRecipe
    row: RowLayout
    recompute: Recompute = "none"
    strategy: Strategy = "replicate"
    world_size: int = 1
    context_size: int = 1
    backend: Implementation = "flash"
    num_rows: int = 2
    device_bytes: int | None = None
    host_bytes: int | None = None
    shared: bool = True

    @property
    def computed(self) -> RowLayout:
        """The row as it is computed: without sharing, each response after a prompt of its own."""
        return self.row if self.shared else self.row.separate

    @property
    def activation_bytes(self) -> int:
        """The bytes of an activation, b. Without FSDP's mixed precision float32 weights compute in float32."""
        narrow = self.recipe.dtype == "bfloat16" and (self.strategy == "shard" or self.recipe.tuning != "full")
        return 2 if narrow else 4

    @property
    def own_tokens(self) -> int:
        """The number of tokens of the row that one process holds."""
        return math.ceil(self.computed.total_length / self.context_size)

    def head_shares(self, layer: LayerShape) -> tuple[float, float]:
        """Return the shares of the query heads and of the key heads of a layer that one process attends for."""
        heads, size = self.shape.num_heads, self.context_size
        if size == 1 or not layer.query_width:
            return 1, 1
        own = math.ceil(heads / size)
        key_heads = max(1, round(heads * layer.key_width / layer.query_width))
        # Each key head is repeated for all processes that need it.
        own_keys = own if heads % size else key_heads / math.gcd(key_heads, size)
        return own / heads, own_keys / key_heads

    @property
    def shard_size(self) -> int:
        """The number of processes that hold one copy of sharded weights together."""
        return self.recipe.parallel.shares(self.world_size)

    @property
    def scored_positions(self) -> int:
        """The number of positions of the row that the output head reads."""
        scored = sum(self.row.response_lengths)
        if self.recipe.objective.scores_prompt:
            scored += sum(sample.prompt_length - 1 for sample in self.row.samples)
        return scored
