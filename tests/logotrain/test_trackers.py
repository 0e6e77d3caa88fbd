"""Trackers get what metrics.jsonl holds, and a tracker that fails or hangs changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logodata.common.errors import UserError
from logotrain import trackers
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run
from tests.logotrain.test_trainer import assert_same_run, crash, interfere

Recipes = Callable[..., TrainRecipe]


@pytest.fixture
def tracked(make_recipe: Recipes, build_dir: Path) -> Recipes:
    """``tracked("tensorboard")``: a run with held-out figures and this tracker."""

    def make(*names: str, **fields: Any) -> TrainRecipe:
        values = {"data.validation": str(build_dir), "validation.every_steps": 2}
        return make_recipe(**{**values, **fields, "report_to": names})

    return make


def written(out: Path) -> dict[tuple[str, int], float]:
    """All numbers of both files, by the name that trackers give them and the step."""
    found = {}
    for section, name in (("train", "metrics.jsonl"), ("validation", "validation.jsonl")):
        for line in map(json.loads, (out / name).read_text().splitlines()):
            step = line.pop("step")
            found |= {(f"{section}/{key}", step): float(value) for key, value in line.items()}
    return found


def read_tensorboard(folder: Path) -> dict[tuple[str, int], float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def test_tensorboard_files_hold_every_number(tracked: Recipes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tracked("tensorboard"), out)
    expected, found = written(out), read_tensorboard(out / "tensorboard")
    assert found.keys() == expected.keys()
    assert {step for name, step in found if name == "validation/margin"} == {0, 2, 4}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)  # TensorBoard keeps float32


def test_a_run_that_goes_on_leaves_no_step_twice(
    tracked: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    recipe = tracked("tensorboard", **{"checkpoint.asynchronous": False})
    with monkeypatch.context() as patch:
        interfere(patch, 6 + 9 + 6 + 1, crash)  # in step 4, after checkpoint 2
        with pytest.raises(RuntimeError):
            run(recipe, out)
    run(recipe, out)
    found = read_tensorboard(out / "tensorboard")
    assert found.keys() == written(out).keys()


def test_trackio_holds_every_number(
    tracked: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio import sqlite_storage, utils

    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    out = tmp_path / "run"
    run(tracked("trackio", project="ours"), out)
    said = capsys.readouterr()
    assert not said.out  # stdout is for results
    assert "trackio show" in said.err
    (name,) = sqlite_storage.SQLiteStorage.get_runs("ours")
    assert name.startswith("run-")
    found = {
        (key, line["step"]): float(value)
        for line in sqlite_storage.SQLiteStorage.get_logs("ours", name)
        for key, value in line.items()
        if "/" in key
    }
    assert found == pytest.approx(written(out))
    config = sqlite_storage.SQLiteStorage.get_run_config("ours", name)
    assert config["optimizer.lr"] == 2e-3


class Broken(tracking.GeneralTracker):
    """A tracker whose server is gone, or does not answer."""

    def __init__(self, *_: Any, at: str, hang: threading.Event | None = None, **__: Any) -> None:
        super().__init__(_blank=True)
        self.at, self.hang = at, hang

    def _fail(self, at: str) -> None:
        if at == self.at:
            if self.hang is not None:
                self.hang.wait()
            raise SystemExit("the server is gone")

    def start(self) -> None:
        self._fail("start")

    def log(self, *_: Any, **__: Any) -> None:
        self._fail("log")

    def finish(self) -> None:
        self._fail("finish")


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_noted_once_and_changes_nothing(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: str
) -> None:
    run(make_recipe(), tmp_path / "without")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", lambda **_: Broken(at=at))
    run(make_recipe(report_to=("tensorboard",)), tmp_path / "with")
    assert_same_run(tmp_path / "with", tmp_path / "without")
    said = capsys.readouterr().err
    assert said.count("report_to: tensorboard failed and gets no more figures (the server is gone)") == 1


def test_a_tracker_that_hangs_does_not_hold_the_run(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE_S", 0.1)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", lambda **_: Broken(at="log", hang=release))
    run(make_recipe(report_to=("tensorboard",)), tmp_path / "run")
    release.set()
    assert (tmp_path / "run" / "final").is_dir()
    assert "tensorboard has not taken all figures" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_one_line(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="report_to: wandb is not installed") as caught:
        run(make_recipe(report_to=("wandb",)), tmp_path / "run")
    assert caught.value.mend == "pip install wandb"
    assert not (tmp_path / "run").exists()
