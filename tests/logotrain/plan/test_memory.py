"""The memory formula against the real step: on fake tensors, and against what torch's profiler sees being allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from benchmarks.simulate import Simulated, _row, simulate_step
from logotrain.attention.shared_prefix import attention_of, use_shared_prefix
from logotrain.loss import logprobs
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.loss.objective import sample_loss
from logotrain.model.adapters import add_adapters
from logotrain.model.recompute import checkpoint_layers
from logotrain.plan.memory import estimate_memory
from logotrain.plan.shape import model_shape, trained_weights
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Backend, Recompute, Strategy, TrainRecipe
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def config_of(cls: type[PreTrainedConfig] = LlamaConfig, **overrides: Any) -> PreTrainedConfig:
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    return cls(**{**settings, **overrides})


def recipe_of(**overrides: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({"model": "m", **overrides})


def row_of(*samples: tuple[int, ...], padding: int = 0) -> RowLayout:
    """``(prompt, response, ...)`` lengths of each sample."""
    return RowLayout(tuple(SharedPrefixLayout(sample[0], sample[1:]) for sample in samples), padding)


M2 = row_of((1024, 64, 64, 64))
M8 = row_of((1024, *[64] * 9))
ATTENTION: dict[str, Any] = {"lora": {"train_embeddings": False}}
EVERYWHERE: dict[str, Any] = {"lora": {"target_modules": EVERY_LINEAR, "train_embeddings": False}}
EMBEDDING: dict[str, Any] = {"lora": {"train_embeddings": True}}
FULL: dict[str, Any] = {"tuning": "full"}
FLOAT32: dict[str, Any] = {"dtype": "float32"}


def compare(
    config: PreTrainedConfig,
    recipe: TrainRecipe,
    row: RowLayout,
    recompute: Recompute,
    *,
    backend: Backend = "flash",
    shards: int | None = None,
    num_rows: int = 2,
) -> Simulated:
    """Assert that the formula agrees with the real step, as a whole and without what is held all the time."""
    strategy: Strategy = "shard" if shards else "replicate"
    step = StepPlan(
        model_shape(config), recipe, row, recompute, strategy, shards or 1, backend=backend, num_rows=num_rows
    )
    found, expected = simulate_step(config, step), estimate_memory(step)
    states = sum(expected.parts.get(name, 0) for name in ("frozen weights", "trained weights", "optimizer state"))
    assert expected.allocated == pytest.approx(found.peak, rel=0.1)
    if shards is None and backend == "flash":  # sdpa's mask is already there when a step begins
        assert states == pytest.approx(found.states, rel=0.04)  # small ones are rounded up to blocks
        assert expected.allocated - states == pytest.approx(found.peak - found.states, rel=0.1)
    return found


@pytest.mark.parametrize(
    ("recipe", "backend", "recompute"),
    [
        (ATTENTION, "flash", "none"),
        (ATTENTION, "flash", "selective"),
        (ATTENTION, "flash", "full"),
        (EVERYWHERE, "flash", "none"),
        (EVERYWHERE, "flash", "full"),
        (EMBEDDING, "flash", "selective"),
        (EVERYWHERE | FLOAT32, "sdpa", "selective"),
        (FULL | FLOAT32, "sdpa", "none"),
    ],
)
def test_what_is_trained(recipe: dict[str, Any], backend: Backend, recompute: Recompute) -> None:
    compare(config_of(), recipe_of(**recipe), M2, recompute, backend=backend)


@pytest.mark.parametrize(
    ("recipe", "recompute"),
    [(FULL, "none"), (FULL, "full"), (EMBEDDING, "full"), ({**FULL, "parallel": {"shard_size": 2}}, "full")],
)
def test_weights_split_over_processes(recipe: dict[str, Any], recompute: Recompute) -> None:
    compare(config_of(), recipe_of(**recipe), M2, recompute, shards=8)


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_responses_cost_what_the_back_end_keeps_of_them(backend: Backend) -> None:
    two, eight = (compare(config_of(), recipe_of(**ATTENTION), row, "none", backend=backend) for row in (M2, M8))
    assert eight.kept > 1.3 * two.kept


@pytest.mark.parametrize(
    ("recipe", "row", "num_rows"),
    [
        (ATTENTION, M2, 1),
        (EMBEDDING, M2, 1),
        (ATTENTION, row_of((300, 40, 20), (500, 60, 50, 70), (100, 9, 5), padding=123), 2),
        (ATTENTION | {"objective": {"name": "sft", "tokens": "sequence"}}, row_of((1024, 64)), 2),
    ],
    ids=["one-row", "one-row-embedding", "many-samples", "scored-prompt"],
)
def test_rows(recipe: dict[str, Any], row: RowLayout, num_rows: int) -> None:
    compare(config_of(), recipe_of(**recipe), row, "none", num_rows=num_rows)


@pytest.mark.parametrize(
    "config",
    [
        config_of(num_key_value_heads=8),
        config_of(MistralConfig, sliding_window=None),
        config_of(Qwen2Config),
        config_of(Qwen3Config),
        config_of(GemmaConfig),
        config_of(tie_word_embeddings=True),
    ],
    ids=["multi-head", "mistral", "qwen2", "qwen3", "gemma", "tied"],
)
def test_models(config: PreTrainedConfig) -> None:
    compare(config, recipe_of(**EVERYWHERE), M2, "none")


MIXTRAL = config_of(MixtralConfig, num_local_experts=8, num_experts_per_tok=2, sliding_window=None)
QWEN3_MOE = config_of(
    Qwen3MoeConfig, num_hidden_layers=4, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128
)
LATENT: dict[str, Any] = {
    "num_key_value_heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "head_dim": 16,
}
DEEPSEEK = config_of(
    DeepseekV3Config,
    **LATENT,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    n_routed_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    n_group=2,
    topk_group=1,
)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "config",
    [MIXTRAL, QWEN3_MOE, config_of(DeepseekV3Config, **LATENT, first_k_dense_replace=2), DEEPSEEK],
    ids=["mixtral", "qwen3-moe", "latent-attention", "deepseek"],
)
def test_experts_latent_attention_and_layers_that_differ(config: PreTrainedConfig, recompute: Recompute) -> None:
    compare(config, recipe_of(**ATTENTION), M2, recompute)


EXPERTS: dict[str, Any] = {
    "lora": {
        "train_embeddings": False,
        "target_parameters": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    }
}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_MOE], ids=["mixtral", "qwen3-moe"])
def test_adapters_of_experts(config: PreTrainedConfig, recompute: Recompute) -> None:
    """PEFT adds an adapter's product to the whole stack, which is kept beside it."""
    compare(config, recipe_of(**EXPERTS), M2, recompute)


@pytest.mark.parametrize("parameters", [("mlp.experts.down_proj",), ("gate_up_proj", "mlp.gate.weight")])
def test_adapters_of_experts_are_counted(parameters: tuple[str, ...]) -> None:
    recipe = recipe_of(lora={"train_embeddings": False, "target_parameters": parameters})
    adapted = add_adapters(AutoModelForCausalLM.from_config(MIXTRAL), recipe.lora, name="m")
    counted = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained_weights(model_shape(MIXTRAL), recipe).total == counted


@pytest.mark.parametrize("config", [QWEN3_MOE, DEEPSEEK], ids=["qwen3-moe", "deepseek"])
def test_all_weights_of_experts(config: PreTrainedConfig) -> None:
    compare(config, recipe_of(**FULL), M2, "full", shards=8)


@pytest.mark.parametrize("recipe", [FULL, ATTENTION])
def test_more_processes_than_experts_hold_unequal_shares(recipe: dict[str, Any]) -> None:
    config = config_of(MixtralConfig, num_local_experts=4, num_hidden_layers=3)
    compare(config, recipe_of(**recipe), M2, "none", shards=8)


def test_what_linear_attention_keeps_is_known_roughly() -> None:
    """Its code runs, because its loops do not run on fake tensors."""
    linear = {f"linear_{name}": size for name, size in (("num_key_heads", 4), ("num_value_heads", 8))}
    linear |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    config = config_of(Qwen3_5TextConfig, num_hidden_layers=4, **linear)
    recipe, row = recipe_of(**EMBEDDING, **FLOAT32), row_of((512, 64, 64, 64))
    shape = model_shape(config)
    assert [(layer.count, layer.attends) for layer in shape.layers] == [(3, False), (1, True)]
    model = LogprobModel(add_adapters(AutoModelForCausalLM.from_config(config), recipe.lora, name="m"))
    with attention_of(model.causal_lm, "sdpa"), kept_bytes(model) as kept:
        model(_row(row, False))
    step = StepPlan(shape, recipe, row, backend="sdpa", shared=False)
    assert estimate_memory(step).parts["kept activations"] == pytest.approx(kept(), rel=0.15)


@contextmanager
def kept_bytes(model: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes that autograd keeps of what the block computes, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("cls", [MixtralConfig, GptOssConfig])
def test_what_experts_keep(cls: type[PreTrainedConfig]) -> None:
    """The experts of one layer run alone: GPT-OSS caps what goes into its gate, and keeps it twice."""
    config, tokens = config_of(cls, num_local_experts=8, num_experts_per_tok=2), 64
    experts = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False).model.layers[0].mlp.experts
    states, scores = torch.randn(tokens, 256, requires_grad=True), torch.rand(tokens, 2, requires_grad=True)
    with kept_bytes(experts) as kept:
        output = experts(states, torch.arange(2 * tokens).view(tokens, 2) % 8, scores)
    (found,) = model_shape(config).layers[0].experts
    expected = found.chosen * tokens * (4 * found.kept * found.intermediate + 4 * 256 + 24)
    assert kept() == pytest.approx(expected, rel=0.01)
    del output  # it kept what was counted


def test_a_shape_counts_the_weights_of_the_model() -> None:
    for cls in (LlamaConfig, Qwen2Config, Qwen3Config, GemmaConfig):
        for tied in (False, True):
            config = config_of(cls, tie_word_embeddings=tied)
            recipe = recipe_of()
            model = AutoModelForCausalLM.from_config(config)
            assert model_shape(config).parameters == model.num_parameters()
            adapted = add_adapters(model, recipe.lora, name="m")
            counted = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
            assert trained_weights(model_shape(config), recipe).total == counted


@pytest.mark.parametrize(
    ("recipe", "recompute", "vocabulary", "chunk"),
    [
        (ATTENTION | FLOAT32, "none", 512, 2**25),
        (FULL | FLOAT32, "full", 512, 2**25),
        (FULL | FLOAT32, "full", 16384, 2**25),  # the head's gradient is what counts
        (FULL | FLOAT32, "full", 16384, 2**18),
    ],
)
def test_a_real_step_allocates_as_much(
    recipe: dict[str, Any], recompute: Recompute, vocabulary: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    config = config_of(vocab_size=vocabulary)
    settings = recipe_of(**recipe)
    row = row_of((512, 32, 32, 32))
    estimate = estimate_memory(StepPlan(model_shape(config), settings, row, recompute, backend="sdpa"))
    states = sum(estimate.parts.get(name, 0) for name in ("frozen weights", "trained weights", "optimizer state"))
    assert estimate.allocated - states == pytest.approx(profiled_step(config, settings, row, recompute), rel=0.1)


def profiled_step(config: PreTrainedConfig, recipe: TrainRecipe, row: RowLayout, recompute: Recompute) -> int:
    """Bytes that a real second step of two rows takes beyond weights and optimizer state, at its peak."""
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = LogprobModel(base if recipe.tuning == "full" else add_adapters(base, recipe.lora, name="m")).train()
    checkpoint_layers(model, recompute)
    data = _row(row, False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def step() -> None:
        for _ in range(2):
            (sample,) = split_logprobs(model(data), data)
            sample_loss(recipe.objective, sample.responses, prompt=None, reference=None).loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with use_shared_prefix(model.causal_lm):
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            step()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("cls", [LlamaConfig, DeepseekV3Config, MixtralConfig])
def test_dora_trains_as_many_weights_as_are_counted(cls: type[PreTrainedConfig]) -> None:
    recipe = recipe_of(lora={"rank": 4, "use_dora": True, "train_embeddings": False})
    config = config_of(cls)
    model = add_adapters(AutoModelForCausalLM.from_config(config), recipe.lora, name="m")
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained_weights(model_shape(config), recipe).total == held
