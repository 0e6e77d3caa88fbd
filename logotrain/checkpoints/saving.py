"""Write the checkpoints that a stopped run continues from, and read them again.

A checkpoint is a folder ``step-N/``. It holds the trained weights and the optimizer state in torch's distributed
checkpoint format, and ``adapter/`` as PEFT writes it. It is sealed (:mod:`logodata.common.files`), so it is complete or
absent. The format records the place of each shard in its tensor, so a run can continue on another number of processes,
replicated or sharded. No random state is saved, because the number of a step decides all that the step draws.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, distributed, nn
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
from logotrain.checkpoints.safe_reading import load_checkpoint, saved_names
from logotrain.interrupt import StopFlag, Stopped
from logotrain.parallel import TIMEOUT, World
from logotrain.recipe.settings import CheckpointSettings

_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
_ADAPTER = "adapter"
_MOMENTS = "optimizer.state."

_POLL_S = 0.2
"""Seconds between two checks whether a command ended or the run was asked to stop."""


class CheckpointWriter:
    """Writes the checkpoints ``step-N/`` of one run into a folder, one at a time.

    They are written in the background if ``settings.asynchronous``. All processes call the same methods.

    Args:
        best: a step whose checkpoint is kept, however old it is.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, world: World, *, best: int | None = None) -> None:
        self._folder, self._settings, self._world = folder, settings, world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._commands: list[tuple[subprocess.Popen[bytes], Path]] = []
        # Background writes have their own group, so that their messages do not mix with those of training.
        self._group = None if world.size == 1 else distributed.new_group(backend="gloo", timeout=TIMEOUT)
        self._best = best
        world.on_main(self._remove_scratch)

    def save(
        self, step: int, model: PreTrainedModel | PeftModel, optimizer: Optimizer, *, best: int | None = None
    ) -> None:
        """Wait for the write that is still running, then copy the state after ``step`` steps and write it.

        From now on the checkpoint of step ``best`` is kept, however old it is.

        Raises:
            UserError: this write failed, or the one before, if it ran in the background.
        """
        self.wait()
        self._best = best
        scratch = _scratch(self._folder, step)
        with explained_writes(scratch):
            self._world.on_main(lambda: scratch.mkdir(parents=True))
            adapter = Adapter.of(model, self._world)
            state = _state(model, optimizer)
            _quiet_alone()
            save = save_in_background if self._settings.asynchronous else save_distributed
            alone = self._world.size == 1
            written: Any = save(state, checkpoint_id=scratch, process_group=self._group, no_dist=alone)

        def finish() -> None:
            if self._settings.asynchronous:
                written.result()
            if not self._world.is_main:
                return
            if adapter is not None:
                adapter.write(scratch / _ADAPTER)
            target = _path(self._folder, step)
            seal(scratch, target)
            self._remove_old()
            if self._settings.command is not None:
                self._start_command(self._settings.command, target, step)

        self._pending = self._thread.submit(finish)
        if not self._settings.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until no checkpoint is being written. A write that failed on any process raises UserError on all."""
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
        """Wait for the last write, then delete old checkpoints."""
        self.wait()
        self._thread.shutdown()
        self._world.on_main(self._remove_old)  # a run that was killed at its end left one checkpoint too many

    @contextmanager
    def closing(self, stop: StopFlag) -> Iterator[None]:
        """Close the writer at the end of the block. If the run fails or stops within it, end its commands too."""
        try:
            yield
        except (UserError, Stopped):
            # All processes raise these together, so they can wait for the last write together.
            self.close()
            self.end_commands(stop)
            raise
        except BaseException:
            # A second Ctrl-C may reach only one process, which must not wait for the others. One process waits for a
            # running write, because the next owner of the folder may write the same checkpoint.
            if self._world.size == 1:
                self._thread.shutdown()
            raise
        self.close()

    def end_commands(self, stop: StopFlag) -> None:
        """Wait for the checkpoint commands. If the run is asked to stop, note the running ones and leave them.

        Only the main process starts commands. Call this after :meth:`close`.
        """
        for command, log in self._commands:
            while command.poll() is None and not stop:
                time.sleep(_POLL_S)
            if command.poll() is None:
                note(f"checkpoint.command is left running, its output goes to {log}")
            _note_failure(command)

    def _remove_scratch(self) -> None:
        """Delete the folders that a killed process was writing or deleting."""
        for path in self._folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)  # a network file system keeps files that a command still reads

    def _remove_old(self) -> None:
        if self._settings.keep is not None:
            for old in _newest_first(self._folder)[self._settings.keep :]:
                if old == self._best:
                    continue
                # The folder is renamed first, so that a kill leaves nothing that looks like a checkpoint.
                names = (self._folder / f".step-{old}.{number}.tmp" for number in count())
                scratch = next(path for path in names if not path.exists())  # one may be left, with a file in use
                _path(self._folder, old).rename(scratch)
                shutil.rmtree(scratch, ignore_errors=True)

    def _start_command(self, template: str, target: Path, step: int) -> None:
        """Run the user's command beside training and write its output to a file."""
        for running, _ in self._commands:
            _note_failure(running)
        self._commands = [(running, log) for running, log in self._commands if running.poll() is None]
        command = template
        for name, value in (("checkpoint", target), ("adapter", target / _ADAPTER), ("step", step)):
            command = command.replace(f"{{{name}}}", shlex.quote(str(value)))  # other braces belong to the shell
        log = self._folder / f"step-{step}.command.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                shell=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment_without_launcher(),
                # A Ctrl-C and torchrun's SIGTERM and SIGKILL go to the whole process group of training.
                start_new_session=True,
            )
        self._commands.append((process, log))


def restore(
    folder: Path, model: PreTrainedModel | PeftModel, optimizer: Optimizer, world: World, *, logged: int | None = None
) -> int:
    """Load the newest intact checkpoint of ``folder`` into ``model`` and ``optimizer``, and return its step, else 0.

    All processes call this. Damaged checkpoints are renamed to ``step-N.damaged`` and noted. If ``logged``, the number
    of steps in the metrics log, is given, a checkpoint after more steps counts as damaged, because the metrics of these
    steps would be missing.

    Raises:
        UserError: the checkpoint is intact but was not written by a run like this one.
    """
    step = world.on_main(lambda: _newest_intact(folder, logged))
    if step:
        _load(_path(folder, step), model, optimizer, world)
    return step


def restore_step(
    folder: Path, step: int, model: PreTrainedModel | PeftModel, optimizer: Optimizer, world: World
) -> None:
    """Load the checkpoint of ``step`` into ``model`` and ``optimizer``. All processes call this.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    path = _path(folder, step)
    if fault := world.on_main(lambda: damage(path)):
        raise UserError(
            f"the best step's checkpoint is gone or damaged: {fault}",
            where=str(path),
            mend="put it back from a copy, or train again in another -o",
        )
    _load(path, model, optimizer, world)


def _load(path: Path, model: PreTrainedModel | PeftModel, optimizer: Optimizer, world: World) -> None:
    state = _state(model, optimizer)
    _leave_out_unused(state["optimizer"]["state"], world.on_main(lambda: saved_names(path)))
    _quiet_alone()
    load_checkpoint(state, path, alone=world.size == 1)
    set_model_state_dict(model, state["model"], options=_TRAINED_ONLY)
    if getattr(optimizer, "is_paged", False):
        _set_paged(optimizer, model, state["optimizer"])
    else:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_TRAINED_ONLY)


def _leave_out_unused(moments: dict[str, Any], saved: Collection[str]) -> None:
    """Drop from ``moments``, the optimizer state by weight, the weights of which the checkpoint has none.

    An optimizer makes the state of a weight at its first gradient, and there may have been none, as for adapters in a
    part of a model that runs without gradients.
    """
    unused = [
        weight for weight, values in moments.items() if not any(f"{_MOMENTS}{weight}.{key}" in saved for key in values)
    ]
    if len(unused) < len(moments):  # a checkpoint without any moments is not one of this run
        for weight in unused:
            del moments[weight]


def _set_paged(optimizer: Any, model: nn.Module, state: dict[str, Any]) -> None:
    """Set the state of a paged optimizer of bitsandbytes, whose tensors are in its own buffers already.

    Its own ``load_state_dict`` would copy the buffers to the device, for good.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        group.update((key, value) for key, value in saved.items() if key != "params")
    for weight in [*optimizer.state]:
        if (saved := state["state"].get(names[weight])) is None:
            del optimizer.state[weight]
            continue
        own = optimizer.state[weight]
        own.update((key, value) for key, value in saved.items() if key in own and not isinstance(value, Tensor))


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    # ignore_frozen_params alone lets the frozen head of a tied model through: 113 MB for the embedded one.
    trained = trained_parameters(model)
    weights = get_model_state_dict(model, options=_TRAINED_ONLY)
    return {
        "model": {name: value for name, value in weights.items() if name in trained},
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_TRAINED_ONLY),
    }


def _quiet_alone() -> None:
    """Silence torch's warning that there is no process group, in all threads: one process needs none."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _scratch(folder: Path, step: int) -> Path:
    return folder / f".step-{step}.tmp"


def _newest_first(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _newest_intact(folder: Path, logged: int | None) -> int:
    """Return the step of the newest intact checkpoint, 0 if there is none; damaged ones are put aside."""
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
    """Return the environment without torchrun's variables, which would make another program wait for processes."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in launcher and not name.startswith("TORCHELASTIC_")
    }


def _note_failure(command: subprocess.Popen[bytes]) -> None:
    if code := command.poll():
        note(f"checkpoint.command ended with {code}: {command.args!r}; its output is beside the checkpoints")
