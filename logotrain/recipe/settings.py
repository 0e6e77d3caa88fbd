"""The ``train`` section of a recipe: what is trained, on what, how, with the paper's values as defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens
from logotrain.recipe.foreign_names import NAMES, VALUES

ALL_LINEAR = "all-linear"
"""Stands among ``lora.target_modules`` for all linear layers, as in PEFT."""


class DataSettings(RecipeModel):
    path: Path | None = None
    """Folder that ``logodata build`` wrote; only a run of no epochs does without."""

    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""

    num_rejected: int | None = Field(default=None, gt=0)
    """Train on the first M dis-preferred responses of each sample (the one from irrelevant chunks comes first, then one
    for each of ``contexts.mixed_ratios``); null takes all. One data set then serves every M of an ablation."""

    rejected_strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Train only on dis-preferred responses of these contexts, as the data name them (``irrelevant``, ``mixed-0.5``,
    ...); null takes all. ``num_rejected`` counts those that are left."""


class RopeSettings(RecipeModel):
    """Context extension: the model's rotary positions are scaled to a window ``factor`` times as long."""

    type: Literal["yarn", "linear", "ntk"]
    """``yarn`` (arXiv 2309.00071), ``linear`` position interpolation (arXiv 2306.15595), or ``ntk``-aware base."""

    factor: float = Field(gt=1)
    """New window over the model's own."""


class PositionSettings(RecipeModel):
    """Positional indices synthesis (paper section 3.3), and the two methods it is compared with."""

    mode: Literal["mixed", "natural", "continuous", "sparse", "pose", "randpos"] = "mixed"
    """Where gaps fall: between chunks (``continuous``), anywhere (``sparse``), both mixed, nowhere (``natural``), at
    one random place (``pose``, arXiv 2309.10400), or all over the target (``randpos``, arXiv 2305.16843)."""

    continuous_share: float = Field(default=0.9, ge=0, le=1)
    """Share of continuous draws in ``mixed`` mode; the paper mixes 9 : 1."""

    target_length: Tokens | None = None
    """Positions are spread over [0, target_length); null takes the model's window, scaled by ``rope.factor``."""


class LogoSettings(RecipeModel):
    """LOGO (paper Eq. 2 and 3). Defaults are the paper's for the Llama-3-8B family."""

    name: Literal["logo"] = "logo"
    """Which loss."""

    beta: float = Field(default=10.0, gt=0)
    """Scale of the difference of mean token log-probabilities."""

    gamma: float = Field(default=3.0, ge=0)
    """Margin by which the preferred response must lead, after scaling by beta."""

    sft_weight: float = Field(default=0.1, ge=0)
    """Weight lambda of the negative mean log-probability of the preferred response."""


class SimpoSettings(RecipeModel):
    """SimPO (arXiv 2405.14734): one pair a dis-preferred response, their losses averaged."""

    name: Literal["simpo"] = "simpo"
    """Which loss."""

    beta: float = Field(default=10.0, gt=0)
    """Scale of the difference of mean token log-probabilities."""

    gamma: float = Field(default=3.0, ge=0)
    """Margin by which the preferred response must lead, after scaling by beta."""


class CpoSettings(RecipeModel):
    """CPO (arXiv 2401.08417): one pair a dis-preferred response, their losses averaged."""

    name: Literal["cpo"] = "cpo"
    """Which loss."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of summed log-probabilities."""

    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative mean log-probability of the preferred response."""


class DpoSettings(RecipeModel):
    """DPO (arXiv 2305.18290) against the untrained model, whose log-probabilities are computed once, before step 1."""

    name: Literal["dpo"] = "dpo"
    """Which loss."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of summed log-probability ratios."""


class SftSettings(RecipeModel):
    """Instruct tuning on the preferred responses (paper Table 1); dis-preferred ones are not computed."""

    name: Literal["sft"] = "sft"
    """Which loss."""

    tokens: Literal["response", "sequence"] = "response"
    """``response`` is the paper's Instruct Tuning (Partial), ``sequence`` (prompt and response) its (Full)."""


def _objective_name(value: Any) -> Any:
    return value.get("name", "logo") if isinstance(value, dict) else getattr(value, "name", None)


ObjectiveSettings = Annotated[
    Annotated[LogoSettings, Tag("logo")]
    | Annotated[SimpoSettings, Tag("simpo")]
    | Annotated[CpoSettings, Tag("cpo")]
    | Annotated[DpoSettings, Tag("dpo")]
    | Annotated[SftSettings, Tag("sft")],
    Discriminator(_objective_name),
]


class LoraSettings(RecipeModel):
    """Adapters on the attention projections, the backbone frozen (paper section 4.1). Without effect in full tuning."""

    rank: int = Field(default=32, gt=0)
    """Rank of the adapters."""

    alpha: float = Field(default=16, gt=0)
    """Adapters are scaled by alpha / rank."""

    target_modules: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    """Names of the linear layers that get an adapter; ``all-linear``: all of the decoder's, not the output head."""

    train_embeddings: bool | Literal["auto"] = "auto"
    """Train the token embedding too, as the paper does; ``auto``: unless that would train a tied output head with it.

    PEFT loads such an adapter; vLLM does not take one with a trained embedding."""


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

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after the warm-up: it falls to zero along half a cosine, as the paper's, or along a line; or it
    stays at its peak."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must lie in [0, 1)")
        return value


class ParallelSettings(RecipeModel):
    """How the processes that torchrun started share the work."""

    strategy: Literal["auto", "replicate", "shard"] = "auto"
    """``replicate``: every process holds the model and gradients are summed once a step. ``shard``: FSDP2 splits
    weights, gradients and optimizer state. ``auto`` shards what one device cannot hold, and every full tuning."""

    reshard_after_forward: bool = True
    """When sharded: free a layer's gathered weights after its forward; false keeps them, for less traffic."""


class CheckpointSettings(RecipeModel):
    every_steps: int = Field(default=50, gt=0)
    """Steps between checkpoints; one is also written at the end and when the run is stopped."""

    keep: int | None = Field(default=2, gt=0)
    """Newest checkpoints kept, older ones are deleted; null keeps all."""

    asynchronous: bool = True
    """Write while the next steps run; costs a copy of the trained weights and their optimizer state in host memory."""

    command: str | None = None
    """Shell command run after each checkpoint, ``{checkpoint}``, ``{adapter}`` and ``{step}`` filled in, such as
    ``logoeval niah --model M --adapter {adapter} -o eval/{step}``. Its failure is noted and does not stop training.
    Full tuning has no ``{adapter}``."""


class CollapseSettings(RecipeModel):
    """This loss can lower preferred responses' probability too, down to repetition (princeton-nlp/SimPO issue 80)."""

    min_chosen_logp: float | None = Field(default=-10.0, lt=0)
    """Stop when a step's mean log-probability of preferred responses, in nats a token, is below this; null: never."""

    max_repetition: float | None = Field(default=0.5, gt=0, le=1)
    """Stop when greedy continuations of fixed prompts repeat more than this share of their 4-grams beyond what the
    untrained model does; null: never."""

    every_steps: int = Field(default=50, gt=0)
    """Steps between measurements of repetition; the first is before step 1, one more after the last step."""

    num_prompts: int = Field(default=2, ge=0)
    """Prompts of the data that are continued, the first ones; 0 measures nothing."""

    max_new_tokens: int = Field(default=64, gt=4)
    """Tokens of each continuation."""


class TrainRecipe(RecipeModel):
    """Everything that decides a training run's result."""

    own_model = "logotrain run --model MODEL --data DIR, without a recipe, takes the paper's"
    foreign_names = NAMES
    foreign_values = VALUES

    model: Annotated[str, OrPath("embedded")]
    """Model folder, hub name, or ``embedded``."""

    seed: int = Field(default=0, ge=0)
    """Source of the sample order, the position draws and the adapters' first values."""

    data: DataSettings = DataSettings()
    """The preference data."""

    rope: RopeSettings | None = None
    """Context extension of the model; null leaves its window as it is."""

    positions: PositionSettings = PositionSettings()
    """Position ids of the prompts."""

    objective: ObjectiveSettings = LogoSettings()
    """The loss."""

    tuning: Literal["lora", "qlora", "full"] = "lora"
    """Adapters on a frozen model; on one quantised to 4 bits (needs bitsandbytes); or all weights."""

    lora: LoraSettings = LoraSettings()
    """What is trained, unless all is."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """How it is trained."""

    epochs: int = Field(default=2, ge=0)
    """Passes over the data, each with its own position draws; the paper draws positions twice a sample. 0 trains
    nothing: the result is the model under ``rope``."""

    samples_per_step: int = Field(default=64, gt=0)
    """Samples whose gradients make one step, over all devices; the paper's 8 GPUs x 8 accumulation steps."""

    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps; the learning rate's schedule ends there too. Null runs all epochs."""

    row_tokens: Tokens | None = None
    """Samples share a row up to this many tokens; a longer sample is refused. Null: one sample a row, of any length."""

    attention: Literal["auto", "flash", "flex", "sdpa"] = "auto"
    """What computes the attention; ``auto`` takes flash, or else flex, on a GPU, and sdpa elsewhere."""

    recompute: Literal["auto", "none", "selective", "full"] = "auto"
    """What the backward pass computes again: ``none``; all but attention (``selective``); all (``full``: one
    more forward pass, least memory). Gradients are equal. ``auto`` takes the first that fits the device's memory."""

    compile: bool = False
    """Compile each layer with torch.compile; rows are padded to multiples of 512 tokens so that few shapes occur."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the frozen weights and the activations; trained weights and optimizer state are float32 always. Unless it
    is set, a run on a CPU takes float32: bfloat16 takes minutes a step there."""

    parallel: ParallelSettings = ParallelSettings()
    """One process or many."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """What a stopped run continues from."""

    collapse: CollapseSettings = CollapseSettings()
    """When to give up."""

    @field_validator("checkpoint")
    @classmethod
    def _has_an_adapter(cls, value: CheckpointSettings, info: ValidationInfo) -> CheckpointSettings:
        if info.data.get("tuning") == "full" and "{adapter}" in (value.command or ""):
            raise ValueError("command: tuning=full writes no {adapter}; only {checkpoint} and {step} are filled in")
        return value

    @property
    def mixed_precision(self) -> bool:
        """Whether float32 weights compute in bfloat16, by FSDP: full tuning in bfloat16."""
        return self.tuning == "full" and self.dtype == "bfloat16"

    @property
    def narrow_adapters(self) -> bool:
        """Whether float32 adapters compute in bfloat16, as their base does."""
        return self.tuning != "full" and self.dtype == "bfloat16"


def uses_rejected(settings: ObjectiveSettings) -> bool:
    """Whether the loss reads dis-preferred responses; a row need not hold them otherwise."""
    return not isinstance(settings, SftSettings)


def uses_reference(settings: ObjectiveSettings) -> bool:
    """Whether the loss reads log-probabilities of the untrained model."""
    return isinstance(settings, DpoSettings)


def scores_prompt(settings: ObjectiveSettings) -> bool:
    """Whether the loss reads the prompt's own log-probabilities."""
    return isinstance(settings, SftSettings) and settings.tokens == "sequence"
