"""Work, choices and time, against figures counted by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from logodata.common.errors import UserError
from logotrain.attention.choice import Traits, choose_attention
from logotrain.plan.choices import (
    Chosen,
    check_context_size,
    check_recompute,
    check_strategy,
    choose_step,
    memory_by_recompute,
    recompute_choices,
)
from logotrain.plan.cost import CARDS, Card, Traffic, model_flops, reference_flops, row_flops, step_seconds, traffic
from logotrain.plan.memory import estimate_memory
from logotrain.plan.shape import ModelShape, model_shape
from logotrain.plan.step import StepPlan
from logotrain.recipe.settings import Recompute, TrainRecipe
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
    once = 3 * 2 * 2 * weights + 3 * attention + 3 * head
    assert model_flops(step) == model_flops(replace(step, recompute="full")) == pytest.approx(once)
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


UNKNOWN = Card(None, None, host_link=1e9)
"""A GPU without known rates."""


def chosen_for(recipe: TrainRecipe, device_bytes: int | None, world_size: int = 1, **fields: object) -> Chosen:
    step = StepPlan(model_shape(config_of()), recipe, M2, world_size=world_size, device_bytes=device_bytes)
    return choose_step(replace(step, **fields), UNKNOWN, 2 * world_size)


def choose(recipe: TrainRecipe, device_bytes: int | None, world_size: int = 1) -> tuple[str, str]:
    step = chosen_for(recipe, device_bytes, world_size).step
    return step.strategy, step.recompute


def test_recompute_is_the_first_that_fits() -> None:
    recipe = recipe_of()
    needed = memory_by_recompute(StepPlan(model_shape(config_of()), recipe, M2))
    sizes = {choice: estimate.total for choice, estimate in needed.items()}
    assert list(sizes) == ["none", "selective", "full", "tiled", "offloaded"]
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert choose(recipe, None) == ("replicate", "none")
    assert choose(recipe, sizes["none"]) == ("replicate", "none")
    assert choose(recipe, sizes["none"] - 1) == ("replicate", "selective")
    assert choose(recipe, sizes["selective"] - 1) == ("replicate", "full")
    assert choose(recipe, sizes["full"] - 1) == ("replicate", "tiled")
    assert choose(recipe, sizes["tiled"] - 1) == ("replicate", "offloaded")
    assert choose(recipe, sizes["offloaded"] - 1) == ("replicate", "offloaded")
    assert not chosen_for(recipe, sizes["offloaded"] - 1).fits
    assert choose(recipe_of(recompute="none"), 1) == ("replicate", "none")


def test_host_memory_is_taken_where_there_is_some() -> None:
    sizes = memory_by_recompute(StepPlan(model_shape(config_of()), recipe_of(), M2))
    least, host = sizes["offloaded"].total, sizes["offloaded"].host
    assert host == 2 * 4 * 1216 * 256 / 2  # two layers' inputs, in bfloat16
    assert chosen_for(recipe_of(), least, host_bytes=host).fits
    assert not chosen_for(recipe_of(), least, host_bytes=host - 1).fits
    step = StepPlan(model_shape(config_of()), recipe_of(), M2, device_bytes=least)
    assert not choose_step(step, CARDS["cpu"], 2).fits, "a CPU's memory is the host's"


def test_flex_attention_has_nothing_to_keep() -> None:
    assert recompute_choices("sdpa") == recompute_choices("flash") == get_args(Recompute)
    assert recompute_choices("flex") == ("none", "full", "tiled", "offloaded")
    check_recompute("selective", "flash")
    check_recompute("full", "flex")
    with pytest.raises(UserError, match=r"recompute=selective.*FlexAttention.*recompute=full"):
        check_recompute("selective", "flex")
    with pytest.raises(UserError, match=r"transformers' eager attention, which these rows need, .*recompute=full\)"):
        check_recompute("selective", "eager")


def test_a_back_end_of_shared_rows_is_refused_for_separate_ones() -> None:
    traits = Traits("its layers mix tokens")
    for wanted in ("sdpa", "flash", "flex"):
        with pytest.raises(UserError, match=rf"attention={wanted}.*its layers mix tokens.*attention=auto"):
            choose_attention(traits, torch.device("cpu"), torch.float32, wanted=wanted)
    assert choose_attention(traits, torch.device("cpu"), torch.float32).by == "eager"
    by = choose_attention(replace(traits, separate="sdpa"), torch.device("cpu"), torch.float32, wanted="sdpa").by
    assert by == "sdpa"


def deep(recipe: TrainRecipe, count: int = 40) -> StepPlan:
    """A step of a model whose weights are what is large."""
    shape = model_shape(config_of())
    return StepPlan(replace(shape, layers=(replace(shape.layers[0], count=count),)), recipe, M2)


def test_what_one_device_cannot_hold_is_shared() -> None:
    recipe = recipe_of(recompute="full", parallel={"context_size": 1})
    step = deep(recipe)
    least = estimate_memory(replace(step, recompute="full")).total

    def strategy(device_bytes: int, world_size: int) -> str:
        return choose_step(
            replace(step, device_bytes=device_bytes, world_size=world_size), UNKNOWN, 2 * world_size
        ).step.strategy

    assert strategy(least, 2) == "replicate"
    assert strategy(least - 1, 2) == "shard"
    assert strategy(least - 1, 1) == "replicate"
    assert choose(recipe_of(**FULL), None, world_size=2)[0] == "shard"
    assert choose(recipe_of(**FULL, dtype="float32", parallel={"strategy": "replicate"}), None, 2)[0] == "replicate"
    assert choose(recipe_of(tuning="qlora"), 1, 2)[0] == "replicate", "4-bit weights cannot be split"


def test_a_row_is_split_where_one_device_cannot_hold_it() -> None:
    recipe = recipe_of(recompute="none", parallel={"strategy": "replicate"})
    whole, halves = (
        estimate_memory(StepPlan(model_shape(config_of()), recipe, M2, context_size=size, world_size=4)).total
        for size in (1, 2)
    )
    assert whole > halves
    assert chosen_for(recipe, whole, 4).step.context_size == 1
    found = chosen_for(recipe, whole - 1, 4)
    assert (found.step.context_size, found.step.num_rows) == (2, 4)
    assert found.why_context.startswith("1 needs ")
    assert chosen_for(recipe, halves - 1, 4).step.context_size == 4
    assert chosen_for(recipe, halves - 1, 3).step.context_size == 1, "three do not divide eight heads"
    assert chosen_for(recipe, whole - 1, 4, shared=False).step.context_size == 1, "rows are split where they are shared"
    asked = recipe_of(recompute="none", parallel={"strategy": "replicate", "context_size": 4})
    assert chosen_for(asked, whole, 4).step.context_size == 4


def test_a_context_size_that_cannot_be_is_refused() -> None:
    def check(size: int | str, why_separate: str = "") -> None:
        check_context_size(recipe_of(parallel={"context_size": size}), 8, 4, why_separate)

    check("auto", "no")
    check(1, "no")
    check(4)
    for size, why, message in (
        (3, "", "=3 does not divide the number of processes, 8"),
        (8, "", "=8 is more than the model's 4 attention heads"),
        (2, "as asked for", "rows are split only where responses share their prompt, .*: as asked for"),
    ):
        with pytest.raises(UserError, match=message):
            check(size, why)


def test_replicas_that_would_be_sharded_in_silence_are_refused() -> None:
    """Full tuning in bfloat16 is FSDP's; one process has nothing to replicate."""
    replicate = {"parallel": {"strategy": "replicate"}}
    with pytest.raises(UserError, match=r"replicate cannot tune all weights in bfloat16 on 2 .*dtype=float32"):
        check_strategy(recipe_of(**FULL, **replicate), 2)
    check_strategy(recipe_of(**FULL, **replicate), 1)
    check_strategy(recipe_of(**FULL, **replicate, dtype="float32"), 2)
    check_strategy(recipe_of(**replicate), 2)
    check_strategy(recipe_of(**FULL), 2)


def test_what_cannot_update_shards_is_refused_before_anything_is_read() -> None:
    bits: dict[str, Any] = {"optimizer": {"name": "adamw_8bit"}}
    shards = {"parallel": {"strategy": "shard"}}
    for world_size in (1, 2):
        with pytest.raises(UserError, match=r"adamw_8bit cannot update sharded .* on one process, too .*dtype=float32"):
            check_strategy(recipe_of(**FULL, **bits), world_size)
        check_strategy(recipe_of(**FULL, **bits, dtype="float32"), world_size)
        check_strategy(recipe_of(**bits), world_size)
    with pytest.raises(UserError, match=r"adamw_8bit cannot update sharded weights \(set parallel.strategy=replicate"):
        check_strategy(recipe_of(**bits, **shards), 2)
    with pytest.raises(UserError, match="4-bit weights cannot be sharded"):
        check_strategy(recipe_of(tuning="qlora", **shards), 2)
    for fields in (bits, {"tuning": "qlora"}):  # one process has nothing to share
        check_strategy(recipe_of(**fields, **shards), 1)
    whole = recipe_of(**FULL, **bits, dtype="float32")
    assert chosen_for(whole, 80 * GIB, world_size=2).step.strategy == "replicate"


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
    reason = chosen_for(recipe_of(), 40 * GIB, shape=shape).why_recompute
    assert reason.endswith("fits in 40.0 GiB; a rough estimate: 1 of 2 layers have no attention to tokens")


def test_reasons_hold_the_sizes() -> None:
    assert chosen_for(recipe_of(), 40 * GIB).why_recompute == "1.0 GiB fits in 40.0 GiB"
    sizes = memory_by_recompute(StepPlan(model_shape(config_of()), recipe_of(), M2))
    reason = chosen_for(recipe_of(), sizes["none"].total - 1).why_recompute
    assert re.fullmatch(r"1.0 GiB fits in 1.\d GiB, none with 1.\d GiB does not", reason)
    two = chosen_for(recipe_of(), sizes["offloaded"].total, world_size=2)
    assert two.why_strategy.endswith("holds the whole model and a row, 1.0 GiB")


def test_where_no_part_runs_in_tiles_it_is_said() -> None:
    shape = model_shape(config_of())
    (layer,) = shape.layers
    assert layer.has_tiles
    without = replace(shape, layers=(replace(layer, mlp_in_tiles=False),))
    sizes = memory_by_recompute(StepPlan(without, recipe_of(), M2))
    assert sizes["tiled"] == sizes["full"]
    found = chosen_for(recipe_of(), sizes["full"].total - 1, shape=without)
    assert found.step.recompute == "offloaded"
    assert found.why_recompute.endswith("2 of 2 layers have no MLP that runs in tiles")


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


def test_time_is_work_over_rate(llama3_8b: ModelShape) -> None:
    card = CARDS["h200-141gb"]
    step = StepPlan(llama3_8b, recipe_of(), ROW, world_size=8)
    assert step_seconds(card, step, 395.6e12, num_rows=9) == pytest.approx(2.0)
    assert step_seconds(CARDS["cpu"], step, 1.0, num_rows=1) is None


def test_what_is_sent_by_hand(llama3_8b: ModelShape) -> None:
    """Llama-3-8B at 8K tokens in bfloat16: 32 query heads and 8 key heads of 128 features, 32 layers."""
    row = RowLayout((SharedPrefixLayout(8192 - 256, (256,)),))
    step = StepPlan(llama3_8b, recipe_of(), row, world_size=8)
    assert traffic(step) == Traffic(0, 0, 0)
    # Each of two processes sends half of the heads of 4096 tokens: queries, outputs, keys, values; there and back.
    token = 2 * 128 * (16 + 16 + 4 + 4)
    assert traffic(replace(step, context_size=2)).exchanged == 2 * 32 * 4096 * token
    assert traffic(replace(step, context_size=2, recompute="full")).exchanged == 3 * 32 * 4096 * token
    # Of 16 processes each has two query heads, and one key head that another one has, too.
    token = 2 * 128 * 15 * (2 + 2 + 1 + 1)
    assert traffic(replace(step, world_size=16, context_size=16)).exchanged == 2 * 32 * 512 * token
    assert traffic(replace(step, strategy="shard")).gathered == 2 * 2 * 8_030_261_248 * 7 / 8
    assert traffic(replace(step, recompute="offloaded")).offloaded == 2 * 2 * 32 * 8192 * 4096
    card = Card(None, 1e12, link=1e9, host_link=1e9)
    alone = step_seconds(card, replace(step, recompute="offloaded", world_size=1), 1.0, 1)
    assert alone == pytest.approx(2 * 2 * 32 * 8192 * 4096 / 0.7e9), "the host's link is what takes longest"


def test_what_fits_plainly_stays_plain_and_else_the_fastest_is_chosen(llama3_8b: ModelShape) -> None:
    card = CARDS["h100-80gb"]
    step = StepPlan(llama3_8b, recipe_of(), ROW, world_size=8, device_bytes=card.memory_bytes)
    short = choose_step(step, card, 64)
    assert (short.step.strategy, short.step.context_size, short.step.recompute) == ("replicate", 1, "none")
    assert (short.step.num_rows, short.faster) == (8, "")
    plain = choose_step(replace(step, row=RowLayout((SharedPrefixLayout(65536, (256,) * 3),))), card, 64)
    assert (plain.step.strategy, plain.step.context_size, plain.step.recompute) == ("replicate", 1, "selective")
    assert re.fullmatch(r"parallel.context_size=8 .* recompute=none: 1\.\d times as fast", plain.faster)

    long = replace(step, row=RowLayout((SharedPrefixLayout(262144, (256,) * 3),)))
    found = choose_step(long, card, 64)
    assert found.fits
    assert not found.faster
    times = {}
    for size in (1, 2, 4, 8):
        recipe = recipe_of(parallel={"context_size": size})
        there = choose_step(replace(long, recipe=recipe), card, 64)
        if there.fits:
            times[size] = step_seconds(card, there.step, row_flops(there.step), 64)
    assert times[found.step.context_size] <= 1.1 * min(times.values())
    assert all(time > 1.1 * min(times.values()) for size, time in times.items() if size < found.step.context_size)
    lone = choose_step(replace(long, world_size=1), card, 64).step
    assert (lone.context_size, lone.recompute) == (1, "offloaded")
    assert row_flops(replace(long, recompute="offloaded")) == row_flops(replace(long, recompute="full"))
