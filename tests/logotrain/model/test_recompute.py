"""What is computed twice, that it changes no gradient, and that compiled layers take any layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.attention import varlen as torch_varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
)

from logodata.common.errors import UserError
from logotrain.attention import kernels
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.model import recompute
from logotrain.model.recompute import (
    checkpoint_layers,
    compile_layers,
    decoder_layers,
    pinned_sizes,
    tile_tokens,
    tiled_classes,
    tiled_modules,
)
from logotrain.recipe.settings import Recompute
from logotrain.rows.layout import RowLayout, SharedPrefixLayout
from tests.conftest import make_model

CHOICES: tuple[Recompute, ...] = ("none", "selective", "full", "tiled", "offloaded")
IN_TILES: tuple[Recompute, ...] = ("tiled", "offloaded")
LAYERS = 2

KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"
CALLS_IN_ONE = 3  # prompt, responses, padding

ONE = RowLayout((SharedPrefixLayout(40, (9, 5)),), padding=10)
TWO = RowLayout((SharedPrefixLayout(20, (3, 7, 2)), SharedPrefixLayout(11, (21,))))


def loss_of(model: nn.Module, layout: RowLayout) -> Tensor:
    generator = torch.Generator().manual_seed(layout.used_length)
    ids = torch.randint(200, (1, layout.total_length), generator=generator)
    positions = torch.arange(layout.total_length)[None]
    return model(input_ids=ids, position_ids=positions, use_cache=False, shared_prefix=layout).logits.square().mean()


def gradients(model: nn.Module, *layouts: RowLayout) -> dict[str, Tensor]:
    """Of all rows' losses; every row's forward runs before the first backward."""
    model.zero_grad()
    with use_shared_prefix(model):
        torch.stack([loss_of(model, layout) for layout in layouts]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert torch.equal(found[name], gradient), name


def with_adapters(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


@pytest.fixture(params=["plain", "PEFT"])
def model(request: pytest.FixtureRequest, tiny_model: LlamaForCausalLM) -> nn.Module:
    return (with_adapters(tiny_model) if request.param == "PEFT" else tiny_model).train()


class Operators(TorchDispatchMode):
    """Counts what is really computed: recompute's own modes lie above and answer for what they kept."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layouts", [(ONE,), (ONE, TWO)], ids=["one row", "two rows in flight"])
@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_are_the_same_bit_for_bit(model: nn.Module, choice: Recompute, layouts: tuple[RowLayout]) -> None:
    expected = gradients(model, *layouts)
    names = [name for name, _ in model.named_parameters()], list(model.state_dict())
    checkpoint_layers(model, choice)
    assert_identical(gradients(model, *layouts), expected)
    assert names == ([name for name, _ in model.named_parameters()], list(model.state_dict()))


@pytest.fixture
def short_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 24 tokens: three of them for a row of 64, the last one shorter."""
    monkeypatch.setattr(recompute, "tile_tokens", lambda _config: 24)


def mixture(**overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        **overrides,
    )
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()


STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTED: dict[str, dict[str, Any]] = {
    "full tuning": {},
    "adapters everywhere": {"target_modules": "all-linear"},
    "mixture": {},
    "adapters of a mixture": {"target_modules": "all-linear", "target_parameters": STACKS},
}


@pytest.mark.usefixtures("short_tiles")
@pytest.mark.parametrize("kind", ADAPTED)
def test_tiles_change_no_gradient(tiny_model: LlamaForCausalLM, kind: str) -> None:
    """Weights' gradients are sums over tiles, in another order. Both rows are in flight, and layouts differ."""
    model: nn.Module = mixture() if "mixture" in kind else tiny_model
    if settings := ADAPTED[kind]:
        model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **settings))
    model = model.double().eval()
    expected = gradients(model, ONE, TWO)
    assert any("mlp" in name for name in expected)
    found: list[dict[str, Tensor]] = []
    for choice in IN_TILES:
        checkpoint_layers(model, choice)
        found.append(gradients(model, ONE, TWO))
        assert found[-1].keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[-1][name] - gradient).norm() <= 1e-10 * gradient.norm(), name
    assert_identical(found[0], found[1])
    checkpoint_layers(model, "none")
    assert_identical(gradients(model, ONE, TWO), expected)


@pytest.mark.usefixtures("short_tiles")
def test_tiles_cost_no_third_pass(tiny_model: LlamaForCausalLM) -> None:
    tiles: list[int] = []
    for layer in decoder_layers(tiny_model):
        layer.mlp.gate_proj.register_forward_pre_hook(lambda _module, inputs: tiles.append(inputs[0].shape[1]))
    work = {}
    for choice in ("full", *IN_TILES):
        checkpoint_layers(tiny_model, choice)
        tiles.clear()
        with FlopCounterMode(display=False) as counter:
            gradients(tiny_model, ONE)
        work[choice] = counter.get_total_flops()
        assert sorted(tiles) == sorted(2 * LAYERS * ([64] if choice == "full" else [24, 24, 16]))
    assert work["full"] == work["tiled"] == work["offloaded"] > 0


@pytest.mark.usefixtures("short_tiles")
def test_a_row_without_gradients_runs_in_tiles_too(tiny_model: LlamaForCausalLM) -> None:
    checkpoint_layers(tiny_model, "none")
    with torch.no_grad(), use_shared_prefix(tiny_model):
        expected = loss_of(tiny_model, ONE)
        checkpoint_layers(tiny_model, "offloaded")
        assert torch.allclose(loss_of(tiny_model, ONE), expected, rtol=1e-6)


def test_pinned_blocks_are_powers_of_two() -> None:
    """torch would round others up: the 131,840 tokens of a prompt of 128K and its answers to 262,144."""
    for count in (1, 2**19, 2**19 + 1, 3 * 2**25, 131_840 * 4096, 8_705 * 5120):
        *large, rest = sizes = pinned_sizes(count)
        assert sum(sizes) == count
        assert large == sorted(large, reverse=True)
        assert all(size.bit_count() == 1 and size >= 2**19 for size in large)
        assert rest <= 2**19 or rest.bit_count() == 1
    assert pinned_sizes(0) == []


def test_what_runs_in_tiles_is_found_by_trying(tiny_model: LlamaForCausalLM) -> None:
    """Not attention, and no block with a router, whose choices are recorded; OPT's MLP is no module."""
    assert {cls.__name__ for cls in tiled_classes(tiny_model.config)} == {"LlamaMLP"}
    adapted = get_peft_model(mixture(), LoraConfig(r=4, target_parameters=STACKS))
    classes = tiled_classes(mixture().config)
    assert {cls.__name__ for cls in classes} == {"Qwen2MoeExperts", "Qwen2MoeMLP"}
    found = {path: type(module).__name__ for path, module in tiled_modules(decoder_layers(adapted)[0], classes)}
    assert found == {"mlp.experts": "ParamWrapper", "mlp.shared_expert": "Qwen2MoeMLP"}
    opt = OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=200)
    assert not tiled_classes(opt)
    assert tile_tokens(tiny_model.config) == 64


def test_the_inputs_of_layers_wait_in_host_memory(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They, and nothing else, go there in order and come back in the opposite order."""
    moved: list[tuple[str, int]] = []
    to_host, from_host = recompute.to_host, recompute.from_host

    def sent(tensor: Tensor) -> Tensor:
        host = to_host(tensor)
        moved.append(("to", host.data_ptr()))
        assert tensor.shape == (1, 64, 64)
        return host

    def fetched(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append(("from", tensor.data_ptr()))
        return from_host(tensor, device)

    monkeypatch.setattr(recompute, "to_host", sent)
    monkeypatch.setattr(recompute, "from_host", fetched)
    checkpoint_layers(tiny_model, "offloaded")
    gradients(tiny_model, ONE)
    assert [way for way, _ in moved] == ["to"] * LAYERS + ["from"] * LAYERS
    assert [place for _, place in moved[LAYERS:]] == [place for _, place in moved[:LAYERS]][::-1]


@pytest.mark.parametrize(
    ("choice", "attention_runs", "mlp_runs"),
    [("none", 1, 1), ("selective", 1, 2), ("full", 2, 2), ("tiled", 2, 2), ("offloaded", 2, 2)],
)
def test_what_is_computed_twice(model: nn.Module, choice: Recompute, attention_runs: int, mlp_runs: int) -> None:
    checkpoint_layers(model, choice)
    mlps: list[str] = []
    for layer in decoder_layers(model):
        layer.mlp.register_forward_pre_hook(lambda *_: mlps.append("run"))
    with Operators() as operators:
        gradients(model, ONE)
    assert len(mlps) == LAYERS * mlp_runs
    assert operators.counts[KERNEL] == LAYERS * CALLS_IN_ONE * attention_runs
    assert operators.counts[f"{KERNEL}_backward"] == LAYERS * CALLS_IN_ONE


@pytest.fixture
def varlen_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of torch's variable-length operator, which gets a CPU kernel that is no attention but has gradients."""
    calls: list[str] = []

    @torch_varlen._varlen_attn.register_kernel("cpu")
    def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        calls.append("forward")
        return query * 2, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)

    @torch_varlen._varlen_attn_backward.register_kernel("cpu")
    def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return grad * 2, torch.zeros_like(key), torch.zeros_like(value)

    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels._torch_varlen)
    return calls


@pytest.mark.parametrize(("choice", "runs"), [("none", 1), ("selective", 1), ("full", 2)])
def test_the_variable_length_operator_is_kept_too(
    tiny_model: LlamaForCausalLM, varlen_calls: list[str], choice: Recompute, runs: int
) -> None:
    checkpoint_layers(tiny_model, choice)
    with use_shared_prefix(tiny_model, "flash"):
        loss_of(tiny_model, TWO).backward()
    assert len(varlen_calls) == LAYERS * 2 * runs


def test_a_later_choice_replaces_an_earlier_one(tiny_model: LlamaForCausalLM) -> None:
    mlps: list[str] = []
    tiny_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: mlps.append("run"))
    for choice, runs in [("full", 2), ("selective", 2), ("none", 1)]:
        checkpoint_layers(tiny_model, choice)
        mlps.clear()
        gradients(tiny_model, ONE)
        assert len(mlps) == runs


def test_adapters_are_saved_under_their_names(tiny_model: LlamaForCausalLM) -> None:
    adapted = with_adapters(tiny_model)
    before = list(get_peft_model_state_dict(adapted))
    checkpoint_layers(adapted, "full")
    assert list(get_peft_model_state_dict(adapted)) == before
    assert all(name.startswith("base_model.model.model.layers.") for name in before)


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group", "short_tiles")
@pytest.mark.parametrize("choice", CHOICES)
def test_layers_can_be_sharded_afterwards(model: nn.Module, choice: Recompute) -> None:
    checkpoint_layers(model, choice if choice in IN_TILES else "none")
    expected = gradients(model, ONE)
    checkpoint_layers(model, choice)
    mesh = init_device_mesh("cpu", (1,))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
        assert isinstance(layer, FSDPModule)
    fully_shard(model, mesh=mesh)
    found = {name: gradient.full_tensor() for name, gradient in gradients(model, ONE).items()}
    assert_identical(found, expected)


def test_layers_are_the_outermost_ones(model: nn.Module) -> None:
    assert [layer.self_attn.layer_idx for layer in decoder_layers(model)] == [0, 1]
    with pytest.raises(UserError, match="no decoder layers found in Linear"):
        decoder_layers(nn.Linear(2, 2))


def test_compiling_comes_first(tiny_model: LlamaForCausalLM) -> None:
    checkpoint_layers(tiny_model, "full")
    with pytest.raises(ValueError, match="before checkpoint_layers"):
        compile_layers(tiny_model)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """With the code that torch generates by default: one layer, because it takes as long for each."""
    adapted = with_adapters(make_model(len(tiny_tokenizer), num_hidden_layers=1)).train()
    expected = gradients(adapted, ONE)
    compile_layers(adapted)
    torch._dynamo.reset()
    counters.clear()
    for name, gradient in gradients(adapted, ONE).items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
    assert counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"] > 0
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_layers_take_any_layout_and_any_recompute(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled once; then rows of the same length but other layouts compile nothing, in no mode of recompute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    adapted = with_adapters(tiny_model).train()
    rows = [
        ONE,
        RowLayout((SharedPrefixLayout(31, (20, 13)),)),
        RowLayout((SharedPrefixLayout(5, (1, 1)), SharedPrefixLayout(9, (9, 3))), padding=36),
        TWO,
    ]
    assert {row.total_length for row in rows} == {64}
    expected = [gradients(adapted, row) for row in rows]

    compile_layers(adapted)
    torch._dynamo.reset()
    counters.clear()
    first = gradients(adapted, rows[0])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    with torch.compiler.set_stance("fail_on_recompile"):
        for choice in ("none", "selective", "full"):
            checkpoint_layers(adapted, choice)
            with Operators() as operators:
                assert_identical(gradients(adapted, rows[0]), first)
            assert operators.counts[KERNEL] == LAYERS * CALLS_IN_ONE * (2 if choice == "full" else 1)
            for row, eager in zip(rows, expected, strict=True):
                for name, gradient in gradients(adapted, row).items():
                    assert (gradient - eager[name]).norm() <= 1e-5 * eager[name].norm(), name
    assert counters["stats"]["unique_graphs"] == graphs

    # A second length is compiled for all lengths.
    gradients(adapted, RowLayout(ONE.samples, padding=74))
    with torch.compiler.set_stance("fail_on_recompile"):
        gradients(adapted, RowLayout(ONE.samples, padding=138), RowLayout(TWO.samples, padding=192))
    torch._dynamo.reset()


@pytest.mark.usefixtures("short_tiles")
def test_compiled_layers_run_in_tiles(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile is compiled, too; rows of the same length compile nothing more."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    adapted = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    expected = [gradients(adapted, row) for row in (ONE, TWO)]
    compile_layers(adapted)
    torch._dynamo.reset()
    counters.clear()
    checkpoint_layers(adapted, "offloaded")
    gradients(adapted, ONE)
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for row, eager in zip((ONE, TWO), expected, strict=True):
            for name, gradient in gradients(adapted, row).items():
                assert (gradient - eager[name]).norm() <= 1e-5 * eager[name].norm(), name
    assert counters["stats"]["unique_graphs"] == graphs > 0
    torch._dynamo.reset()
