"""Recipes of strangers: no Python from tags, no gigabytes from aliases, and one line for each fault."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe

LAUGHS = "name: &a [x, x, x, x, x, x, x, x, x]\n"
MAPS = "name: &a {x: 1, y: 1, z: 1}\n"
for last, new in zip("abcdefghi", "bcdefghij", strict=True):
    LAUGHS += f"build_{new}: &{new} [{', '.join([f'*{last}'] * 9)}]\n"
    MAPS += f"build_{new}: &{new} {{{', '.join(f'{key}: *{last}' for key in 'pqrstuv')}}}\n"

REFUSED = {
    "a Python object": ("build: !!python/object/apply:pathlib.Path.write_text [TRAP, ran]", "not valid YAML"),
    "a Python name": ("build: !!python/name:os.system", "not valid YAML"),
    "a module": ("build: !!python/module:antigravity", "not valid YAML"),
    "a tag of its own": ("build: !own {a: 1}", "not valid YAML"),
    "a billion laughs": (LAUGHS, "stands for more than 10000 values"),
    "a billion mappings": (MAPS, "stands for more than 10000 values"),
    "laughs of merges": (MAPS.replace("p: ", "<<: "), "stands for more than 10000 values"),
    "within itself": ("build: &a {source: *a}", "stands for more than 10000 values"),
    "a list within itself": ("build: &a [*a]", "stands for more than 10000 values"),
    "nested lists": (f"build: {'[' * 5000}", "nested too deeply"),
    "nested mappings": (f"build: {'{a: ' * 5000}", "nested too deeply"),
    "a key twice": ("build: {model: a, model: b}", "'build.model' stands at"),
    "a date that is none": ("build: {model: 2024-13-45}", "a value is not what it looks like"),
    "a number of 5,000 digits": (f"build: {{seed: {'1' * 5000}}}", "a value is not what it looks like"),
    "a number of words": ("build: {seed: !!int many}", "a value is not what it looks like"),
    "a bool of words": ("build: {seed: !!bool many}", "a value is not what it looks like"),
    "an empty number": ("build: {seed: !!int ''}", "a value is not what it looks like"),
    "an escape sequence": ("build: {model: \x1b[31m}", "not valid YAML"),
    "keys of numbers": ("build: {1: 2}", "1"),
    "a key of a list": ("build: {? [a] : 2}", "not valid YAML"),
    "two documents": ("build: {}\n---\nbuild: {}", "not valid YAML"),
    "no mapping": ("[build]", "a recipe is a YAML mapping"),
    "nothing": ("", "a recipe is a YAML mapping"),
    "a huge file": ("#" * 2**21, "too large for a recipe"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_that_is_none_is_one_line(case: str, tmp_path: Path) -> None:
    text, said = REFUSED[case]
    trap, path = tmp_path / "trap", tmp_path / "recipe.yaml"
    path.write_text(text.replace("TRAP", str(trap)))
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_recipe(BuildRecipe, "build", path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not trap.exists()
    assert time.monotonic() - start < 30  # those without end would take years


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=!!python/name:os.system", "the value of 'model' is not valid YAML"),
        ("model=" + "[" * 5000, "the value of 'model' is not valid YAML"),
        ("seed=" + "1" * 5000, "the value of 'seed' is not valid YAML"),
        ("seed=2024-13-45", "the value of 'seed' is not valid YAML"),
        (".".join("a" * 5000) + "=1", "the key is too deep"),
        ("model=[" + "a," * 5000 + "]", "'model'"),
    ],
)
def test_an_override_that_is_none_is_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(BuildRecipe, "build", None, [override])
    assert said in str(caught.value)
