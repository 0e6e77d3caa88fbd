"""Work, choices and time, against figures counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from logodata.common.errors import UserError
from logotrain.plan.choices import (
    CARDS,
    check_recompute,
    check_strategy,
    choose_recompute,
    choose_strategy,
    memory_by_recompute,
    recompute_choices,
    reference_flops,
    row_flops,
    step_seconds,
)
from logotrain.plan.memory import estimate_memory
from logotrain.plan.shape import ModelShape, model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from logotrain.rows.packing import attention_share, row_cost
from tests.logotrain.plan.test_memory import EVERYWHERE, FULL, M2, config_of, recipe_of
from tests.logotrain.plan.test_shape import tiny

ROW = RowLayout((SharedPrefixLayout(8192, (256, 256, 256)),))
GIB = 2**30


@pytest.fixture(scope="module")
def llama3_8b() -> ModelShape:
    return model_shape(
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
        )
    )


def test_work_of_the_8b_shape(llama3_8b: ModelShape) -> None:
    step = StepPlan(llama3_8b, recipe_of(**EVERYWHERE), ROW)
    assert llama3_8b.parameters == 8_030_261_248
    assert row_flops(step) == pytest.approx(330e12, rel=0.005)
    assert row_flops(replace(step, recompute="full")) == pytest.approx(477e12, rel=0.005)
    assert reference_flops(step) == pytest.approx(1384e12, rel=0.005)


def test_m_8_at_8k_fits_80_gb(llama3_8b: ModelShape) -> None:
    needed = memory_by_recompute(StepPlan(llama3_8b, recipe_of(), RowLayout((SharedPrefixLayout(8192, (256,) * 9),))))
    have = CARDS["h100-80gb"].memory_bytes
    assert have is not None
    assert max(needed["selective"].total, needed["full"].total) < have / 2


def test_work_by_hand() -> None:
    """One prompt token and one response token, one layer, everything trained: each product is counted out."""
    row = RowLayout((SharedPrefixLayout(1, (1,)),))
    step = StepPlan(model_shape(config_of(num_hidden_layers=1)), recipe_of(**FULL), row)
    weights = 256 * (256 + 64 + 64 + 256 + 3 * 704)
    attention = 4 * 256 * (0.5 + 1.5)  # half of the diagonal block: a causal one is a triangle
    head = 2 * 512 * 256
    expected = 3 * 2 * 2 * weights + 3.5 * attention + 4 * head
    assert row_flops(step) == pytest.approx(expected)
    assert row_flops(replace(step, recompute="full")) == pytest.approx(expected + 4 * weights + attention)
    assert row_cost(row.samples, attention_share(256, weights)) == pytest.approx(
        (4 * weights + attention) / (2 * weights)
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen2_moe"])
def test_work_of_experts_is_what_torch_counts(family: str) -> None:
    config = tiny(family)
    if family == "deepseek_v3":
        config.num_key_value_heads, config.first_k_dense_replace = 4, 1
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    shape, tokens = model_shape(config), 512
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randint(0, 61, (1, tokens)), use_cache=False)
    linear = 2 * tokens * sum(layer.count * layer.token_weights for layer in shape.layers)
    # Eager attention computes the half that a mask hides, too.
    attention = 2 * tokens**2 * sum(layer.count * (layer.query_width + layer.output_width) for layer in shape.layers)
    expected = linear + attention + 2 * tokens * shape.head_parameters
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def choose(recipe: TrainRecipe, device_bytes: int | None, world_size: int = 1) -> tuple[str, str]:
    step = StepPlan(model_shape(config_of()), recipe, M2, world_size=world_size, device_bytes=device_bytes)
    strategy, _ = choose_strategy(step)
    return strategy, choose_recompute(replace(step, strategy=strategy))[0]


def test_recompute_is_the_first_that_fits() -> None:
    recipe = recipe_of()
    needed = memory_by_recompute(StepPlan(model_shape(config_of()), recipe, M2))
    none, selective, full = (needed[choice].total for choice in recompute_choices("flash"))
    assert none > selective > full
    assert choose(recipe, None) == ("replicate", "none")
    assert choose(recipe, none) == ("replicate", "none")
    assert choose(recipe, none - 1) == ("replicate", "selective")
    assert choose(recipe, selective - 1) == ("replicate", "full")
    assert choose(recipe, full - 1) == ("replicate", "full")
    assert choose(recipe_of(recompute="none"), 1) == ("replicate", "none")


def test_flex_attention_has_nothing_to_keep() -> None:
    assert recompute_choices("sdpa") == recompute_choices("flash") == ("none", "selective", "full")
    assert recompute_choices("flex") == ("none", "full")
    check_recompute("selective", "flash")
    check_recompute("full", "flex")
    with pytest.raises(UserError, match=r"recompute=selective.*FlexAttention.*recompute=full"):
        check_recompute("selective", "flex")


def test_what_one_device_cannot_hold_is_shared() -> None:
    recipe = recipe_of()
    least = estimate_memory(StepPlan(model_shape(config_of()), recipe, M2, "full")).total
    assert choose(recipe, least, world_size=2)[0] == "replicate"
    assert choose(recipe, least - 1, world_size=2)[0] == "shard"
    assert choose(recipe, least - 1, world_size=1)[0] == "replicate"
    assert choose(recipe_of(**FULL), None, world_size=2)[0] == "shard"
    assert choose(recipe_of(**FULL, dtype="float32", parallel={"strategy": "replicate"}), None, 2)[0] == "replicate"


def test_replicas_that_would_be_sharded_in_silence_are_refused() -> None:
    """Full tuning in bfloat16 is FSDP's; one process has nothing to replicate."""
    replicate = {"parallel": {"strategy": "replicate"}}
    with pytest.raises(UserError, match=r"replicate cannot tune all weights in bfloat16 on 2 .*dtype=float32"):
        check_strategy(recipe_of(**FULL, **replicate), 2)
    check_strategy(recipe_of(**FULL, **replicate), 1)
    check_strategy(recipe_of(**FULL, **replicate, dtype="float32"), 2)
    check_strategy(recipe_of(**replicate), 2)
    check_strategy(recipe_of(**FULL), 2)


def test_copies_that_the_processes_cannot_split_are_refused() -> None:
    def check(shard_size: int | None, world_size: int) -> None:
        check_strategy(recipe_of(parallel={"shard_size": shard_size}), world_size)

    for shard_size, world_size in ((None, 7), (1, 8), (2, 8), (8, 8), (8, 1)):
        check(shard_size, world_size)
    with pytest.raises(UserError, match=r"shard_size=3 does not divide the number of processes, 8.*one of 2, 4, 8"):
        check(3, 8)
    with pytest.raises(UserError, match=r"shard_size=8 does not divide the number of processes, 4.*one of 2, 4, or"):
        check(8, 4)


def test_a_rough_estimate_says_so() -> None:
    shape = replace(model_shape(config_of()), layers=model_shape(tiny("qwen3_5_text", mixed=True)).layers)
    _, reason = choose_recompute(StepPlan(shape, recipe_of(), M2, device_bytes=40 * GIB))
    assert reason.endswith("fits in 40.0 GiB; a rough estimate: 1 of 2 layers have no attention to tokens")


def test_reasons_hold_the_sizes() -> None:
    _, reason = choose_recompute(StepPlan(model_shape(config_of()), recipe_of(), M2, device_bytes=40 * GIB))
    assert reason == "1.0 GiB fits in 40.0 GiB"


def test_more_processes_hold_less_each() -> None:
    shape = model_shape(config_of())
    step = StepPlan(shape, recipe_of(**FULL), M2, "full", "shard")
    sizes = [estimate_memory(replace(step, world_size=count)).allocated for count in (1, 2, 8)]
    assert sizes == sorted(sizes, reverse=True)
    copies = replace(step, recipe=recipe_of(**FULL, parallel={"shard_size": 2}), world_size=8)
    assert estimate_memory(copies).allocated == sizes[1]
    (layer,) = shape.layers
    deeper = replace(step, shape=replace(shape, layers=(replace(layer, count=10),)), world_size=8)
    kept = replace(deeper, recipe=recipe_of(**FULL, parallel={"reshard_after_forward": False}))
    more, less = (estimate_memory(it).allocated for it in (kept, deeper))
    assert more - less == pytest.approx(8 * 2 * layer.parameters)


def test_time_is_work_over_rate() -> None:
    card = CARDS["h200-141gb"]
    assert step_seconds(card, 395.6e12, num_rows=9, num_gpus=8) == pytest.approx(2.0)
    assert step_seconds(CARDS["cpu"], 1.0, num_rows=1, num_gpus=1) is None
