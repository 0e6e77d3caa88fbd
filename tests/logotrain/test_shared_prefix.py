"""The shared-prefix row equals separate rows: values, gradients, and what each token can see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain.collate import SharedPrefixRow, collate
from logotrain.logprobs import response_logprobs, token_logprobs
from logotrain.objective import logo
from logotrain.recipe import PositionSettings
from logotrain.shared_prefix import SharedPrefixLayout, check_config, use_shared_prefix

Samples = Callable[..., PreferenceSample]


@pytest.fixture
def exact_model(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaForCausalLM]:
    """The tiny model in float64 throughout: transformers' RMSNorm goes through float32, which would hide errors."""

    def forward(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)
    return tiny_model.double()


def row_of(sample: PreferenceSample, mode: str = "mixed") -> SharedPrefixRow:
    return collate(sample, settings=PositionSettings(mode=mode), target_length=2000, seed=0, epoch=0)


def separate_logprobs(model: LlamaForCausalLM, row: SharedPrefixRow) -> list[Tensor]:
    """Each response in a row of its own, all logits, with a causal mask written out: an independent computation."""
    layout = row.layout
    result = []
    for start, length in zip(layout.response_starts, layout.response_lengths, strict=True):
        keep = [*range(layout.prompt_length), *range(start, start + length)]
        causal = torch.ones(len(keep), len(keep), dtype=torch.bool).tril()[None, None]
        ids, positions = row.input_ids[:, keep], row.position_ids[:, keep]
        logits = model(input_ids=ids, position_ids=positions, attention_mask=causal, use_cache=False).logits[0]
        everything = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        result.append(everything[layout.prompt_length - 1 :])
    return result


def loss_of(logprobs: list[Tensor]) -> Tensor:
    chosen, *rejected = (values.mean() for values in logprobs)
    return logo(chosen[None], torch.stack(rejected)[None], beta=10, gamma=3, sft_weight=0.1).loss[0]


def gradients(model: LlamaForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["natural", "continuous", "sparse"])
@pytest.mark.parametrize("responses", [(4, 6), (1, 5, 3), (7, 1, 1, 2), (3, 9, 2, 5, 4)])
def test_gradients_of_every_parameter_equal_separate_rows(
    exact_model: LlamaForCausalLM, make_sample: Samples, responses: tuple[int, ...], mode: str, recompute: bool
) -> None:
    row = row_of(make_sample("a", responses=responses), mode)
    expected_logprobs = separate_logprobs(exact_model, row)
    expected_loss = loss_of(expected_logprobs)
    expected = gradients(exact_model, expected_loss)

    exact_model.train()
    if recompute:
        exact_model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    calls: list[str] = []
    exact_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append("mlp"))
    with use_shared_prefix(exact_model):
        logprobs = response_logprobs(exact_model, row)
        loss = loss_of(logprobs)
        found = gradients(exact_model, loss)

    assert len(calls) == (2 if recompute else 1)
    for ours, theirs in zip(logprobs, expected_logprobs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() / gradient.norm() < 1e-7, name


def test_a_row_longer_than_the_kernels_blocks(exact_model: LlamaForCausalLM, make_sample: Samples) -> None:
    """Attention kernels work in blocks of up to 512: short rows would not cross their borders."""
    row = row_of(make_sample("long", responses=(70, 3, 130), chunks=6, chunk_length=200))
    expected_logprobs = separate_logprobs(exact_model, row)
    expected = gradients(exact_model, loss_of(expected_logprobs))
    with use_shared_prefix(exact_model):
        logprobs = response_logprobs(exact_model, row)
        found = gradients(exact_model, loss_of(logprobs))
    for ours, theirs in zip(logprobs, expected_logprobs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() / gradient.norm() < 1e-7, name


def test_recomputation_of_one_row_after_another_row_ran(exact_model: LlamaForCausalLM, make_sample: Samples) -> None:
    """Layouts must not be mixed up when two rows are in flight, as in pipelined or deferred backward passes."""
    rows = [row_of(make_sample("a", responses=(4, 6))), row_of(make_sample("b", responses=(2, 3, 5), chunks=4))]
    expected = gradients(exact_model, sum(loss_of(separate_logprobs(exact_model, row)) for row in rows))
    exact_model.train()
    exact_model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    with use_shared_prefix(exact_model):
        found = gradients(exact_model, sum(loss_of(response_logprobs(exact_model, row)) for row in rows))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() / gradient.norm() < 1e-7, name


def hidden_states(model: LlamaForCausalLM, row: SharedPrefixRow, ids: Tensor) -> Tensor:
    with use_shared_prefix(model), torch.no_grad():
        output = model.model(input_ids=ids, position_ids=row.position_ids, use_cache=False, shared_prefix=row.layout)
    return output.last_hidden_state[0]


def changed(model: LlamaForCausalLM, row: SharedPrefixRow, at: int) -> Tensor:
    """Bool [N]: which hidden states change when token ``at`` does."""
    ids = row.input_ids.clone()
    ids[0, at] = (ids[0, at] + 1) % model.config.vocab_size
    before, after = hidden_states(model, row, row.input_ids), hidden_states(model, row, ids)
    return (before != after).any(dim=1)


@pytest.mark.parametrize("mode", ["natural", "continuous", "sparse"])
def test_a_token_reaches_what_follows_it_and_nothing_else(
    tiny_model: LlamaForCausalLM, make_sample: Samples, mode: str
) -> None:
    row = row_of(make_sample("leak", responses=(5, 4, 6)), mode)
    layout = row.layout
    last_start, last_length = layout.response_starts[-1], layout.response_lengths[-1]

    # The first token of the row reaches everything, across every gap in the positions.
    assert changed(tiny_model, row, 0).all()
    # A prompt token does not reach the prompt before it.
    assert not changed(tiny_model, row, 9)[:9].any()
    assert changed(tiny_model, row, 9)[9:].all()
    for start, length in zip(layout.response_starts, layout.response_lengths, strict=True):
        for at in range(start, start + length):
            reached = changed(tiny_model, row, at)
            assert reached[at : start + length].all()
            assert not reached[:at].any()
            assert not reached[start + length :].any()
    assert last_start + last_length == layout.total_length


def test_a_plain_call_raises_instead_of_attending_wrongly(tiny_model: LlamaForCausalLM, make_sample: Samples) -> None:
    row = row_of(make_sample("a"))
    ids = row.input_ids
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    with use_shared_prefix(tiny_model):
        with pytest.raises(ValueError, match="shared_prefix=layout"):
            tiny_model(input_ids=ids)
        with pytest.raises(ValueError, match="mask"):
            tiny_model(input_ids=ids, attention_mask=torch.ones_like(ids), shared_prefix=row.layout)
        with pytest.raises(ValueError, match="mask"):
            tiny_model(input_ids=ids, attention_mask=causal, shared_prefix=row.layout)
        with pytest.raises(ValueError, match="one row"):
            tiny_model(input_ids=ids[:, :-1], shared_prefix=row.layout)
        with pytest.raises(ValueError, match="one row"):
            tiny_model(input_ids=ids.repeat(2, 1), shared_prefix=row.layout)
        with pytest.raises(ValueError, match="softcap"):
            tiny_model(input_ids=ids, shared_prefix=row.layout, softcap=30.0)
    # After the block the model is its old self.
    assert tiny_model(input_ids=ids).logits.shape[1] == ids.shape[1]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(sliding_window=64), "sliding_window=64"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1, num_hidden_layers=2),
            "sliding_attention",
        ),
        (LlamaConfig(attention_dropout=0.1), "attention_dropout"),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "'dynamic'"),
        (
            LlamaConfig(
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "short_factor": [1.0] * 64,
                    "long_factor": [1.0] * 64,
                    "original_max_position_embeddings": 1024,
                }
            ),
            "'longrope'",
        ),
    ],
)
def test_refuses_attention_and_rope_that_cannot_be_shared(config: LlamaConfig, what: str) -> None:
    with pytest.raises(UserError, match=what):
        check_config(config)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        MistralConfig(sliding_window=None),
        Qwen2Config(),
        LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
    ],
)
def test_accepts_full_attention(config: LlamaConfig) -> None:
    check_config(config)


@pytest.mark.parametrize(("prompt", "responses"), [(0, (3,)), (5, ()), (5, (3, 0))])
def test_layout_needs_a_prompt_and_responses(prompt: int, responses: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        SharedPrefixLayout(prompt, responses)


def test_token_logprobs_chunked_equal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 3 rows a chunk, values and gradients equal log_softmax over everything."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 50, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (11,), generator=generator)
    weights = torch.randn(11, generator=generator, dtype=torch.float64)
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(11), targets]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    monkeypatch.setattr("logotrain.logprobs._CHUNK_ELEMENTS", 150)
    found = token_logprobs(logits, targets)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_token_logprobs_of_bfloat16_logits_are_float32() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = token_logprobs(logits, torch.tensor([1, 2, 3, 4]))
    assert found.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(4), torch.tensor([1, 2, 3, 4])]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
