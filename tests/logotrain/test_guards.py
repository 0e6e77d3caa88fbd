"""Guards: what they measure, when they stop a run, and that they leave the model as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain import guards
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.guards import check_chosen, check_repetition, measure_repetition, repetition_rate
from logotrain.loss.logprobs import LogprobModel
from logotrain.recipe.settings import CollapseSettings, TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]


@pytest.mark.parametrize(
    ("ids", "rate"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([7] * 8, 4 / 5),  # five 4-grams, one of them new
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
    ],
)
def test_repetition_by_hand(ids: list[int], rate: float) -> None:
    assert repetition_rate(ids) == pytest.approx(rate)


def test_continues_as_the_plain_model_does_and_leaves_it_as_it_was(
    tiny_model: LlamaForCausalLM, make_sample: Callable[..., PreferenceSample]
) -> None:
    prompts = [make_sample(name).prompt_ids for name in ("a", "b")]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):  # greedy, without a cache
            with torch.no_grad():
                ids.append(int(tiny_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tiny_model.config.eos_token_id:
                break
        expected.append(repetition_rate(ids[len(prompt) :]))
    model = LogprobModel(tiny_model).train()
    with use_shared_prefix(tiny_model):
        attention = tiny_model.config._attn_implementation
        found = measure_repetition(model, prompts, max_new_tokens=12)
        assert tiny_model.config._attn_implementation == attention
    assert found == pytest.approx(sum(expected) / 2)
    assert model.training


def test_thresholds() -> None:
    settings = CollapseSettings(min_chosen_logp=-5, max_repetition=0.3)
    check_chosen(settings, -4.9, step=1)
    check_repetition(settings, 0.7, 0.5, step=1)
    with pytest.raises(UserError, match=r"step 7: the model collapsed: preferred responses have -5\.10 nats"):
        check_chosen(settings, -5.1, step=7)
    with pytest.raises(UserError, match=r"continuations repeat 90% of their 4-grams, the untrained model's 50%"):
        check_repetition(settings, 0.9, 0.5, step=7)
    never = CollapseSettings(min_chosen_logp=None, max_repetition=None)
    check_chosen(never, -100.0, step=1)
    check_repetition(never, 1.0, 0.0, step=1)


def test_a_run_that_begins_to_repeat_itself_stops_and_keeps_its_checkpoints(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.1, 0.2, 0.9])
    monkeypatch.setattr(guards, "measure_repetition", lambda *_: next(rates))
    recipe = make_recipe(**{"collapse": {"every_steps": 1}, "checkpoint.every_steps": 1})
    with pytest.raises(UserError, match="step 2: the model collapsed"):
        run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["repetition"] for line in lines] == [0.2, 0.9]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]
    assert json.loads((tmp_path / "run" / "base.json").read_text()) == {
        "repetition": 0.1,
        "num_prompts": 2,
        "max_new_tokens": 64,
    }


def test_a_base_rate_measured_otherwise_is_not_compared_with(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "measure_repetition", lambda *_: 0.0)
    sync = {"checkpoint.every_steps": 1, "checkpoint.asynchronous": False}

    def power_cut(_self: object, step: int, *, last: bool) -> None:
        if step == 2:
            raise RuntimeError("power cut")

    def begin(out: Path, num_prompts: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(guards.RepetitionGuard, "measure", power_cut)
            with pytest.raises(RuntimeError):
                run(make_recipe(collapse={"num_prompts": num_prompts}, **sync), out)

    begin(tmp_path / "none", 0)
    with pytest.raises(UserError, match=r"repetition was not measured.*continue with collapse\.num_prompts=0"):
        run(make_recipe(**sync), tmp_path / "none")
    run(make_recipe(collapse={"num_prompts": 0}, **sync), tmp_path / "none")

    out = tmp_path / "two"
    begin(out, 2)
    for other, message in (
        ({"num_prompts": 3}, r"measured with collapse\.num_prompts=2, now it is 3"),
        ({"max_new_tokens": 8}, r"measured with collapse\.max_new_tokens=64, now it is 8"),
    ):
        with pytest.raises(UserError, match=message):
            run(make_recipe(collapse=other, **sync), out)
    run(make_recipe(collapse={}, **sync), out)


def test_objectives_without_a_margin_train_too(make_recipe: Recipes, tmp_path: Path) -> None:
    recipe = make_recipe(objective={"name": "sft", "tokens": "sequence"}, epochs=4)
    run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "margin" not in lines[0]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_dpo_begins_at_log_two_and_reads_its_references_again(make_recipe: Recipes, tmp_path: Path) -> None:
    """Before the first update policy and reference are one model, so every loss is log 2."""
    recipe = make_recipe(objective={"name": "dpo", "beta": 0.5}, epochs=4)
    run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert lines[-1]["loss"] < 0.6
    references = (tmp_path / "run" / "reference.jsonl").read_text().splitlines()
    assert len(references) == 6 * 4  # each sample at each epoch's positions
