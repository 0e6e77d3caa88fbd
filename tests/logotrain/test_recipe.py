"""Defaults are the paper's; what cannot be honoured is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logotrain.recipe.settings import TrainRecipe


def recipe_of(*overrides: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, "train", None, ["model=m", "data.path=d", *overrides])


def test_defaults_are_the_papers() -> None:
    recipe = recipe_of()
    assert (recipe.objective.beta, recipe.objective.gamma, recipe.objective.sft_weight) == (10, 3, 0.1)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.optimizer.lr, recipe.optimizer.weight_decay) == (
        32,
        16,
        5e-7,
        0.05,
    )
    assert recipe.positions.continuous_share == 0.9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.dropout=0.1", r"unknown key 'lora\.dropout' \(there is none here: models train in evaluation mode"),
        ("lora.rnk=4", "did you mean 'rank'"),
        (
            "objective.name=ppo",
            r"'objective\.name': there is no 'ppo' \(known: logo, simpo, cpo, dpo, ipo, orpo, solopo, longpo, sft\)",
        ),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas"),
        ("optimizer.schedule=polynomial", "optimizer.schedule"),
        ("lora.target_modules=[]", "lora.target_modules"),
        ("samples_per_step=0", "samples_per_step"),
        ("positions.continuous_share=1.5", "continuous_share"),
        ("dtype=float16", "dtype"),
    ],
)
def test_refusals_name_the_field(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(override)


def test_full_tuning_has_no_adapter_to_give_to_a_command() -> None:
    command = "checkpoint.command='ls {adapter}'"
    with pytest.raises(UserError, match=r"tuning=full writes no \{adapter\}"):
        recipe_of("tuning=full", command)
    assert recipe_of(command).checkpoint.command == "ls {adapter}"
    assert recipe_of("tuning=full", "checkpoint.command='ls {checkpoint}'").checkpoint.command == "ls {checkpoint}"


@pytest.mark.parametrize(
    ("text", "field"),
    [("train: {data: {path: d}}\n", "model"), ("model: m\ntrain: {rope: {type: yarn}}\n", "rope.factor")],
)
def test_a_missing_field_is_named(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"'{field}' is missing"):
        load_recipe(TrainRecipe, "train", path)


def test_every_field_is_described() -> None:
    def check(schema: dict[str, object], name: str) -> None:
        for field, value in schema.get("properties", {}).items():  # type: ignore[attr-defined]
            assert value.get("description") or "$ref" in value, f"{name}.{field}"

    schema = TrainRecipe.model_json_schema()
    check(schema, "train")
    for name, definition in schema["$defs"].items():
        check(definition, name)
