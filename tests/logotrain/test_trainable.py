"""Which models are trained, which are refused and when, and that nothing random is left in those that are trained."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SeedOssConfig,
    Starcoder2Config,
    T5Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from logodata.common.errors import UserError
from logodata.models.loading import load_config
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.cli import main
from logotrain.data.loading import load_data
from logotrain.loss.logprobs import LogprobModel
from logotrain.model.loading import noise_settings
from logotrain.model.rope import scaled_config
from logotrain.parallel import World
from logotrain.recipe.settings import RopeSettings, TrainRecipe
from logotrain.run import run
from logotrain.trainable import _own_logprobs, _probe_row, check_weights, read_traits, trainable_config
from tests.data_sets import TIMES
from tests.tiny_models import SIZES

Recipes = Callable[..., TrainRecipe]
WITHOUT_GROUPS = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def of(cls: type[PreTrainedConfig], **fields: Any) -> PreTrainedConfig:
    return cls(**{**SIZES, **fields})


def opt(**fields: Any) -> PreTrainedConfig:
    return OPTConfig(**{**WITHOUT_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32, **fields})


NOISY: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, float], dict[str, float]]] = {
    "seed-oss": (lambda **noise: of(SeedOssConfig, **noise), {"attention_dropout": 0.1, "residual_dropout": 0.2}, {}),
    "opt": (opt, {"dropout": 0.2, "attention_dropout": 0.1, "layerdrop": 0.5}, {}),
    "starcoder2": (
        lambda **noise: of(Starcoder2Config, sliding_window=None, **noise),
        {"residual_dropout": 0.1, "embedding_dropout": 0.2},
        {},
    ),
    "mixtral": (lambda **noise: of(MixtralConfig, **EXPERTS, **noise), {"router_jitter_noise": 0.3}, {}),
    # Its router draws experts at random in training mode, and the jitter of the router is a threshold everywhere.
    "phimoe": (
        lambda **noise: of(PhimoeConfig, **EXPERTS, **noise),
        {"input_jitter_noise": 0.3},
        {"router_jitter_noise": 0.01},
    ),
    "gpt2": (
        lambda **noise: GPT2Config(**{**WITHOUT_GROUPS, "n_inner": 48, **noise}),
        {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        {"summary_first_dropout": 0.1},
    ),
}
"""How a config is made, the fields that are noise, and those that are named though they are none."""


@pytest.fixture
def make_model_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """``make_model_dir(config)``: a folder with its tokenizer, and weights of a fixed seed unless ``weights=False``."""

    def make(config: PreTrainedConfig, name: str, *, weights: bool = True) -> str:
        folder = tmp_path / name
        if weights:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
            model.save_pretrained(folder)
        config.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def losses(folder: Path) -> list[dict[str, float]]:
    """The log of a run, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("family", NOISY)
def test_a_noisy_model_trains_as_its_noiseless_twin(
    family: str,
    make_recipe: Recipes,
    make_model_dir: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full tuning, every weight, with recomputation, which must meet the values of the forward pass."""
    make, noise, named = NOISY[family]
    twins = {"noisy": noise, "quiet": dict.fromkeys(noise, 0.0)}
    logs = {}
    for twin, fields in twins.items():
        model = make_model_dir(make(**fields, **named), twin)
        recipe = make_recipe(
            model=model, tuning="full", recompute="full", objective={"name": "dpo"}, **{"optimizer.lr": 1e-2}
        )
        run(recipe, tmp_path / f"run-{twin}")
        logs[twin] = losses(tmp_path / f"run-{twin}")
        said = re.findall(r"(\w+)=([\d.]+)", next(iter(re.findall("one function: (.*)", said_by(capsys))), ""))
        expected = {name: value for name, value in {**fields, **named}.items() if value}
        assert {name: float(value) for name, value in said} == expected
    assert logs["noisy"] == logs["quiet"]
    assert logs["noisy"][0]["preference_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert logs["noisy"][0]["loss"] != logs["noisy"][-1]["loss"]


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_noise_of_any_name_is_off_if_it_heeds_the_mode(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_recipe(), tmp_path / "plain")
    plain = LlamaMLP.forward

    def smudged(self: nn.Module, hidden: Tensor) -> Tensor:
        return functional.dropout(plain(self, hidden), 0.4, self.training)

    monkeypatch.setattr(LlamaMLP, "forward", smudged)
    run(make_recipe(), tmp_path / "smudged")
    assert losses(tmp_path / "plain") == losses(tmp_path / "smudged")


def python_noise(hidden: Tensor) -> Tensor:
    return hidden * random.uniform(0.9, 1.1)


def numpy_noise(hidden: Tensor) -> Tensor:
    return hidden + float(np.random.standard_normal())  # noqa: NPY002


def rare_noise(hidden: Tensor) -> Tensor:
    return hidden * float(torch.rand(()) < 0.9)


def own_generator(hidden: Tensor, generator: torch.Generator = torch.Generator()) -> Tensor:  # noqa: B008
    return hidden + torch.rand((), generator=generator)


ALWAYS: list[Callable[[Tensor], Tensor]] = [
    lambda hidden: functional.dropout(hidden, 0.1),
    python_noise,
    numpy_noise,
    rare_noise,
    own_generator,
]


@pytest.mark.parametrize("noise", ALWAYS, ids=["dropout", "python", "numpy", "rare", "own generator"])
def test_noise_that_heeds_no_mode_is_refused(
    noise: Callable[[Tensor], Tensor], make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: noise(plain(self, hidden)))
    with pytest.raises(UserError, match="LlamaForCausalLM gives different results for the same row") as error:
        run(make_recipe(), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_random_numbers_that_change_nothing_are_no_noise(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaMLP.forward

    def drawing(self: nn.Module, hidden: Tensor) -> Tensor:
        torch.rand(())
        return plain(self, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", drawing)
    run(make_recipe(epochs=1), tmp_path / "run")


def test_looking_for_noise_leaves_generators_and_model_as_they_were(tiny_model: LlamaForCausalLM) -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    model = LogprobModel(tiny_model)
    with use_shared_prefix(tiny_model):
        check_weights(model, World(), "tiny")
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_noise_is_named_at_any_depth_and_by_module() -> None:
    class Smudge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob, self.scale, self.jitter = 0.25, 0.5, 0.0

    wrapper = LlavaConfig(text_config=LlamaConfig(**SIZES, attention_dropout=0.1))
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.config = wrapper
    model.model.layers[0].add_module("smudge", Smudge())
    model.model.layers[1].add_module("thin", nn.Dropout2d(0.3))
    model.model.layers[1].add_module("same", nn.Dropout(0.1))  # the config tells
    assert noise_settings(model) == {
        "text_config.attention_dropout": 0.1,
        "smudge.drop_prob": 0.25,
        "thin.p": 0.3,
    }


REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "bert": (BertConfig(**WITHOUT_GROUPS), "BertLMHeadModel lets tokens depend on later ones"),
    "t5": (T5Config(), "transformers has no causal language model for a T5Config"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_trained_is_refused_first(
    family: str,
    make_recipe: Recipes,
    make_model_dir: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a model without weights, before settings are asked for and before the data: run and plan say the same."""
    config, reason = REFUSED[family]
    folder = make_model_dir(config, "refused", weights=False)
    recipe = make_recipe(model=folder, recompute="auto")
    with pytest.raises(UserError, match=reason) as error:
        load_data(recipe)
    assert "\n" not in str(error.value)
    assert main(["plan", "--model", folder, "--card", "cpu"]) == 2
    assert re.search(reason, said_by(capsys))


def test_settings_that_a_model_does_not_take_are_refused(
    make_recipe: Recipes, make_model_dir: Callable[..., str]
) -> None:
    bloom = BloomConfig(vocab_size=269, hidden_size=32, n_layer=2, n_head=4, max_position_embeddings=256)
    folder = make_model_dir(bloom, "bloom", weights=False)
    with pytest.raises(UserError, match=r"takes no gaps between positions \(set positions.mode=natural\)"):
        trainable_config(make_recipe(model=folder))
    natural = {"positions.mode": "natural"}
    with pytest.raises(UserError, match="cannot be shared: BloomForCausalLM does not let its attention be replaced"):
        trainable_config(make_recipe(model=folder, sharing="prompt", **natural))
    trainable_config(make_recipe(model=folder, **natural))


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({}, ""),
        ({"rope_type": "yarn", "factor": 2.0}, ""),
        ({"rope_type": "dynamic", "factor": 2.0}, "RoPE type 'dynamic' changes with the length of the row"),
        (
            {
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0] * 4,
                "original_max_position_embeddings": 128,
            },
            "RoPE type 'longrope' changes with the length of the row",
        ),
    ],
)
def test_a_rope_that_depends_on_the_row_is_not_shared(fields: dict[str, Any], obstacle: str) -> None:
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 1e4, "rope_type": "default", **fields})
    assert read_traits(config).obstacle == obstacle


def test_a_model_that_nobody_has_seen_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens also depend on the tokens that stand before them in the row, past its attention."""
    plain = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP,
        "forward",
        lambda self, hidden: plain(self, hidden) + functional.pad(hidden, (0, 0, 1, 0))[:, :-1] * 0.1,
    )
    traits = read_traits(LlamaConfig(**SIZES, rms_norm_eps=1e-3))
    assert traits.obstacle == "responses over one prompt would get other log-probabilities"


@pytest.mark.parametrize("change", [lambda logits: logits * 1.5, torch.tanh, lambda logits: logits - logits[..., :1]])
def test_what_a_model_does_to_its_logits_is_done(
    change: Callable[[Tensor], Tensor], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaForCausalLM.forward

    def forward(self: LlamaForCausalLM, **inputs: Any) -> Any:
        output = plain(self, **inputs)
        return dataclasses.replace(output, logits=change(output.logits))

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    row = _probe_row(269)
    with torch.no_grad():
        expected = _own_logprobs(tiny_model, row)
        for shared in (nullcontext(), use_shared_prefix(tiny_model)):
            with shared:
                torch.testing.assert_close(LogprobModel(tiny_model)(row), expected, rtol=0, atol=1e-5)


def _untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logotrain.trainable.small_model", lambda *_: "it would be too large")
    monkeypatch.setattr("logotrain.trainable._known", {})


def test_a_model_that_could_not_be_tried_trains_in_separate_rows(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe(epochs=1), tmp_path / "tried")
    _untried(monkeypatch)
    run(make_recipe(epochs=1), tmp_path / "untried")
    assert "a row for each response, which computes its prompt again (no small copy of it could" in said_by(capsys)
    one, other = losses(tmp_path / "tried"), losses(tmp_path / "untried")
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hidden: hidden + hidden.mean(1, keepdim=True), "lets tokens depend on later ones"),
        (None, "takes no gaps between positions"),
    ],
)
def test_a_loaded_model_that_could_not_be_tried_is_looked_at(
    change: Callable[[Tensor], Tensor] | None,
    reason: str,
    make_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _untried(monkeypatch)
    plain = LlamaMLP.forward
    if change:
        monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: plain(self, change(hidden)))
    else:
        own = LlamaForCausalLM.forward

        def forward(self: LlamaForCausalLM, **inputs: Any) -> Any:
            return own(self, **{**inputs, "position_ids": None})

        monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(UserError, match=reason):
        run(make_recipe(), tmp_path / "run")


def test_a_model_whose_layers_fail_on_a_row_ends_in_one_line(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_self: nn.Module, hidden: Tensor) -> Tensor:
        if float(hidden.sum()) < 1e30:  # needs data: nothing is known before the weights are there
            raise KeyError("no such expert")
        return hidden

    monkeypatch.setattr(LlamaMLP, "forward", fails)
    load_data(make_recipe())
    with pytest.raises(UserError, match=r"LlamaForCausalLM cannot compute a row: KeyError: 'no such expert'"):
        run(make_recipe(), tmp_path / "run")


def test_the_window_of_a_wrapper_is_scaled_inside(tmp_path: Path) -> None:
    text = LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    LlavaConfig(text_config=text).save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    scaled = scaled_config(config, RopeSettings(type="yarn", factor=4))
    assert scaled.text_config.max_position_embeddings == 4 * 256
    assert scaled.text_config.rope_parameters["rope_type"] == "yarn"
    assert scaled.text_config.rope_parameters["original_max_position_embeddings"] == 256
    assert config.text_config.max_position_embeddings == 256
