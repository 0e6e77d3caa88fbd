"""Throughput is what it says, and the profiler writes a trace of the steps that were asked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logotrain import throughput
from logotrain.plan.assumed import planned_data
from logotrain.plan.cost import CARDS, Card
from logotrain.plan.table import make_plan
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]


def test_figures_follow_from_tokens_and_seconds(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CARDS, "cpu", Card(None, 1e9))
    run(make_recipe(**{"recompute": "full"}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    work = 0.0
    for line in lines:
        seconds = line["tokens"] / line["tokens_per_second"]
        assert seconds == pytest.approx(line["seconds"], abs=1e-3)  # each is rounded
        assert line["samples_per_second"] == pytest.approx(3 / seconds, rel=0.01)
        assert 0.05 < line["memory_gib"] < 64
        work += line["mfu"] * seconds * 1e9
    # What is computed again does not count as work: layers, and in attention and head what always is.
    recipe = make_recipe()
    plan = make_plan(recipe, planned_data(recipe, None), card="cpu", num_gpus=1)
    assert 0.7 * 4 * plan.flops_per_step < work < 0.99 * 4 * plan.flops_per_step


def test_a_card_without_a_rate_has_no_utilisation(make_recipe: Recipes, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path / "run")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "mfu" not in line
    assert line["tokens_per_second"] > 0


def test_a_trace_holds_the_steps_that_were_asked_for(
    make_recipe: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_recipe(), tmp_path / "without")
    run(make_recipe(**{"profile.steps": (2, 3)}), tmp_path / "with")
    (file,) = (tmp_path / "with" / "profile").iterdir()
    assert file.name == "steps-2-3.json.gz"
    assert str(file) in capsys.readouterr().err
    with gzip.open(file) as opened:
        names = [event.get("name") for event in json.load(opened)["traceEvents"]]
    assert {f"step {number}" for number in range(1, 5) if f"step {number}" in names} == {"step 2", "step 3"}
    assert "aten::linear" in names
    final = "final/adapter_model.safetensors"
    assert (tmp_path / "with" / final).read_bytes() == (tmp_path / "without" / final).read_bytes()


def test_steps_that_the_run_does_not_have_are_refused(make_recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"profile.steps=\[3, 9\]: the run has 4 steps"):
        run(make_recipe(**{"profile.steps": (3, 9)}), tmp_path / "run")
    with pytest.raises(ValueError, match="the first and the last step"):
        make_recipe(**{"profile.steps": (3, 2)})
    assert throughput.StepProfiler(None, tmp_path, total_steps=1, is_main=True)
