"""DPO's references: the untrained model's alone, kept when the run is stopped, and thrown away with their settings."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logotrain import steps, trainer
from logotrain.interrupt import Stopped
from logotrain.loss import reference
from logotrain.loss.objective import PreferenceLoss, sample_loss
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]

DPO = {"objective": {"name": "dpo", "beta": 0.5}}
"""Of the fixtures' six samples in two epochs: twelve draws, three a block."""


def draws_written(monkeypatch: pytest.MonkeyPatch, after: Callable[[int], None] = lambda _: None) -> list[int]:
    """How many references each write brings; ``after`` runs then, with the number of writes."""
    original, written = reference.append_lines, []

    def append(path: Path, lines: str) -> None:
        original(path, lines)
        written.append(lines.count("\n"))
        after(len(written))

    monkeypatch.setattr(reference, "append_lines", append)
    return written


def stop_before_step(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    original = trainer.train_step

    def patched(*arguments: Any, step: int, stop: Any, **options: Any) -> Any:
        if step == last:
            stop.set()
        return original(*arguments, step=step, stop=stop, **options)

    monkeypatch.setattr(trainer, "train_step", patched)


def stopped_run(recipe: TrainRecipe, out: Path, monkeypatch: pytest.MonkeyPatch, *, before_step: int) -> Path:
    """Its ``reference.jsonl``."""
    with monkeypatch.context() as patch:
        stop_before_step(patch, before_step)
        with pytest.raises(Stopped):
            run(recipe, out)
    return out / "reference.jsonl"


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_pass_stops_after_a_block_and_goes_on_from_there(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_recipe(**DPO), tmp_path / "whole")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        written = draws_written(patch, lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 2 else None)
        with pytest.raises(Stopped):
            run(make_recipe(**DPO), out)
        assert written == [3, 3]
    assert not (out / "metrics.jsonl").exists()
    with open(out / "reference.jsonl", "ab") as file:
        file.write(b'{"id": "s')  # and a power failure cut the next line
    written = draws_written(monkeypatch)
    run(make_recipe(**DPO, row_tokens=200), out)  # a field that may change
    assert written == [3, 3]
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_positions_that_are_not_drawn_need_one_reference_for_all_epochs(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = draws_written(monkeypatch)
    run(make_recipe(**DPO, **{"positions.mode": "natural"}), tmp_path / "run")
    assert sum(written) == 6  # and not once more for the second epoch
    assert losses(tmp_path / "run")[0] == pytest.approx(0.693147, abs=1e-6)


def test_rewards_are_measured_against_the_references(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = []

    def recorded(settings: Any, responses: Sequence[Tensor], *, reference: Tensor, **options: Any) -> PreferenceLoss:
        chosen, *rejected = [
            0.5 * (logprobs.sum() - kept).item() for logprobs, kept in zip(responses, reference, strict=True)
        ]
        rewards.append(chosen - sum(rejected) / len(rejected))
        return sample_loss(settings, responses, reference=reference, **options)

    monkeypatch.setattr(steps, "sample_loss", recorded)
    run(make_recipe(**DPO), tmp_path / "run")
    by_step = np.reshape(rewards, (4, 3))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward_margin"] for line in lines] == pytest.approx(by_step.mean(axis=1), abs=1e-6)
    # Before the first update all rewards are 0 but for rounding.
    shares = (by_step[1:] > 0).mean(axis=1)
    assert shares.mean() > 0.5, "what was learned tells the signs apart"
    assert [line["reward_accuracy"] for line in lines[1:]] == pytest.approx(shares)


def test_references_go_with_the_settings_that_they_were_computed_under(
    make_recipe: Recipes,
    make_build: Callable[..., Path],
    make_sample: Callable[..., PreferenceSample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, out = make_build([make_sample(f"s{n}") for n in range(6)], name="changing"), tmp_path / "run"

    def stopped(**fields: Any) -> list[int]:
        with monkeypatch.context() as patch:
            written = draws_written(patch)
            stop_before_step(patch, 1)
            with pytest.raises(Stopped):
                run(make_recipe(**DPO, **{"data.path": str(build)}, **fields), out)
        return written

    assert sum(stopped()) == 12
    assert sum(stopped()) == 0
    assert sum(stopped(seed=1)) == 12  # other positions
    build.rename(tmp_path / "before")
    make_build([make_sample(f"s{n}", responses=(4, 2, 3)) for n in range(6)], name="changing")
    assert sum(stopped(seed=1)) == 12


def test_what_is_lost_after_the_first_step_is_not_computed_with_the_trained_model(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(**DPO)
    path = stopped_run(recipe, tmp_path / "run", monkeypatch, before_step=3)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], "{}\n"]))
    with pytest.raises(UserError, match=r"reference\.jsonl:12: damaged: lacks 'id' \(.*another -o\)") as caught:
        run(recipe, path.parent)
    assert "delete the line" not in str(caught.value)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"lacks the untrained model's log-probabilities of 1 samples.*another -o"):
        run(recipe, path.parent)
    assert path.read_text() == "".join(lines[:-1])
    path.write_text("".join(lines[6:]))  # those of steps that are done
    run(recipe, path.parent)


def test_a_damaged_line_is_computed_again_before_the_first_step(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(**DPO)
    path = stopped_run(recipe, tmp_path / "run", monkeypatch, before_step=1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(["[]\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"reference\.jsonl:1: .*delete the line"):
        run(recipe, path.parent)
    path.write_text("".join(lines[1:]))
    written = draws_written(monkeypatch)
    run(recipe, path.parent)
    assert written == [1]
