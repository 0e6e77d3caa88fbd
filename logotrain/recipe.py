"""The ``train`` section of a recipe: what is trained, on what, how, with the paper's values as defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from logodata.common.recipe_io import RecipeModel


class DataSettings(RecipeModel):
    path: Path
    """Folder that ``logodata build`` wrote."""

    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""


class PositionSettings(RecipeModel):
    """Positional indices synthesis (paper section 3.3)."""

    mode: Literal["mixed", "natural", "continuous", "sparse"] = "mixed"
    """Where gaps fall: between chunks (``continuous``), anywhere (``sparse``), both mixed, or nowhere (``natural``)."""

    continuous_share: float = Field(default=0.9, ge=0, le=1)
    """Share of continuous draws in ``mixed`` mode; the paper mixes 9 : 1."""

    target_length: int | None = Field(default=None, gt=0)
    """Positions are spread over [0, target_length); null takes the model's window."""


class ObjectiveSettings(RecipeModel):
    """The loss (paper Eq. 2 and 3). Defaults are the paper's for the Llama-3-8B family."""

    name: Literal["logo"] = "logo"
    """Which loss."""

    beta: float = Field(default=10.0, gt=0)
    """Scale of the difference of mean token log-probabilities."""

    gamma: float = Field(default=3.0, ge=0)
    """Margin by which the preferred response must lead, after scaling by beta."""

    sft_weight: float = Field(default=0.1, ge=0)
    """Weight lambda of the negative mean log-probability of the preferred response."""


class LoraSettings(RecipeModel):
    """Adapters on the attention projections, the backbone frozen (paper section 4.1)."""

    rank: int = Field(default=32, gt=0)
    """Rank of the adapters."""

    alpha: float = Field(default=16, gt=0)
    """Adapters are scaled by alpha / rank."""

    dropout: float = 0.0
    """Must stay 0: responses share the prompt's states, so a value dropped there would be dropped for all of them."""

    target_modules: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    """Names of the linear layers that get an adapter."""

    train_embeddings: bool | Literal["auto"] = "auto"
    """Train the token embedding too, as the paper does; ``auto``: unless that would train a tied output head with it.

    PEFT loads such an adapter; vLLM does not take one with a trained embedding."""

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError("must be 0, dropout would make the shared prompt differ from separate rows")
        return value


class OptimizerSettings(RecipeModel):
    """AdamW with warm-up. State and trained weights are float32 whatever ``dtype`` says."""

    lr: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""

    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of a step are scaled down to this norm."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak."""

    schedule: Literal["cosine"] = "cosine"
    """How the learning rate falls after warm-up, to zero."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must lie in [0, 1)")
        return value


class CheckpointSettings(RecipeModel):
    every_steps: int = Field(default=50, gt=0)
    """Steps between checkpoints; one is also written at the end and when the run is stopped."""

    keep: int = Field(default=2, gt=0)
    """Newest checkpoints kept; older ones are deleted."""


class CollapseSettings(RecipeModel):
    """This loss can lower preferred responses' probability too, down to repetition (princeton-nlp/SimPO issue 80)."""

    min_chosen_logp: float | None = Field(default=-10.0, lt=0)
    """Stop when a step's mean log-probability of preferred responses, in nats a token, is below this; null: never."""


_EMPTY: Any = {}
"""Default of a section with a required field: it is validated, and the message names the field that is missing."""


class TrainRecipe(RecipeModel):
    """Everything that decides a training run's result."""

    model: str
    """Model folder, hub name, or ``embedded``."""

    seed: int = Field(default=0, ge=0)
    """Source of the sample order, the position draws and the adapters' first values."""

    data: DataSettings = Field(default=_EMPTY)
    """The preference data."""

    positions: PositionSettings = PositionSettings()
    """Position ids of the prompts."""

    objective: ObjectiveSettings = ObjectiveSettings()
    """The loss."""

    lora: LoraSettings = LoraSettings()
    """What is trained."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """How it is trained."""

    epochs: int = Field(default=2, gt=0)
    """Passes over the data, each with its own position draws; the paper draws positions twice a sample."""

    samples_per_step: int = Field(default=64, gt=0)
    """Samples whose gradients make one step, over all devices; the paper's 8 GPUs x 8 accumulation steps."""

    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps; the learning rate's schedule ends there too. Null runs all epochs."""

    recompute: Literal["none", "full"] = "full"
    """``full`` computes each layer again in the backward pass: less memory, a third more time, equal gradients."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the frozen weights and the activations."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """What a stopped run continues from."""

    collapse: CollapseSettings = CollapseSettings()
    """When to give up."""
