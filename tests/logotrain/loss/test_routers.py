"""The router loss is the model's own over the tokens of each sample, and how evenly experts are used is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.loss.logprobs import LogprobModel
from logotrain.loss.router_weight import router_weight
from logotrain.loss.routers import RouterRecord
from logotrain.model.recompute import checkpoint_layers
from logotrain.recipe.objectives import RowPart
from logotrain.recipe.settings import PositionSettings, Recompute, TrainRecipe
from logotrain.rows.collate import Collator, Row
from logotrain.run import run
from tests import tiny_models
from tests.distributed.gradients import keep_first_gradients

Samples = Callable[..., PreferenceSample]
Recipes = Callable[..., TrainRecipe]

SIZES = {**tiny_models.SIZES, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**SIZES, **LOCAL, "sliding_window": None},
    "qwen3_moe": {**SIZES, "num_experts": 4, "decoder_sparse_step": 2},  # one layer has no experts
    "gpt_oss": {**SIZES, **LOCAL, "layer_types": ["full_attention", "full_attention"]},
    "olmoe": {**SIZES, "num_experts": 4},
    "granitemoe": {**SIZES, **LOCAL},
}
"""Models that define a router loss."""
if version("transformers").startswith("5.16."):  # it defines the loss, but hands out no logits
    del MIXTURES["granitemoe"]


def mixture(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**MIXTURES[kind], **fields})
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def two_samples(make_sample: Samples, **options: Any) -> Row:
    """A row of two samples with padding."""
    draws = [(0, make_sample("a")), (0, make_sample("b", responses=(2, 7), chunks=2))]
    return Collator(PositionSettings(), 256, seed=0, pad_to_multiple=16, **options)(draws)


def inputs_of(row: Row, indices: list[int]) -> dict[str, Any]:
    ids = row.input_ids[:, indices]
    return {"input_ids": ids, "position_ids": row.position_ids[:, indices], "attention_mask": torch.ones_like(ids)}


def own_losses(model: PreTrainedModel, row: Row) -> list[Tensor]:
    """Of each sample: transformers' function on the logits of its prompt and of its responses."""
    found = []
    module = import_module(type(model).__module__)
    config = model.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    for start, sample in zip(row.layout.sample_starts, row.layout.samples, strict=True):
        prompt = list(range(start, start + sample.prompt_length))
        passes = []
        for first, length in zip(sample.response_starts, sample.response_lengths, strict=True):
            indices = [*prompt, *range(start + first, start + first + length)]
            logits = model(**inputs_of(row, indices), output_router_logits=True).router_logits
            passes.append([layer[len(prompt) if passes else 0 :] for layer in logits])
        layers = tuple(torch.cat(parts) for parts in zip(*passes, strict=True))
        found.append(module.load_balancing_loss_func(layers, experts, config.num_experts_per_tok))
    return found


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", MIXTURES)
def test_loss_is_the_models_own_over_the_tokens_of_each_sample(kind: str, shared: bool, make_sample: Samples) -> None:
    """Values and gradients, in float64 (the models sum in float32). Padding does not count, a prompt counts once."""
    model, row, record = mixture(kind), two_samples(make_sample), RouterRecord(loss=True)
    assert row.layout.padding
    scorer = LogprobModel(model)
    if shared:
        with use_shared_prefix(model):
            scorer(row, record)
    else:
        scorer(row, record)
    expected = own_losses(model, row)
    assert len(record.losses) == len(expected) == 2
    weights = torch.tensor([0.3, 1.7])
    torch.testing.assert_close(torch.stack(record.losses), torch.stack(expected), rtol=1e-6, atol=1e-6)
    found = gradients(model, (torch.stack(record.losses) * weights).sum())
    for ours, theirs in zip(found, gradients(model, (torch.stack(expected) * weights).sum()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert sum(float(gradient.norm()) for gradient in found) > 0


@pytest.mark.parametrize("kind", MIXTURES)
def test_loss_of_one_response_is_that_of_the_models_output(kind: str, make_sample: Samples) -> None:
    model, record = mixture(kind), RouterRecord(loss=True)
    row = Collator(PositionSettings(), 256, seed=0, parts=(RowPart(rejected=False),))([(0, make_sample("a"))])
    with use_shared_prefix(model), torch.no_grad():
        LogprobModel(model)(row, record)
    output = model(**inputs_of(row, list(range(row.layout.total_length))), output_router_logits=True)
    torch.testing.assert_close(record.losses[0], output.aux_loss.detach(), rtol=1e-6, atol=1e-6)


def test_log_probabilities_stay_the_same(make_sample: Samples) -> None:
    model, row = mixture("mixtral"), two_samples(make_sample)
    with torch.no_grad():
        assert torch.equal(LogprobModel(model)(row, RouterRecord(loss=True)), LogprobModel(model)(row))


@pytest.mark.parametrize("shared", [True, False])
def test_largest_share_of_one_expert(shared: bool, make_sample: Samples) -> None:
    """From the logits of each sample's tokens, by hand; also without the loss."""
    model, row = mixture("mixtral"), two_samples(make_sample)
    records = [RouterRecord(loss=True), RouterRecord(loss=False)]
    with torch.no_grad():
        for record in records:
            if shared:
                with use_shared_prefix(model):
                    LogprobModel(model)(row, record)
            else:
                LogprobModel(model)(row, record)
        expected = []
        for start, sample in zip(row.layout.sample_starts, row.layout.samples, strict=True):
            counts = torch.zeros(2, 4)
            for number, (first, length) in enumerate(zip(sample.response_starts, sample.response_lengths, strict=True)):
                end = sample.prompt_length
                indices = [*range(start, start + end), *range(start + first, start + first + length)]
                logits = model(**inputs_of(row, indices), output_router_logits=True).router_logits
                for layer, values in enumerate(logits):
                    for token in values[end if number else 0 :]:
                        counts[layer, token.topk(2).indices] += 1
            expected.append(float((counts / counts.sum(1, keepdim=True)).max()))
    assert records[0].shares == records[1].shares == pytest.approx(expected)
    assert records[1].losses == []


def test_one_expert_that_gets_everything_is_seen(make_sample: Samples) -> None:
    model, record = mixture("mixtral", num_experts_per_tok=1), RouterRecord(loss=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.zero_()  # all logits are equal then, and the first expert is taken
        LogprobModel(model)(two_samples(make_sample), record)
    assert record.shares == [1, 1]


def test_experts_that_sigmoids_and_groups_choose_are_counted(make_sample: Samples) -> None:
    """DeepSeek-V3 has no router loss, and its choices are not the largest logits."""
    fields = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 6}
    experts = {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    config = AutoConfig.for_model("deepseek_v3", **{**SIZES, **fields, **experts, "num_key_value_heads": 4})
    model, record = AutoModelForCausalLM.from_config(config).eval(), RouterRecord(loss=False)
    model.model.layers[1].mlp.gate.e_score_correction_bias[2:] = 100  # the second group is always taken
    with torch.no_grad():
        LogprobModel(model)(two_samples(make_sample), record)
    assert record.shares == [0.5, 0.5]


def test_dense_models_have_neither(tiny_model: PreTrainedModel, make_sample: Samples) -> None:
    record = RouterRecord(loss=False)
    with torch.no_grad():
        LogprobModel(tiny_model)(two_samples(make_sample), record)
    assert (record.losses, record.shares) == ([], [])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_gradients_are_equal_when_layers_are_computed_again(recompute: Recompute, make_sample: Samples) -> None:
    row, found = two_samples(make_sample), []
    for how in ("none", recompute):
        model, record = mixture("mixtral"), RouterRecord(loss=True)
        scorer = LogprobModel(model)
        checkpoint_layers(scorer, how)
        with use_shared_prefix(model):
            logprobs = scorer(row, record)
            found.append(gradients(model, torch.stack(record.losses).sum() + logprobs.mean()))
        assert len(record.shares) == 2
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


# The setting ----------------------------------------------------------------------------------------------------------


CPU = torch.device("cpu")


def test_auto_takes_the_weight_of_the_config_where_routers_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    model = LogprobModel(mixture("mixtral", router_aux_loss_coef=0.02))
    assert router_weight("auto", model, CPU, where="m") == 0.02
    assert "router loss: 0.02 times the model's own (its config)" in capsys.readouterr().err
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".gate." not in name
    assert router_weight("auto", model, CPU, where="m") is None
    assert "router loss: none (the routers are frozen)" in capsys.readouterr().err
    assert router_weight(0.5, model, CPU, where="m") == 0.5
    assert router_weight(False, model, CPU, where="m") is None


def llama4() -> PreTrainedModel:
    fields = {"intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **{**SIZES, **fields}))


def doge() -> PreTrainedModel:
    """Without experts, and its forward speaks of router logits all the same."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **{**SIZES, "is_moe": False}))


@pytest.mark.parametrize("make", [llama4, doge])
def test_a_weight_in_the_config_of_a_model_without_the_loss_is_told(
    make: Callable[[], PreTrainedModel], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LogprobModel(make())
    monkeypatch.setattr("logotrain.loss.router_weight._trains_routers", lambda _: True)
    assert router_weight("auto", model, CPU, where="m") is None
    said = " ".join(capsys.readouterr().err.split())
    kind = type(model.causal_lm).__name__
    assert f"router loss: none (its config has a weight, 0.001, but {kind} computes no router loss)" in said
    with pytest.raises(UserError, match=rf"m: router_loss=0\.1: {kind} computes no router loss"):
        router_weight(0.1, model, CPU, where="m")


def test_a_weight_for_a_dense_model_is_refused(tiny_model: PreTrainedModel) -> None:
    model = LogprobModel(tiny_model)
    assert router_weight("auto", model, CPU, where="m") is None
    with pytest.raises(UserError, match=r"m: router_loss=0\.1: LlamaForCausalLM computes no router loss"):
        router_weight(0.1, model, CPU, where="m")


@pytest.mark.parametrize("value", [True, -1, "own"])
def test_settings_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="router_loss"):
        TrainRecipe(model="m", router_loss=value)


def test_settings_that_mean_something() -> None:
    assert [TrainRecipe(model="m", router_loss=v).router_loss for v in ("auto", False, 0, 0.01, 1)] == [
        "auto",
        False,
        False,
        0.01,
        1.0,
    ]


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixtral_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path / "mixtral"
    mixture("mixtral", router_aux_loss_coef=0.25).float().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_run_minimises_and_logs_the_router_loss(make_recipe: Recipes, mixtral_dir: Path, tmp_path: Path) -> None:
    """Its first gradient is that of the loss without it, and of the weighted router loss of the model."""
    settings = {"model": str(mixtral_dir), "tuning": "full", "epochs": 1, "samples_per_step": 6}
    lines, found = {}, {}
    for name, value in {"auto": "auto", "double": 0.5, "none": False}.items():
        with keep_first_gradients(tmp_path / f"{name}.gradients"):
            run(make_recipe(**settings, router_loss=value), tmp_path / name)
        (lines[name],) = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = load_file(tmp_path / f"{name}.gradients")
    assert lines["auto"]["router_loss"] == lines["double"]["router_loss"] > 2  # two experts a token: 2 is even
    assert 0.25 <= lines["auto"]["expert_share"] == lines["none"]["expert_share"] <= 0.5
    assert "router_loss" not in lines["none"]
    weighted = 0.25 * lines["auto"]["router_loss"]
    assert lines["auto"]["loss"] == pytest.approx(lines["none"]["loss"] + weighted, rel=1e-6)
    assert lines["double"]["loss"] == pytest.approx(lines["none"]["loss"] + 2 * weighted, rel=1e-6)
    for key, none in found["none"].items():
        once, twice = (found[name][key] - none for name in ("auto", "double"))
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("other", [{"row_tokens": 200}, {"sharing": "none"}, {"recompute": "full"}])
def test_rows_do_not_change_the_router_loss(
    other: dict[str, Any], make_recipe: Recipes, mixtral_dir: Path, tmp_path: Path
) -> None:
    settings = {"model": str(mixtral_dir), "tuning": "full", "epochs": 1, "optimizer.eps": 1e-3}
    lines = []
    for name, more in {"plain": {}, "other": other}.items():
        run(make_recipe(**settings, **more), tmp_path / name)
        lines.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    for ours, theirs in zip(*lines, strict=True):
        for key in ("loss", "router_loss", "expert_share", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)


def test_lora_with_frozen_routers_has_no_router_loss(
    make_recipe: Recipes, mixtral_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe(model=str(mixtral_dir), epochs=1), tmp_path / "run")
    assert "router loss: none (the routers are frozen)" in capsys.readouterr().err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "router_loss" not in line
    assert line["expert_share"] >= 0.25
