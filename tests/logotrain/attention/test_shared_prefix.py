"""A row through a model equals separate rows: values, gradients, and what each token can see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from logodata.common.errors import UserError
from logotrain.attention import kernels
from logotrain.attention.kernels import Sequences
from logotrain.attention.shared_prefix import Kernel, choose_backend, shared_prefix_attention, use_shared_prefix
from logotrain.loss.logprobs import LogprobModel
from logotrain.recipe.settings import Backend
from logotrain.rows.collate import Row as CollatedRow
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
    mask = torch.ones_like(row.ids)  # without it transformers takes gaps in the positions for borders of documents
    inputs = {"input_ids": row.ids, "position_ids": row.positions, "attention_mask": mask, "use_cache": False}
    return model(**inputs, shared_prefix=row.layout).logits[0]


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


def varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None, window: int | None
) -> Tensor:
    """A variable-length kernel for CPU."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]  # as the real ones want it
    queries = query.tensor_split(sequences.query_ends[1:-1].tolist())
    keys, values = (states.tensor_split(sequences.key_ends[1:-1].tolist()) for states in (key, value))
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        if window is not None:
            mask &= torch.ones_like(mask).triu(len(k) - len(q) - window + 1)
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
            model(input_ids=ids, attention_mask=causal, shared_prefix=layout)
        with pytest.raises(ValueError, match="one row of 24 tokens"):
            model(input_ids=ids[:, :-1], shared_prefix=layout)
        with pytest.raises(ValueError, match="one row"):
            model(input_ids=ids.repeat(2, 1), shared_prefix=layout)
        with pytest.raises(ValueError, match="is_causal=False"):
            model(input_ids=ids, shared_prefix=layout, is_causal=False)
    assert model.config._attn_implementation == before
    assert model(input_ids=ids).logits.shape[1] == ids.shape[1]


VARIANTS: dict[str, tuple[dict[str, object], set[Kernel]]] = {
    "mistral": ({"sliding_window": 6}, {"sdpa", "flash", "dense"}),
    "gemma2": ({"head_dim": 16, "sliding_window": 6, "attn_logit_softcapping": 3.0}, {"dense"}),
    "gemma3_text": (
        {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        {"sdpa", "flash", "dense"},
    ),
    "gpt_oss": ({"head_dim": 16, "sliding_window": 6, "num_local_experts": 4}, {"sdpa", "dense"}),
    "llama4_text": (
        {
            "attention_chunk_size": 7,
            "layer_types": ["chunked_attention", "full_attention"],
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "head_dim": 8,
        },
        {"sdpa", "dense"},
    ),
    "cohere2": (
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        {"sdpa", "flash", "dense"},
    ),
    "deepseek_v3": (
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "first_k_dense_replace": 2,
        },
        {"sdpa", "flash", "dense"},
    ),
    "granite": ({"logits_scaling": 8.0}, {"sdpa", "flash", "dense"}),
}
"""Kinds of models whose attention or head is not plain, their fields, and the back ends that compute them."""


@pytest.mark.parametrize(
    ("kind", "kernel"), [(kind, kernel) for kind, (_, them) in VARIANTS.items() for kernel in sorted(them)]
)
def test_variants_of_attention_and_heads_equal_the_models_own_forward(
    kind: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, chunks, sinks, capped scores, values narrower than keys, scaled logits: of the logits and gradients."""
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: varlen)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**sizes, **VARIANTS[kind][0]})
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    scorer = LogprobModel(model)
    sample = SharedPrefixLayout(17, (9, 4, 8))
    row = collated(RowLayout((sample, SharedPrefixLayout(8, (3, 5))), padding=4))
    expected_values, expected = scored(scorer, row)
    with use_shared_prefix(model, kernel):
        values, found = scored(scorer, row)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=2e-5)  # transformers' softmax is in float32
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def collated(layout: RowLayout) -> CollatedRow:
    row = random_row(layout)
    index, num_targets = [], []
    for start, firsts, sample in zip(layout.sample_starts, layout.response_starts, layout.samples, strict=True):
        last = start + sample.prompt_length - 1
        for first, length in zip(firsts, sample.response_lengths, strict=True):
            index += [last, *range(first, first + length - 1)]
        num_targets.append((0, *sample.response_lengths))
    targets = [
        token
        for firsts, sample in zip(layout.response_starts, layout.samples, strict=True)
        for first, length in zip(firsts, sample.response_lengths, strict=True)
        for token in row.ids[0, first : first + length].tolist()
    ]
    return CollatedRow(
        row.ids,
        row.positions,
        torch.tensor(index),
        torch.tensor(targets),
        tuple(num_targets),
        layout,
    )


def scored(scorer: LogprobModel, row: CollatedRow) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and gradients of a sum with weights that no two tokens share."""
    scorer.zero_grad()
    values = scorer(row)
    (values * torch.linspace(0.5, 1.5, len(values))).sum().backward()
    return values.detach(), {
        name: weight.grad.clone() for name, weight in scorer.named_parameters() if weight.grad is not None
    }


def test_a_back_end_that_cannot_compute_a_variant_is_not_chosen(ampere: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", CUDA, torch.bfloat16, features={"sliding"})[0] == "flash"
    for feature in ("chunked", "softcap", "sinks"):
        backend, reason = choose_backend("auto", CUDA, torch.bfloat16, features={feature})
        assert (backend, reason) == ("flex", f"no flash: flash does not compute {feature}")
        with pytest.raises(UserError, match=f"attention=flash: flash does not compute {feature}"):
            choose_backend("flash", CUDA, torch.bfloat16, features={feature})
    assert choose_backend("auto", CPU, torch.float32, features={"sinks", "chunked"})[0] == "sdpa"
    with pytest.raises(UserError, match="sdpa does not compute softcap"):
        choose_backend("auto", CPU, torch.float32, features={"softcap"})


def test_a_kernel_refuses_a_variant_instead_of_ignoring_it() -> None:
    model, row = random_model("llama"), random_row(LAYOUTS[0])
    with use_shared_prefix(model), pytest.raises(ValueError, match="sdpa does not compute attention with softcap"):
        model(input_ids=row.ids, shared_prefix=row.layout, softcap=30.0)
    with use_shared_prefix(model), pytest.raises(ValueError, match="a window of 7 tokens, and its mask has none"):
        model(input_ids=row.ids, shared_prefix=row.layout, sliding_window=7)


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


def test_heads_that_flash_kernels_do_not_take_are_left_to_flex(ampere: pytest.MonkeyPatch) -> None:
    for width in (0, 64, 128, 192, 256):
        assert choose_backend("auto", CUDA, torch.bfloat16, head_width=width)[0] == "flash"
    for width in (512, 100):  # Gemma 4's full attention; none of the kernels' sizes
        backend, reason = choose_backend("auto", CUDA, torch.bfloat16, head_width=width)
        assert (backend, f"this model has {width}" in reason) == ("flex", True)
        with pytest.raises(UserError, match=r"attention=flash: its kernels take heads of 8, 16, \.\.\. 256 features"):
            choose_backend("flash", CUDA, torch.bfloat16, head_width=width, here=False)


def test_an_old_gpu_gets_what_it_can_compile(ampere: pytest.MonkeyPatch) -> None:
    ampere.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    for dtype in (torch.float16, torch.float32):
        assert choose_backend("auto", CUDA, dtype)[0] == "flex"
    assert "Some Card is older" in choose_backend("auto", CUDA, torch.float16)[1]
    backend, reason = choose_backend("auto", CUDA, torch.bfloat16)
    assert (backend, "compiles no bfloat16 for Some Card" in reason) == ("sdpa", True)
    assert choose_backend("auto", CUDA, torch.bfloat16, here=False)[0] == "flash"


def test_norms_that_widen_queries_and_keys_change_no_dtype() -> None:
    """On CUDA autocast computes the layer norms of Persimmon's queries and keys in float32."""
    layout = RowLayout((SharedPrefixLayout(5, (3, 2)),))
    states = torch.randn(3, 1, 2, layout.total_length, 8).bfloat16()
    query, key, value = states
    for backend in ("sdpa", "dense"):
        narrow, _ = shared_prefix_attention(nn.Identity(), *states, None, backend=backend, shared_prefix=layout)
        wide, _ = shared_prefix_attention(
            nn.Identity(), query.float(), key.float(), value, None, backend=backend, shared_prefix=layout
        )
        assert torch.equal(wide, narrow)


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
