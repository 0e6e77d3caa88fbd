"""A row through a model equals separate rows: values, gradients, and what each token can see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    Cohere2Config,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MistralConfig,
    MistralForCausalLM,
    NanoChatConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    VaultGemmaConfig,
)

from logodata.common.errors import UserError
from logotrain.attention import kernels
from logotrain.attention.kernels import Sequences
from logotrain.attention.shared_prefix import check_config, choose_backend, use_shared_prefix
from logotrain.recipe.settings import Backend
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

VOCABULARY = 61

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral v0.2": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),  # biases
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),  # norms of queries and keys
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 16}),  # scaled embedding, wide heads, tied head
}

LAYOUTS = [
    RowLayout((SharedPrefixLayout(13, (4, 1, 6)),)),
    RowLayout(
        (SharedPrefixLayout(9, (5, 3)), SharedPrefixLayout(1, (2,)), SharedPrefixLayout(6, (1, 7, 2))), padding=4
    ),
]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(request.param)


def random_model(family: str, **changes: int) -> PreTrainedModel:
    """In float64 throughout, every weight random."""
    cls, config, extra = FAMILIES[family]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    model = cls(config(**{**sizes, **extra, **changes})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = ExactNorm(module)
    return model


class ExactNorm:
    """In place of transformers' RMSNorm, which goes through float32 and would hide errors."""

    def __init__(self, norm: nn.Module) -> None:
        is_gemma = type(norm).__name__.startswith("Gemma")
        self.norm, self.offset = norm, 1.0 if is_gemma else 0.0
        self.eps = norm.eps if is_gemma else norm.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.offset + self.norm.weight) * hidden * scale


@dataclass(frozen=True)
class Row:
    """Random tokens at positions with gaps; ``separate`` are the indices of each prompt with one of its responses."""

    layout: RowLayout
    ids: Tensor
    positions: Tensor
    separate: list[tuple[list[int], int]]


def random_row(layout: RowLayout) -> Row:
    rng = np.random.default_rng(layout.total_length)
    ids = rng.integers(0, VOCABULARY, layout.total_length)
    positions: list[int] = []
    separate: list[tuple[list[int], int]] = []
    for sample in layout.samples:
        prompt = range(len(positions), len(positions) + sample.prompt_length)
        positions += np.sort(rng.choice(2000, sample.prompt_length, replace=False)).tolist()
        following = positions[-1] + 1
        for length in sample.response_lengths:
            separate.append(([*prompt, *range(len(positions), len(positions) + length)], sample.prompt_length))
            positions += range(following, following + length)
    positions += [0] * layout.padding
    return Row(layout, torch.tensor(ids)[None], torch.tensor(positions)[None], separate)


def logits(model: PreTrainedModel, row: Row) -> Tensor:
    """[N, V]; inside use_shared_prefix."""
    return model(input_ids=row.ids, position_ids=row.positions, use_cache=False, shared_prefix=row.layout).logits[0]


def response_logprobs(logits: Tensor, row: Row) -> list[Tensor]:
    """Of each response; its first token is predicted by the prompt's last."""
    everything, result = logits.log_softmax(-1), []
    for indices, prompt in row.separate:
        tokens = row.ids[0, indices[prompt:]]
        result.append(everything[indices[prompt - 1 : -1], tokens])
    return result


def separate_logprobs(model: PreTrainedModel, row: Row) -> list[Tensor]:
    """Each response after its prompt in a row of its own, with a causal mask written out."""
    result = []
    for indices, prompt in row.separate:
        causal = torch.ones(len(indices), len(indices), dtype=torch.bool).tril()[None, None]
        ids, positions = row.ids[:, indices], row.positions[:, indices]
        output = model(input_ids=ids, position_ids=positions, attention_mask=causal, use_cache=False).logits[0]
        result.append(output.log_softmax(-1)[torch.arange(prompt - 1, len(indices) - 1), ids[0, prompt:]])
    return result


def gradients(model: PreTrainedModel, logprobs: list[Tensor]) -> dict[str, Tensor]:
    """Of a sum with weights that no two tokens share."""
    model.zero_grad()
    values = torch.cat(logprobs)
    (values * torch.linspace(0.5, 1.5, len(values))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def varlen(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None) -> Tensor:
    """A variable-length kernel for CPU."""
    queries = query.tensor_split(sequences.query_ends[1:-1].tolist())
    keys, values = (states.tensor_split(sequences.key_ends[1:-1].tolist()) for states in (key, value))
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        heads = (states.transpose(0, 1) for states in (q, k, v))
        outputs.append(scaled_dot_product_attention(*heads, attn_mask=mask, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.fixture(params=["sdpa", "flash"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "flash":
        monkeypatch.setattr(kernels, "varlen_kernel", lambda: varlen)
    return request.param


def assert_equals_separate_rows(model: PreTrainedModel, layout: RowLayout, backend: Backend) -> None:
    """Log-probabilities and the gradients of every parameter."""
    row = random_row(layout)
    expected_logprobs = separate_logprobs(model, row)
    expected = gradients(model, expected_logprobs)
    with use_shared_prefix(model, backend):
        found_logprobs = response_logprobs(logits(model, row), row)
        found = gradients(model, found_logprobs)
    for ours, theirs in zip(found_logprobs, expected_logprobs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() / gradient.norm() < 1e-7, name


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one sample", "three samples and padding"])
def test_values_and_gradients_of_every_parameter_equal_separate_rows(
    model: PreTrainedModel, layout: RowLayout, backend: Backend
) -> None:
    assert_equals_separate_rows(model, layout, backend)


def test_a_row_longer_than_the_kernels_blocks(backend: Backend) -> None:
    """Attention kernels work in blocks of up to 512: short rows would not cross their borders."""
    layout = RowLayout((SharedPrefixLayout(900, (70, 3, 130)), SharedPrefixLayout(70, (90, 5))), padding=268)
    assert_equals_separate_rows(random_model("llama"), layout, backend)


def reached(layout: RowLayout, at: int) -> list[bool]:
    """Which tokens the one at ``at`` may influence: from itself to the end of its response, or of its sample."""
    starts = [*layout.sample_starts, layout.used_length]
    number = max(number for number, start in enumerate(starts) if start <= at)
    if number == len(layout.samples):
        end = layout.total_length
    else:
        end = starts[number + 1]
        sample = layout.samples[number]
        for start, length in zip(layout.response_starts[number], sample.response_lengths, strict=True):
            if start <= at < start + length:
                end = start + length
    return [at <= token < end for token in range(layout.total_length)]


def test_a_token_reaches_what_follows_it_and_nothing_else(model: PreTrainedModel, backend: Backend) -> None:
    """Across every gap in the positions, and to no other response, sample or padding."""
    row = random_row(LAYOUTS[1])
    with use_shared_prefix(model, backend), torch.no_grad():
        before = logits(model, row)
        for at in range(row.layout.total_length):
            ids = row.ids.clone()
            ids[0, at] = (ids[0, at] + 1) % VOCABULARY
            after = logits(model, Row(row.layout, ids, row.positions, row.separate))
            assert (before != after).any(dim=1).tolist() == reached(row.layout, at), at


def test_each_model_has_its_own_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(*args: object) -> Tensor:
        calls.append("flash")
        return varlen(*args)

    monkeypatch.setattr(kernels, "varlen_kernel", lambda: counted)
    one, other = random_model("llama"), random_model("llama")
    row = random_row(LAYOUTS[1])
    with use_shared_prefix(one, "flash"), use_shared_prefix(other, "sdpa"):
        first = logits(one, row)
        assert len(calls) == 2 * 2  # two layers, two calls each
        second = logits(other, row)
        assert len(calls) == 2 * 2
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


def test_a_plain_call_raises_instead_of_attending_wrongly() -> None:
    model, row = random_model("llama"), random_row(LAYOUTS[0])
    ids, layout = row.ids, row.layout
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    before = model.config._attn_implementation
    with use_shared_prefix(model):
        with pytest.raises(ValueError, match="shared_prefix=layout"):
            model(input_ids=ids)
        with pytest.raises(ValueError, match="mask"):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), shared_prefix=layout)
        with pytest.raises(ValueError, match="mask"):
            model(input_ids=ids, attention_mask=causal, shared_prefix=layout)
        with pytest.raises(ValueError, match="one row of 24 tokens"):
            model(input_ids=ids[:, :-1], shared_prefix=layout)
        with pytest.raises(ValueError, match="one row"):
            model(input_ids=ids.repeat(2, 1), shared_prefix=layout)
        with pytest.raises(ValueError, match="softcap"):
            model(input_ids=ids, shared_prefix=layout, softcap=30.0)
        with pytest.raises(ValueError, match="is_causal=False"):
            model(input_ids=ids, shared_prefix=layout, is_causal=False)
    assert model.config._attn_implementation == before
    assert model(input_ids=ids).logits.shape[1] == ids.shape[1]


def rope(kind: str, **more: object) -> LlamaConfig:
    return LlamaConfig(rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **more})


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(sliding_window=64), "sliding_window=64"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1, num_hidden_layers=2),
            "sliding_attention",
        ),
        (Gemma2Config(), "sliding_attention"),
        (Gemma3TextConfig(), "sliding_attention"),
        (Gemma3Config(), "sliding_attention"),  # the text model is inside
        (GptOssConfig(), "sliding_attention"),  # sinks too
        (FalconH1Config(), "not all layers attend"),
        (Mamba2Config(), "not all layers attend"),
        (Gemma2Config(layer_types=["full_attention"] * 26), "attn_logit_softcapping=50"),
        (VaultGemmaConfig(layer_types=["full_attention"] * 26), "attn_logit_softcapping=50"),
        (
            Gemma3TextConfig(layer_types=["full_attention"] * 26, final_logit_softcapping=30.0),
            "final_logit_softcapping=30",
        ),
        (NanoChatConfig(), "final_logit_softcapping=15"),
        (GraniteConfig(logits_scaling=8.0), "logits_scaling=8"),
        (CohereConfig(), "logit_scale=0.0625"),
        (Cohere2Config(layer_types=["full_attention"] * 40), "logit_scale=0.0625"),
        (rope("dynamic"), "'dynamic'"),
        (
            rope(
                "longrope",
                short_factor=[1.0] * 64,
                long_factor=[1.0] * 64,
                original_max_position_embeddings=1024,
            ),
            "'longrope'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_refuses_what_cannot_be_shared(config: PreTrainedConfig, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        check_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        *(config(**extra) for _, config, extra in FAMILIES.values()),
        rope("yarn"),
        GraniteConfig(logits_scaling=1.0),
        CohereConfig(logit_scale=None),
    ],
    ids=lambda config: type(config).__name__,
)
def test_accepts_full_attention_and_a_plain_head(config: PreTrainedConfig) -> None:
    check_config(config)


def test_refuses_a_model_with_a_running_state() -> None:
    model = random_model("llama")
    model._is_stateful = True
    with pytest.raises(UserError, match="LlamaForCausalLM carries a state"), use_shared_prefix(model):
        pass


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What choose_backend asks of CUDA, answered as on an A100."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some Card")
    monkeypatch.setattr("logotrain.attention.shared_prefix.varlen_kernel", lambda: varlen)
    return monkeypatch


def test_auto_takes_the_best_that_runs(ampere: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", CUDA, torch.bfloat16) == ("flash", "CUDA and bfloat16")
    assert choose_backend("auto", CUDA, torch.float16)[0] == "flash"
    backend, reason = choose_backend("auto", CUDA, torch.float32)
    assert (backend, reason) == ("flex", "no flash: its kernels compute in bfloat16 or float16, not float32")
    backend, reason = choose_backend("auto", CPU, torch.bfloat16)
    assert (backend, reason) == ("sdpa", "no flash, no flex: FlexAttention has no backward pass on cpu")
    ampere.setattr("logotrain.attention.shared_prefix.varlen_kernel", lambda: None)
    backend, reason = choose_backend("auto", CUDA, torch.bfloat16)
    assert (backend, reason) == ("flex", "no flash: torch was built without it and flash-attn is not installed")
    ampere.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "Some Card is older" in choose_backend("auto", CUDA, torch.bfloat16)[1]


@pytest.mark.usefixtures("ampere")
def test_an_explicit_wish_is_granted_or_refused() -> None:
    for wanted in ("flash", "flex", "sdpa"):
        assert choose_backend(wanted, CUDA, torch.bfloat16) == (wanted, "as asked for")
    assert choose_backend("sdpa", CPU, torch.float32)[0] == "sdpa"
    for wanted, device, dtype, why in [
        ("flash", CPU, torch.bfloat16, "attention=flash: its kernels need CUDA, the device is cpu"),
        ("flash", CUDA, torch.float32, "attention=flash: its kernels compute in bfloat16 or float16, not float32"),
        ("flex", CPU, torch.float32, "attention=flex: FlexAttention has no backward pass on cpu"),
    ]:
        with pytest.raises(UserError, match=why):
            choose_backend(wanted, device, dtype)


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """On the GPU, but for the rotary frequencies, which loading does not round: 0.3 radians at position 2000."""
    frequencies = {name: buffer.float() for name, buffer in model.named_buffers()}
    model = model.to(CUDA, torch.bfloat16)
    for name, buffer in model.named_buffers():
        buffer.data = frequencies[name].to(CUDA)
    return model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["flash", "flex", "sdpa"])
def test_back_ends_agree_on_a_gpu(backend: Backend) -> None:
    """In the model's own precision, against separate rows in float64."""
    model = random_model("llama", head_dim=16)  # FlexAttention's kernels take no narrower heads
    row = random_row(RowLayout((SharedPrefixLayout(900, (70, 3, 130)), SharedPrefixLayout(70, (90, 5))), padding=268))
    expected_logprobs = separate_logprobs(model, row)
    expected = gradients(model, expected_logprobs)
    model = in_bfloat16(model)
    row = Row(row.layout, row.ids.cuda(), row.positions.cuda(), row.separate)
    assert choose_backend(backend, CUDA, torch.bfloat16)[0] == backend
    with use_shared_prefix(model, backend):
        logprobs = response_logprobs(logits(model, row).double(), row)
        found = gradients(model, [values.cpu() for values in logprobs])
    for ours, theirs in zip(logprobs, expected_logprobs, strict=True):
        assert (ours.cpu() - theirs).abs().mean() < 0.05 * theirs.abs().mean()
    for name, gradient in expected.items():
        assert (found[name].cpu().double() - gradient).norm() < 0.1 * gradient.norm(), name
