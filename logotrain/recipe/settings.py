"""The ``train`` section of a recipe. The defaults are the paper's values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens
from logodata.pairs.settings import PairSettings
from logotrain.recipe.foreign_names import NAMES, VALUES
from logotrain.recipe.objectives import LogoSettings, ObjectiveSettings

Backend = Literal["flash", "flex", "sdpa"]
"""What computes the attention."""

Implementation = Literal[Backend, "eager"]
"""What computes the attention of shared or separate rows. ``eager`` is transformers' own, with all scores in memory."""

Recompute = Literal["none", "selective", "full", "tiled", "offloaded"]
"""What the backward pass of a layer computes again, from the fastest choice to the smallest. The last two are ``full``,
and save memory by further means."""

TILED: tuple[Recompute, ...] = ("tiled", "offloaded")
"""The choices that run MLPs over tiles of tokens. ``auto`` takes them for rows that fit in no way without."""

Strategy = Literal["replicate", "shard"]
"""Whether each process holds all weights or a share of them."""

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
"""What updates the weights; all but the first are bitsandbytes'."""

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "swanlab"]
"""A program that keeps the figures of runs and draws them."""

ALL_LINEAR = "all-linear"
"""The entry of ``lora.target_modules`` that means all linear layers, as in PEFT."""

ATTENTION = "attention"
"""The entry of ``lora.target_modules`` that means the projections of attention, whatever the model calls them."""


class MixSettings(RecipeModel):
    """Short samples among the long ones, such as pairs without a long context, so that a model keeps what it can do
    with short prompts. Their positions are natural, whatever ``positions.mode`` is."""

    path: Path
    """Another folder that ``logodata build`` or ``logodata import`` wrote, or other pairs. All their dis-preferred
    responses are trained on: ``num_rejected``, ``rejected_strategies`` and ``max_samples`` are of the long samples."""

    share: float = Field(gt=0, lt=1)
    """Share of the samples of an epoch that come from it: 0.2 puts one short sample beside four long ones. Every epoch
    takes the next ones. When all were taken they are drawn again, in another order."""


class DataSettings(RecipeModel):
    path: Path | None = None
    """Folder that ``logodata build`` or ``logodata import`` wrote; or pairs that ``logodata import`` reads (a file, a
    folder, ``org/name:split`` on the hub), which are then imported into the run's folder. Only a run with ``epochs=0``
    needs none."""

    max_samples: int | None = Field(default=None, gt=0)
    """Use only the first samples of the folder; null uses all."""

    num_rejected: int | None = Field(default=None, gt=0)
    """Train on the first M dis-preferred responses of each sample; null takes all. The one from irrelevant chunks comes
    first, then one for each of ``contexts.mixed_ratios``. So one data set serves all values of M of an ablation."""

    rejected_strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Train only on dis-preferred responses of these contexts, with the names in the data (``irrelevant``,
    ``mixed-0.5``, ...); null takes all. ``num_rejected`` counts the responses that are left."""

    validation: Path | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Held-out samples: another folder that ``logodata build`` wrote, other pairs, or the share of the documents of
    ``path`` (of imported pairs: of the prompts) whose samples are held out (0.1). The seed decides which. They are
    measured while training and never trained on."""

    pairs: PairSettings | None = None
    """How the pairs of ``path``, ``mix`` and ``validation`` are read, as ``logodata import`` takes it:
    ``pairs.prompt=message``, ``pairs.columns.chosen=better``. Null recognises all of it."""

    mix: MixSettings | None = None
    """Short samples that are trained on among those of ``path``; null mixes none in."""

    @field_validator("validation", mode="before")
    @classmethod
    def _is_a_share(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not (0 < value < 1):
            raise ValueError("a share lies between 0 and 1; or give a folder")
        return value

    @field_validator("mix")
    @classmethod
    def _has_long_ones(cls, value: MixSettings | None, info: ValidationInfo) -> MixSettings | None:
        if value is not None and info.data.get("path") is None:
            raise ValueError("there are no samples to mix it into; give --data DIR")
        return value


class RopeSettings(RecipeModel):
    """Context extension: the model's rotary embeddings are scaled to a window that is ``factor`` times as long."""

    type: Literal["yarn", "linear", "ntk"]
    """``yarn`` (arXiv 2309.00071), ``linear`` position interpolation (arXiv 2306.15595), or ``ntk``-aware base."""

    factor: float = Field(gt=1, le=10_000)
    """Length of the new window divided by the length of the model's window."""


CHUNK_MODES = ("mixed", "continuous", "sparse")
"""The paper's modes of positions: gaps stand between chunks, or within them."""


class PositionSettings(RecipeModel):
    """Positional indices synthesis (paper section 3.3), and the two methods that the paper compares it with."""

    mode: Literal["mixed", "natural", "continuous", "sparse", "pose", "randpos"] = "mixed"
    """Where the gaps between positions are: between chunks (``continuous``), anywhere (``sparse``), one of these two at
    random (``mixed``), nowhere (``natural``), at one random place (``pose``, arXiv 2309.10400), or all over the target
    length (``randpos``, arXiv 2305.16843). Data that were imported without chunks take ``natural`` unless it is set."""

    continuous_share: float = Field(default=0.9, ge=0, le=1)
    """Share of continuous draws in ``mixed`` mode; the paper mixes 9 : 1."""

    target_length: Tokens | None = None
    """Positions lie in [0, target_length). Null takes the model's window, scaled by ``rope.factor``."""


class LoraSettings(RecipeModel):
    """Adapters on the attention projections of a frozen model (paper section 4.1). Full tuning ignores this section."""

    rank: int = Field(default=32, gt=0)
    """Rank of the adapters."""

    alpha: float = Field(default=16, gt=0)
    """Adapters are scaled by alpha / rank."""

    use_rslora: bool = False
    """Scale adapters by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732), for large ranks."""

    use_dora: bool = False
    """Train the length of each weight's columns beside its direction (DoRA, arXiv 2402.09353). It needs more memory and
    time in each layer. vLLM loads no such adapter; merge it."""

    init_adapter: Path | None = None
    """Start from the weights of this adapter instead of fresh ones, such as another run's ``final``. It must have been
    made with the same settings of this section. DPO's reference is then the model with this adapter."""

    target_modules: tuple[str, ...] = Field(default=(ATTENTION,), min_length=1)
    """Names of the linear layers that get an adapter. ``attention`` means the projections of attention, whatever the
    model calls them, as in the paper; ``all-linear`` all linear layers of the decoder, not the output head.

    Stacked experts and most routers of a mixture of experts are parameters and no linear layers, so ``all-linear``
    leaves them out; PEFT's own takes them in some models. See ``target_parameters``."""

    target_parameters: tuple[str, ...] = ()
    """Ends of the names of weights outside of linear layers that get an adapter too, such as the stacked experts of a
    mixture: ``mlp.experts.gate_up_proj,mlp.experts.down_proj``. Each expert gets one of rank ``rank``.

    PEFT adds them to a copy of the whole stack in each forward pass. vLLM loads no such adapter; merge it."""

    train_embeddings: bool | Literal["auto"] = "auto"
    """Train the token embedding too, as the paper does. ``auto`` does so unless the output head is tied to it.

    PEFT loads an adapter with a trained embedding, vLLM does not."""


class OptimizerSettings(RecipeModel):
    """AdamW with warm-up. The trained weights are always float32, and so is its state unless ``name`` says otherwise;
    ``dtype`` does not change that."""

    name: Optimizer = "adamw"
    """Which AdamW. ``adamw_8bit`` keeps its state in 8 bits (2 bytes a weight instead of 8). The ``paged_`` ones move
    it to the host where a GPU's memory runs out. Those are bitsandbytes', and cannot be sharded."""

    lr: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""

    eps: float = Field(default=1e-8, gt=0)
    """Number added to the root of the second moment."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient of a step is scaled down to this norm if its norm is larger."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Number of these steps; it holds over ``warmup_ratio``."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after the warm-up: it falls to zero along half a cosine, as the paper's, or along a line; or it
    stays at its peak."""

    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The share of the peak that ``cosine`` and ``linear`` fall to instead of zero."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must lie in [0, 1)")
        return value


class ParallelSettings(RecipeModel):
    """How the processes that torchrun started share the work."""

    strategy: Literal["auto", Strategy] = "auto"
    """``replicate``: every process holds the model, and gradients are summed once per step. ``shard``: FSDP2 splits
    weights, gradients and optimizer state. ``auto`` shards a model that one device cannot hold, and all full tuning."""

    reshard_after_forward: bool = True
    """Under ``shard``, free the gathered weights of a layer after its forward pass. False keeps them, which saves
    communication."""

    shard_size: int | None = Field(default=None, gt=0)
    """Under ``shard``, number of processes that hold one copy of the weights together (HSDP), such as the GPUs of one
    machine; it divides the number of processes. Null splits one copy over all of them."""

    context_size: Literal["auto"] | Annotated[int, Field(ge=1, strict=True)] = "auto"
    """Number of processes that compute one row together, each a slice of its tokens and a share of its attention heads.
    It divides the number of processes. ``auto`` takes 1 unless a row is too large for one device."""

    def shares(self, world_size: int) -> int:
        """Return the number of processes that hold one copy of sharded weights together, among ``world_size``."""
        return min(self.shard_size or world_size, world_size)


class CheckpointSettings(RecipeModel):
    every_steps: int = Field(default=50, gt=0)
    """Steps between checkpoints. A checkpoint is also written at the end and when the run is stopped."""

    keep: int | None = Field(default=2, gt=0)
    """Number of newest checkpoints to keep; older ones are deleted. Null keeps all."""

    asynchronous: bool = True
    """Write checkpoints while the next steps run. This needs host memory for a copy of the trained weights and their
    optimizer state."""

    command: str | None = None
    """Shell command to run after each checkpoint, such as ``logoeval niah --model M --adapter {adapter} -o
    eval/{step}``. ``{checkpoint}``, ``{adapter}`` and ``{step}`` are replaced; full tuning has no ``{adapter}``. A
    failure is noted and does not stop the training."""


class ValidationSettings(RecipeModel):
    """What is done with the held-out samples of ``data.validation``. Without those it has no effect."""

    every_steps: int = Field(default=50, gt=0)
    """Steps between measurements. The samples are also measured before step 1 and after the last step."""

    metric: Literal["loss", "margin", "accuracy", "chosen_logp"] = "loss"
    """What decides which step is the best: the lowest loss, or the highest margin, accuracy or log-probability of
    preferred responses. The checkpoint of the best step is kept."""

    patience: int | None = Field(default=None, gt=0)
    """Stop after this many measurements in a row that are no better than the best one. Null never stops."""

    final: Literal["last", "best"] = "last"
    """The step that ``final/`` holds: the last one, or the best one that was trained."""


class ProfileSettings(RecipeModel):
    """A trace of some steps, written with torch.profiler."""

    steps: tuple[int, int]
    """The first and the last step to trace, from 1. A few are enough: a trace has some 100 MB a step."""

    @field_validator("steps")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("give the first and the last step, from 1")
        return value


class CollapseSettings(RecipeModel):
    """When to stop a run that destroys the model. The loss can lower the probability of preferred responses too, until
    the model only repeats itself (princeton-nlp/SimPO issue 80)."""

    min_chosen_logp: float | None = Field(default=-10.0, lt=0)
    """Stop when the mean log-probability of a step's preferred responses, in nats per token, is below this. Null never
    stops."""

    max_repetition: float | None = Field(default=0.5, gt=0, le=1)
    """Stop when the share of repeated 4-grams in greedy continuations of fixed prompts exceeds that of the untrained
    model by more than this. Null never stops."""

    every_steps: int = Field(default=50, gt=0)
    """Steps between measurements of repetition. It is also measured before step 1 and after the last step."""

    num_prompts: int = Field(default=2, ge=0)
    """Number of prompts to continue, the first ones of the data; 0 measures nothing."""

    max_new_tokens: int = Field(default=64, gt=4)
    """Length of each continuation in tokens."""


class TrainRecipe(RecipeModel):
    """All settings that decide the result of a training run."""

    own_model = "logotrain run --model MODEL --data DIR, without a recipe, takes the paper's"
    foreign_names = NAMES
    foreign_values = VALUES

    model: Annotated[str, OrPath("embedded")]
    """Model folder, hub name, or ``embedded``."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the sample order, the position draws and the adapters' first values."""

    data: DataSettings = DataSettings()
    """The preference data."""

    rope: RopeSettings | None = None
    """Context extension of the model; null does not change its window."""

    positions: PositionSettings = PositionSettings()
    """Position ids of the prompts."""

    objective: ObjectiveSettings = LogoSettings()
    """The loss."""

    tuning: Literal["lora", "qlora", "full"] = "lora"
    """What is trained: ``lora`` adapters on a frozen model, ``qlora`` adapters on a model quantised to 4 bits (needs
    bitsandbytes), or all weights (``full``)."""

    lora: LoraSettings = LoraSettings()
    """The adapters of ``lora`` and ``qlora``."""

    router_loss: Annotated[float, Field(gt=0, strict=True)] | Literal["auto", False] = "auto"
    """Weight of a mixture of experts' own load-balancing loss in each sample's loss. ``auto`` takes the weight of the
    model's config if routers are trained, as in full tuning. Frozen routers need no such loss: they cannot come to
    prefer few experts. ``false`` leaves it out."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer and its learning rate."""

    epochs: int = Field(default=2, ge=0)
    """Passes over the data, each with its own position draws and its part of ``data.mix``; the paper draws positions
    twice per sample. With 0 nothing is trained, and the result is the model with ``rope`` applied."""

    samples_per_step: int = Field(default=64, gt=0)
    """Number of samples of one step, over all devices; the paper has 8 GPUs x 8 accumulation steps."""

    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps, where the schedule of the learning rate ends too. Null runs all epochs."""

    row_tokens: Tokens | None = None
    """Samples share a row of up to this many tokens; a longer sample is refused. With null each sample has its own row,
    of any length. Where prompts are not shared, it only limits samples."""

    sharing: Literal["auto", "prompt", "none"] = "auto"
    """Whether the responses of a sample share one computation of their prompt (``prompt``), or each is computed after
    its prompt in a row of its own (``none``). Both are exact. ``auto`` shares wherever a small copy of the model gets
    the same log-probabilities both ways."""

    attention: Literal["auto", Backend] = "auto"
    """Back end that computes the attention. ``auto`` takes flash, else flex, on a GPU, and sdpa elsewhere."""

    recompute: Literal["auto", Recompute] = "auto"
    """What the backward pass recomputes: nothing (``none``), all but the attention (``selective``), or all (``full``,
    one more forward pass). Two more choices are ``full`` for long rows: MLPs and experts run over tiles of tokens
    (``tiled``), and the inputs of layers wait in host memory, too (``offloaded``). Gradients are equal. ``auto`` takes
    the first of these that fits the device's memory."""

    compile: bool = False
    """Compile each layer with torch.compile. Rows are then padded to multiples of 512 tokens, so few shapes occur."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the frozen weights and the activations. Trained weights are always float32, and so is the optimizer's
    state unless ``optimizer.name`` says 8 bits. Without this setting a run on a CPU takes float32, because a step in
    bfloat16 takes minutes there."""

    parallel: ParallelSettings = ParallelSettings()
    """How several processes share the work."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """The checkpoints that a stopped run continues from."""

    validation: ValidationSettings = ValidationSettings()
    """Held-out figures while training."""

    collapse: CollapseSettings = CollapseSettings()
    """When to stop a run whose model collapses."""

    report_to: tuple[Tracker, ...] = ()
    """Trackers that get the figures of the run too, such as ``tensorboard,trackio``. Each is a package of its own. One
    that fails does not stop the run."""

    project: str = Field(default="logo", min_length=1)
    """Name under which trackers file the run. The run is called as its folder."""

    profile: ProfileSettings | None = None
    """Steps to trace with torch.profiler; null traces none."""

    @field_validator("lora")
    @classmethod
    def _fits_dora(cls, value: LoraSettings) -> LoraSettings:
        if value.use_dora and value.target_parameters:
            raise ValueError("use_dora: there is no DoRA of target_parameters, only of linear layers")
        return value

    @field_validator("validation")
    @classmethod
    def _is_computed(cls, value: ValidationSettings, info: ValidationInfo) -> ValidationSettings:
        objective = info.data.get("objective")
        if value.metric in ("margin", "accuracy") and objective is not None and not objective.parts[-1].rejected:
            of = " under the whole prompt" if objective.uses_rejected else ""
            raise ValueError(f"metric: objective {objective.name} computes no {value.metric}{of}; loss or chosen_logp")
        data = info.data.get("data")
        if isinstance(data, DataSettings) and data.validation is None:
            for name, is_set in (("final=best", value.final == "best"), ("patience", value.patience is not None)):
                if is_set:
                    raise ValueError(f"{name}: there are no held-out samples; set data.validation")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _has_an_adapter(cls, value: CheckpointSettings, info: ValidationInfo) -> CheckpointSettings:
        if info.data.get("tuning") == "full" and "{adapter}" in (value.command or ""):
            raise ValueError("command: tuning=full writes no {adapter}; only {checkpoint} and {step} are filled in")
        return value

    @property
    def mixed_precision(self) -> bool:
        """Whether FSDP computes in bfloat16 on float32 weights, as in full tuning in bfloat16."""
        return self.tuning == "full" and self.dtype == "bfloat16"

    @property
    def redraws_reference(self) -> bool:
        """Whether the untrained model's log-probabilities of a sample differ by epoch, as positions do. The prompt of
        critical chunks has natural ones."""
        return self.positions.mode != "natural" and not all(part.short for part in self.objective.reference_parts)

    @property
    def narrow_adapters(self) -> bool:
        """Whether float32 adapters compute in bfloat16, as their base model does."""
        return self.tuning != "full" and self.dtype == "bfloat16"
