"""Checkpoints that a stopped run continues from.

A checkpoint is ``step-N/``: trained weights and optimizer state by torch's distributed checkpoint, ``adapter/`` as PEFT
writes it. It is sealed (:mod:`logodata.common.files`), so it is whole or not there. Whatever part of a tensor each
process holds, the files know its place in the whole: a run continues on another number of processes, replicated or
sharded. Random states are not part of it: a step draws nothing that its number does not decide.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import async_save as save_in_background
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.optim import Optimizer
from transformers import PreTrainedModel

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import damage, put_aside, seal
from logotrain.checkpoints.export import Adapter, explained_writes, trained_parameters
from logotrain.checkpoints.safe_reading import load_checkpoint
from logotrain.interrupt import StopFlag
from logotrain.parallel import World
from logotrain.recipe.settings import CheckpointSettings

_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
_ADAPTER = "adapter"

_POLL_S = 0.2
"""Between two looks whether a command ended, or the run was asked to stop."""


class CheckpointWriter:
    """Writes checkpoints of one run, one at a time, in the background where that is wanted.

    Args:
        folder: holds ``step-N/``.
        settings: how many are kept, and what runs after each.
        world: every process makes one writer and calls the same methods.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, world: World) -> None:
        self._folder, self._settings, self._world = folder, settings, world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._commands: list[tuple[subprocess.Popen[bytes], Path]] = []
        # Its own group: what is written in the background must not meet what training sends meanwhile.
        self._group = None if world.size == 1 else distributed.new_group(backend="gloo")
        world.on_main(lambda: _remove_scratch(folder))

    def save(self, step: int, model: PreTrainedModel | PeftModel, optimizer: Optimizer) -> None:
        """Take the state after ``step`` steps and write it; a write that is still under way is waited for.

        Raises:
            UserError: this write, or in the background the one before, failed.
        """
        self.wait()
        scratch = _scratch(self._folder, step)
        with explained_writes(scratch):
            self._world.on_main(lambda: _make_empty(scratch))
            adapter = Adapter.of(model, self._world)
            state = _state(model, optimizer)
            alone = self._world.size == 1
            written: Future[Any] | None = None
            _quiet_alone()
            if self._settings.asynchronous:
                written = save_in_background(  # type: ignore[assignment]
                    state, checkpoint_id=scratch, process_group=self._group, no_dist=alone
                )
            else:
                save_distributed(state, checkpoint_id=scratch, process_group=self._group, no_dist=alone)

        def finish() -> None:
            if written is not None:
                written.result()
            if self._world.is_main:
                self._finish(scratch, step, adapter)

        self._pending = self._thread.submit(finish)
        if not self._settings.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            UserError: a write failed, on whichever process.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        fault: UserError | None = None
        try:
            with explained_writes(self._folder):
                pending.result()
        except UserError as error:
            fault = error
        for found in self._world.gather(fault):
            if found is not None:
                raise found

    def close(self) -> None:
        """Wait for the last write."""
        self.wait()
        self._thread.shutdown()
        self._world.on_main(self._remove_old)  # a run that was killed at its end left one too many

    def abandon(self) -> None:
        """Wait for a write that is under way, whatever becomes of it: who has the folder next may begin the same one.

        Not where other processes write with this one: they may be gone.
        """
        if self._world.size == 1:
            self._thread.shutdown()

    def end_commands(self, stop: StopFlag) -> None:
        """Wait for the commands that run after checkpoints; once the run is asked to stop, leave them and say so.

        Only the main process has any. Called after :meth:`close`.
        """
        for command, log in self._commands:
            while command.poll() is None and not stop:
                time.sleep(_POLL_S)
            if command.poll() is None:
                note(f"checkpoint.command is left running, its output goes to {log}")
            _note_failure(command, command.poll())

    def _finish(self, scratch: Path, step: int, adapter: Adapter | None) -> None:
        if adapter is not None:
            adapter.write(scratch / _ADAPTER)
        target = _path(self._folder, step)
        seal(scratch, target)
        self._remove_old()
        if self._settings.command is not None:
            self._start_command(self._settings.command, target, step)

    def _remove_old(self) -> None:
        """Renamed first: a kill leaves nothing that looks like a checkpoint."""
        if self._settings.keep is not None:
            for old in _newest_first(self._folder)[self._settings.keep :]:
                scratch = _scratch(self._folder, old)
                _path(self._folder, old).rename(scratch)
                shutil.rmtree(scratch)

    def _start_command(self, template: str, target: Path, step: int) -> None:
        """Run the user's command beside training, its output in a file: torch's launcher variables are not for it."""
        for running, _ in self._commands:
            _note_failure(running, running.poll())
        self._commands = [(running, log) for running, log in self._commands if running.poll() is None]
        command = template
        for name, value in (("checkpoint", target), ("adapter", target / _ADAPTER), ("step", step)):
            command = command.replace(f"{{{name}}}", shlex.quote(str(value)))  # other braces are the shell's
        log = self._folder / f"step-{step}.command.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                shell=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment_without_launcher(),
                # A Ctrl-C at the terminal, and torchrun's SIGTERM and SIGKILL, go to training's whole process group.
                start_new_session=True,
            )
        self._commands.append((process, log))


def restore(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    optimizer: Optimizer,
    world: World,
    *,
    logged: int | None = None,
) -> int:
    """Load the newest intact checkpoint into ``model`` and ``optimizer``.

    Damaged ones are renamed to ``step-N.damaged`` and said.

    Args:
        folder: of the checkpoints.
        model: gets the weights.
        optimizer: gets its state.
        world: all processes call this.
        logged: steps whose metrics are there: a checkpoint after more is not used, or their lines would be lost.

    Returns:
        Steps done, 0 if there is no checkpoint.

    Raises:
        UserError: the checkpoint is intact, but holds something else than this run writes.
    """
    step = world.on_main(lambda: _newest_intact(folder, logged))
    if step == 0:
        return 0
    path = _path(folder, step)
    state = _state(model, optimizer)
    _quiet_alone()
    load_checkpoint(state, path, alone=world.size == 1)
    set_model_state_dict(model, state["model"], options=_TRAINED_ONLY)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_TRAINED_ONLY)
    return step


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    # ignore_frozen_params alone lets the frozen head of a tied model through: 113 MB for the embedded one.
    trained = trained_parameters(model)
    weights = get_model_state_dict(model, options=_TRAINED_ONLY)
    return {
        "model": {name: value for name, value in weights.items() if name in trained},
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_TRAINED_ONLY),
    }


def _quiet_alone() -> None:
    """One process needs no process group, and no warning about it, from whichever thread."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _remove_scratch(folder: Path) -> None:
    """What a process that was killed was writing or deleting."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _scratch(folder: Path, step: int) -> Path:
    return folder / f".step-{step}.tmp"


def _newest_first(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _newest_intact(folder: Path, logged: int | None) -> int:
    """The newest checkpoint that is as it was written, 0 if there is none; damaged ones are put aside."""
    for step in _newest_first(folder):
        path = _path(folder, step)
        fault = damage(path)
        if not fault and logged is not None and step > logged:
            fault = f"metrics.jsonl lacks step {logged + 1}"
        if not fault:
            return step
        put_aside(path, fault, "the one before it is used")
    return 0


def _environment_without_launcher() -> dict[str, str]:
    """What torchrun set for this process would make a second program wait for others."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in launcher and not name.startswith("TORCHELASTIC_")
    }


def _note_failure(command: subprocess.Popen[bytes], code: int | None) -> None:
    if code:
        note(f"checkpoint.command ended with {code}: {command.args!r}; its output is beside the checkpoints")
