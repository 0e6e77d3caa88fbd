"""Stopping: which signals do what, and what a stopped run still waits for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logotrain import trainer
from logotrain.interrupt import StopFlag, Stopped, stop_on_signal
from logotrain.recipe.settings import TrainRecipe
from logotrain.run import run

Recipes = Callable[..., TrainRecipe]


def test_only_a_second_ctrl_c_interrupts_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Schedulers send SIGTERM to every process, and torchrun forwards the one that it gets."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.type is KeyboardInterrupt
    assert capsys.readouterr().err.count("stopping soon") == 1
    assert signal.getsignal(signal.SIGTERM) == before


def follow(monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """What a run does at its end, in order."""
    seen: list[str] = []
    end, export = trainer.CheckpointWriter.end_commands, trainer.export

    def spied_end(self: Any, stop: StopFlag) -> None:
        seen.append(
            f"commands, stop {bool(stop)}, pending {self._pending is not None}, final {(out / 'final').exists()}"
        )
        end(self, stop)

    def spied_export(*arguments: Any, **options: Any) -> None:
        seen.append("export")
        export(*arguments, **options)

    monkeypatch.setattr(trainer.CheckpointWriter, "end_commands", spied_end)
    monkeypatch.setattr(trainer, "export", spied_export)
    return seen


def test_the_result_is_written_before_commands_are_waited_for(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes wait for the main one to export, and not for ever."""
    out = tmp_path / "run"
    seen = follow(monkeypatch, out)
    command = f"while [ ! -e {out}/final ]; do sleep 0.05; done; touch {tmp_path}/saw-{{step}}"
    run(make_recipe(**{"checkpoint.command": command, "max_steps": 2}), out)
    assert seen == ["export", "commands, stop False, pending False, final True"]
    assert (tmp_path / "saw-2").exists()


def test_a_stopped_run_waits_for_its_checkpoint_and_not_for_commands(
    make_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    seen = follow(monkeypatch, out)
    original = trainer.train_step

    def patched(*arguments: Any, step: int, **options: Any) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, step=step, **options)

    monkeypatch.setattr(trainer, "train_step", patched)
    command = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    with pytest.raises(Stopped):
        run(make_recipe(**{"checkpoint.command": command}), out)
    (tmp_path / "go").touch()
    assert seen == ["commands, stop True, pending False, final False"]
    assert (out / "checkpoints" / "step-1").is_dir()
    assert "step-1.command.log" in capsys.readouterr().err
