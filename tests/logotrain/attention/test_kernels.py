"""The three back ends against attention computed from a mask that is written out token by token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from torch.nn.attention.flex_attention import create_block_mask

from logotrain.attention import kernels
from logotrain.attention.kernels import (
    Sequences,
    block_mask,
    dense_attention,
    flash_attention,
    flex_row_attention,
    mask_mod,
    sdpa_attention,
)
from logotrain.attention.variants import Reach, Variant
from logotrain.rows.layout import RowLayout, SharedPrefixLayout

CPU = torch.device("cpu")

LAYOUTS = [
    RowLayout((SharedPrefixLayout(9, (4, 6)),)),
    RowLayout((SharedPrefixLayout(1, (1,)),), padding=1),
    RowLayout(
        (SharedPrefixLayout(7, (1, 5, 3)), SharedPrefixLayout(2, (8,)), SharedPrefixLayout(3, (2, 2))), padding=5
    ),
    RowLayout((SharedPrefixLayout(150, (70, 33)), SharedPrefixLayout(20, (5, 140, 3))), padding=91),  # several blocks
]


def random_layout(seed: int) -> RowLayout:
    rng = np.random.default_rng(seed)

    def lengths(count: int) -> tuple[int, ...]:
        return tuple(int(length) for length in rng.integers(1, 90, count))

    samples = [SharedPrefixLayout(*lengths(1), lengths(int(rng.integers(1, 5)))) for _ in range(rng.integers(1, 4))]
    return RowLayout(tuple(samples), padding=int(rng.integers(0, 200)))


def definition(layout: RowLayout) -> Tensor:
    """Bool [N, N], token by token: may the token of the row attend the one of the column?"""
    tokens: list[tuple[object, object]] = []  # (sample, response); response None is the prompt
    for number, sample in enumerate(layout.samples):
        tokens += [(number, None)] * sample.prompt_length
        for response, length in enumerate(sample.response_lengths):
            tokens += [(number, response)] * length
    tokens += [("padding", None)] * layout.padding
    return torch.tensor(
        [
            [
                before <= at and there == sample and part in (None, response)
                for before, (there, part) in enumerate(tokens)
            ]
            for at, (sample, response) in enumerate(tokens)
        ]
    )


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """[H, Q, D], heads written out."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, dim=0), value.repeat_interleave(group, dim=0)
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ value


def reference_varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None, window: int | None
) -> Tensor:
    """What a variable-length kernel promises: [T, H, D], each pair of sequences alone, last query sees the last key."""
    outputs = []
    assert scaling is not None
    ends = (sequences.query_ends, sequences.key_ends)
    lengths = list(zip(*(tensor.diff().tolist() for tensor in ends), strict=True))
    assert sequences.max_query == max(queries for queries, _ in lengths)
    assert sequences.max_key == max(keys for _, keys in lengths)
    at_query = at_key = 0
    for queries, keys in lengths:
        q = query[at_query : at_query + queries].transpose(0, 1)
        k, v = (states[at_key : at_key + keys].transpose(0, 1) for states in (key, value))
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        if window is not None:
            mask &= torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries - window + 1)
        outputs.append(masked_attention(q, k, v, mask, scaling).transpose(0, 1))
        at_query, at_key = at_query + queries, at_key + keys
    assert (at_query, at_key) == (query.shape[0], key.shape[0])
    return torch.cat(outputs)


@pytest.fixture(scope="module")
def torch_kernel_on_cpu() -> None:
    """Torch's own variable-length operator has no CPU kernel: give it the reference as one."""

    @torch_varlen._varlen_attn.register_kernel("cpu")
    def _(query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        cu_seq_q, cu_seq_k, max_q, max_k, is_causal, scale, window = args[:7]
        before, after = window
        assert after == 0
        assert is_causal == (before == -1)  # else the window says it
        sequences, keys_seen = Sequences(cu_seq_q, cu_seq_k, max_q, max_k), None if before == -1 else before + 1
        output = reference_varlen(query, key, value, sequences, scale, keys_seen)
        return output, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)

    @torch_varlen._varlen_attn_backward.register_kernel("cpu")
    def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        _out, _lse, cu_seq_q, cu_seq_k, max_q, max_k, _causal, _rng, scale, (before, _) = args
        sequences, keys_seen = Sequences(cu_seq_q, cu_seq_k, max_q, max_k), None if before == -1 else before + 1

        def gradients() -> tuple[Tensor, ...]:
            inputs = [states.detach().requires_grad_() for states in (query, key, value)]
            output = reference_varlen(*inputs, sequences, scale, keys_seen)
            return torch.autograd.grad(output, inputs, grad)

        with ThreadPoolExecutor(1) as thread:  # inside an operator, autograd is off for the thread it runs in
            on_query, on_key, on_value = thread.submit(gradients).result()
        return on_query, on_key, on_value


@pytest.fixture
def flash_attn_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of flash-attn's name with the reference as its kernel, under the names of its own arguments."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
    ) -> Tensor:
        assert (dropout_p, causal, softcap) == (0.0, True, 0.0)
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        before, after = window_size
        assert after == 0
        sequences = Sequences(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return reference_varlen(q, k, v, sequences, softmax_scale, None if before == -1 else before + 1)

    package = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", package)


def states(layout: RowLayout) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(layout.total_length)
    for heads in (6, 2, 2):
        yield torch.randn(heads, layout.total_length, 8, generator=generator, dtype=torch.float64, requires_grad=True)


def values_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("layout", [*LAYOUTS, random_layout(0), random_layout(1)], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "flash", "flash with torch's operator", "flash with flash-attn"])
@pytest.mark.usefixtures("torch_kernel_on_cpu", "flash_attn_on_cpu")
def test_values_and_gradients_are_the_definitions(backend: str, layout: RowLayout) -> None:
    inputs = list(states(layout))
    mask, scaling = definition(layout), 0.3
    weights = torch.randn(6, layout.total_length, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return KERNELS[backend](query, key, value, layout, scaling)

    expected = values_and_gradients(lambda q, k, v: masked_attention(q, k, v, mask, scaling), inputs, weights)
    for found, wanted in zip(values_and_gradients(ours, inputs, weights), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "flash", "dense"])
def test_values_may_be_narrower_than_keys(backend: str) -> None:
    layout = LAYOUTS[2]
    query, key, value = states(layout)
    value = value[:, :, :5]
    kernel = {
        "sdpa": sdpa_attention,
        "flash": partial(flash_attention, varlen=reference_varlen),
        "dense": dense_attention,
    }
    found = kernel[backend](query, key, value, layout, 0.3)
    torch.testing.assert_close(found, masked_attention(query, key, value, definition(layout), 0.3))


def in_reach(layout: RowLayout, reach: Reach) -> Tensor:
    """Bool [N, N], by the places of tokens in the sequence of a prompt and one response, written out."""
    places: list[int] = []
    for sample in layout.samples:
        places += range(sample.prompt_length)
        for length in sample.response_lengths:
            places += range(sample.prompt_length, sample.prompt_length + length)
    places += range(layout.padding)

    def sees(at: int, before: int) -> bool:
        if reach.kind == "sliding":
            return at - before < reach.size
        return reach.kind == "full" or at // reach.size == before // reach.size

    return torch.tensor([[sees(at, before) for before in places] for at in places])


def varied_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, mask: Tensor, scaling: float, variant: Variant
) -> Tensor:
    """[H, N, D], scores and softmax written out."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, dim=0), value.repeat_interleave(group, dim=0)
    scores = query @ key.transpose(1, 2) * scaling
    if variant.softcap is not None:
        scores = variant.softcap * (scores / variant.softcap).tanh()
    weights = scores.exp() * mask
    total = weights.sum(-1, keepdim=True)
    if variant.sinks is not None:
        total = total + sinks.exp()[:, None, None]
    return weights / total @ value


FULL_REACH, WINDOW, CHUNKS = Reach(), Reach("sliding", 5), Reach("chunked", 6)
KERNELS: dict[str, Callable[..., Tensor]] = {
    "sdpa": sdpa_attention,
    "dense": dense_attention,
    "flash": partial(flash_attention, varlen=reference_varlen),
    "flash with torch's operator": partial(flash_attention, varlen=kernels._torch_varlen),
    "flash with flash-attn": partial(flash_attention, varlen=kernels._flash_attn_varlen),
}
CASES = [
    *(
        (name, reach, None, sinks)
        for name in ("sdpa", "dense")
        for reach in (FULL_REACH, WINDOW, CHUNKS)
        for sinks in (False, True)
    ),
    *((name, WINDOW, None, False) for name in ("flash", "flash with torch's operator", "flash with flash-attn")),
    *(("dense", reach, 0.7, sinks) for reach in (FULL_REACH, WINDOW) for sinks in (False, True)),
]


@pytest.mark.parametrize("layout", [*LAYOUTS[:3], random_layout(0)], ids=str)
@pytest.mark.parametrize(("name", "reach", "softcap", "sinks"), CASES)
@pytest.mark.usefixtures("torch_kernel_on_cpu", "flash_attn_on_cpu")
def test_values_and_gradients_of_variants_are_the_definitions(
    name: str, reach: Reach, softcap: float | None, sinks: bool, layout: RowLayout
) -> None:
    """Of queries, keys, values and sinks. What padding gets does not matter."""
    drawn = torch.linspace(-2, 2, 6, dtype=torch.float64, requires_grad=True)
    inputs = [*states(layout), drawn]
    mask = definition(layout) & in_reach(layout, reach)
    weights = torch.randn(6, layout.total_length, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[:, layout.used_length :] = 0

    def variant(scores: Tensor) -> Variant:
        return Variant(reach, softcap, scores if sinks else None)

    def ours(query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        return KERNELS[name](query, key, value, layout, 0.3, variant(scores)) + 0 * scores.sum()

    def theirs(query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        return varied_attention(query, key, value, scores, mask, 0.3, variant(scores)) + 0 * scores.sum()

    found, expected = (values_and_gradients(function, inputs, weights) for function in (ours, theirs))
    torch.testing.assert_close(found[0][:, : layout.used_length], expected[0][:, : layout.used_length])
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("reach", [FULL_REACH, WINDOW, CHUNKS])
def test_flex_values_of_variants_on_cpu(reach: Reach, sinks: bool, softcap: float | None) -> None:
    layout = LAYOUTS[3]
    mask = definition(layout) & in_reach(layout, reach)
    scores = torch.linspace(-2, 2, 6)
    variant = Variant(reach, softcap, scores if sinks else None)
    with torch.no_grad():
        query, key, value = (drawn.detach().float() for drawn in states(layout))
        found = flex_row_attention(query, key, value, layout, 0.3, variant)
        expected = varied_attention(query, key, value, scores, mask, 0.3, variant)
    torch.testing.assert_close(found[:, : layout.used_length], expected[:, : layout.used_length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [*LAYOUTS, *map(random_layout, range(4))], ids=str)
def test_flex_mask_is_the_definition(layout: RowLayout) -> None:
    """Token by token, and block by block as torch's own builder finds the blocks."""
    length = layout.total_length
    attends = mask_mod(layout, CPU)
    index = torch.arange(length)
    nothing = torch.zeros(())
    assert attends(nothing, nothing, index[:, None], index[None, :]).equal(definition(layout))

    found, expected = block_mask(layout, CPU), create_block_mask(attends, None, None, length, length, "cpu")
    assert found.shape == expected.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert getattr(found, name).equal(getattr(expected, name)), name
    assert found.to_dense().equal(expected.to_dense())


def test_flex_mask_skips_other_samples_and_knows_whole_blocks() -> None:
    layout = RowLayout((SharedPrefixLayout(512, (256, 256)), SharedPrefixLayout(512, (512,))))
    needed = block_mask(layout, CPU)
    # Causal prompts of 4 blocks: 10 each; responses of 2, 2, 4 blocks: 11 each for two, 4 * 4 + 10 for the last.
    assert (needed.kv_num_blocks + needed.full_kv_num_blocks).sum() == 10 + 2 * (2 * 4 + 3) + 10 + (4 * 4 + 10)
    assert needed.kv_num_blocks.sum() == 4 + 2 + 2 + 4 + 4  # the diagonal


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_flex_values_on_cpu(layout: RowLayout) -> None:
    with torch.no_grad():
        query, key, value = (drawn.detach().float() for drawn in states(layout))
        found = flex_row_attention(query, key, value, layout, 0.3)
        expected = masked_attention(query, key, value, definition(layout), 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("layout", [*LAYOUTS, *map(random_layout, range(4))], ids=str)
@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (flash_attention, torch.bfloat16),
        (flash_attention, torch.float16),
        (flex_row_attention, torch.bfloat16),
        (flex_row_attention, torch.float32),
        (sdpa_attention, torch.bfloat16),
        (sdpa_attention, torch.float32),
    ],
)
def test_kernels_on_a_gpu(function: Callable[..., Tensor], dtype: torch.dtype, layout: RowLayout) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(heads, layout.total_length, 64) for heads in (6, 2, 2, 6)]
    *inputs, weights = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes)
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    mask = definition(layout).cuda()
    expected = values_and_gradients(lambda q, k, v: masked_attention(q, k, v, mask, 0.125), exact, weights.double())
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found = values_and_gradients(lambda q, k, v: function(q, k, v, layout, 0.125), inputs, weights)
    tolerance = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}[dtype]  # float32 may run as TF32
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("layout", [LAYOUTS[3], random_layout(1)], ids=str)
@pytest.mark.parametrize(
    ("function", "variant"),
    [
        (flash_attention, Variant(Reach("sliding", 40))),
        *(
            (flex_row_attention, Variant(reach, softcap))
            for reach in (FULL_REACH, Reach("sliding", 40), Reach("chunked", 48))
            for softcap in (None, 2.0)
        ),
        *((sdpa_attention, Variant(reach)) for reach in (Reach("sliding", 40), Reach("chunked", 48))),
    ],
)
@pytest.mark.parametrize("sinks", [False, True])
def test_variants_on_a_gpu(function: Callable[..., Tensor], variant: Variant, sinks: bool, layout: RowLayout) -> None:
    """In bfloat16 against the definition in float64; the sinks' gradients too."""
    if sinks and function is flash_attention:
        pytest.skip("flash computes no sinks")
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(heads, layout.total_length, 64) for heads in (6, 2, 2, 6)]
    *states_, weights = (torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes)
    weights[:, layout.used_length :] = 0
    inputs = [*states_, torch.linspace(-2, 2, 6, device="cuda").bfloat16()]
    mask = (definition(layout) & in_reach(layout, variant.reach)).cuda()

    def with_sinks(scores: Tensor) -> Variant:
        return variant._replace(sinks=scores if sinks else None)

    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected = values_and_gradients(
        lambda q, k, v, s: varied_attention(q, k, v, s, mask, 0.125, with_sinks(s)) + 0 * s.sum(),
        exact,
        weights.double(),
    )
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found = values_and_gradients(
        lambda q, k, v, s: function(q, k, v, layout, 0.125, with_sinks(s)) + 0 * s.sum(), inputs, weights
    )
    used = layout.used_length
    assert (found[0][:, :used].double() - expected[0][:, :used]).norm() <= 2e-2 * expected[0][:, :used].norm()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours.double() - theirs).norm() <= 3e-2 * theirs.norm() + 1e-6
