"""Checkpoints: what comes back, what is kept, and what a damaged one does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.optim import AdamW
from transformers import LlamaForCausalLM

from logodata.common.errors import UserError
from logotrain.checkpoints import export, safe_reading, saving
from logotrain.interrupt import StopFlag
from logotrain.model.adapters import add_adapters
from logotrain.parallel import World
from logotrain.recipe.settings import CheckpointSettings, LoraSettings


@pytest.fixture
def make_trainable(tiny_model: LlamaForCausalLM) -> Callable[[], tuple[PeftModel, AdamW]]:
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def make(tied: bool = False, train_embeddings: bool = False) -> tuple[PeftModel, AdamW]:
        tiny_model.config.tie_word_embeddings = tied
        base = LlamaForCausalLM(tiny_model.config)
        base.load_state_dict(state)
        model = add_adapters(base, LoraSettings(rank=2, alpha=4, train_embeddings=train_embeddings), name="tiny")
        return model, AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)

    return make


def advance(model: PeftModel, optimizer: AdamW) -> None:
    """An update that depends on weights and both moments."""
    ids = torch.arange(3, 250, 28)[None]
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def save(folder: Path, step: int, model: Any, optimizer: AdamW, **settings: Any) -> None:
    writer = saving.CheckpointWriter(folder, CheckpointSettings(**settings), World())
    writer.save(step, model, optimizer)
    writer.close()


def restore(folder: Path, model: Any, optimizer: AdamW) -> int:
    return saving.restore(folder, model, optimizer, World())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Unused(nn.Module):
    """One layer gets gradients and the other none, as in a part of a model that runs without them."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            bias = self.unused(inputs)
        return self.used(inputs) + bias


def test_weights_that_get_no_gradient_keep_no_run_from_going_on(tmp_path: Path) -> None:
    def advance_once(model: Unused, optimizer: AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    model = Unused()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = AdamW(model.parameters(), lr=0.1)
    advance_once(model, optimizer)
    save(tmp_path, 1, model, optimizer)
    advance_once(model, optimizer)

    again = Unused()
    again_optimizer = AdamW(again.parameters(), lr=0.1)
    assert restore(tmp_path, again, again_optimizer) == 1
    assert len(again_optimizer.state) == 2  # of the used layer, as without a stop
    advance_once(again, again_optimizer)
    assert_same(trained(again), trained(model))
    assert torch.equal(again.unused.weight, start["unused.weight"])


@pytest.mark.parametrize(("tied", "train_embeddings"), [(False, False), (False, True), (True, True)])
def test_restored_run_goes_on_bit_for_bit(
    make_trainable: Callable[..., tuple[PeftModel, AdamW]], tmp_path: Path, tied: bool, train_embeddings: bool
) -> None:
    model, optimizer = make_trainable(tied, train_embeddings)
    for _ in range(2):
        advance(model, optimizer)
    save(tmp_path, 2, model, optimizer, keep=2)
    advance(model, optimizer)
    expected = trained(model)

    torch.manual_seed(12345)
    other, other_optimizer = make_trainable(tied, train_embeddings)
    assert restore(tmp_path, other, other_optimizer) == 2
    advance(other, other_optimizer)
    assert_same(trained(other), expected)


def test_one_of_an_earlier_version_holds_random_states_besides(
    make_trainable: Callable[..., tuple[PeftModel, AdamW]], tmp_path: Path
) -> None:
    model, optimizer = make_trainable()
    advance(model, optimizer)
    state = saving._state(model, optimizer) | {"rng": {"0-of-1": {"cpu": torch.get_rng_state()}}}
    save_distributed(state, checkpoint_id=tmp_path / "scratch", no_dist=True)
    saving.seal(tmp_path / "scratch", tmp_path / "step-1")
    other, other_optimizer = make_trainable()
    assert restore(tmp_path, other, other_optimizer) == 1
    assert_same(trained(other), trained(model))


@pytest.mark.parametrize("tied", [False, True])
def test_holds_trained_weights_only(
    make_trainable: Callable[..., tuple[PeftModel, AdamW]], tmp_path: Path, tied: bool
) -> None:
    model, optimizer = make_trainable(tied)
    advance(model, optimizer)
    save(tmp_path, 1, model, optimizer, keep=2)
    keys = FileSystemReader(tmp_path / "step-1").read_metadata().state_dict_metadata
    assert {key.removeprefix("model.") for key in keys if key.startswith("model.")} == trained(model).keys()
    assert not list(tmp_path.glob(".*"))


def test_keeps_the_newest(make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path) -> None:
    model, optimizer = make_trainable()
    for step in (2, 4, 10):
        save(tmp_path, step, model, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-4"]


def test_no_checkpoint_is_step_zero(make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path) -> None:
    model, optimizer = make_trainable()
    before = trained(model)
    assert restore(tmp_path / "none", model, optimizer) == 0
    assert_same(trained(model), before)


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "file gone", "list gone", "list damaged"])
def test_a_damaged_one_is_put_aside_and_the_one_before_used(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    model, optimizer = make_trainable()
    advance(model, optimizer)
    save(tmp_path, 1, model, optimizer, keep=3)
    expected = trained(model)
    advance(model, optimizer)
    save(tmp_path, 2, model, optimizer, keep=3)

    (weights,) = (tmp_path / "step-2").glob("*.distcp")
    if damage == "flipped byte":
        flip_a_byte(weights)
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "file gone":
        weights.unlink()
    elif damage == "list gone":
        (tmp_path / "step-2" / "files.json").unlink()
    else:
        (tmp_path / "step-2" / "files.json").write_text("[")

    other, other_optimizer = make_trainable()
    assert restore(tmp_path, other, other_optimizer) == 1
    assert_same(trained(other), expected)
    assert "step-2 is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2.damaged"]
    # Written again, the step takes its place.
    save(tmp_path, 2, other, other_optimizer, keep=1)
    assert restore(tmp_path, other, other_optimizer) == 2


def test_an_interrupted_write_leaves_the_old_ones(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make_trainable()
    save(tmp_path, 1, model, optimizer, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "seal", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, 2, model, optimizer, keep=1)
    monkeypatch.undo()
    assert restore(tmp_path, model, optimizer) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_holds_the_moment_it_was_asked_for(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: bool,
) -> None:
    """Training goes on while a checkpoint is written; none of that may get into it."""
    model, optimizer = make_trainable()
    advance(model, optimizer)
    expected = trained(model)
    writer = saving.CheckpointWriter(tmp_path, CheckpointSettings(asynchronous=asynchronous), World())
    may_write = threading.Event()
    seal = saving.seal

    def slow(scratch: Path, target: Path) -> None:
        assert may_write.wait(20)
        seal(scratch, target)

    monkeypatch.setattr(saving, "seal", slow)
    if not asynchronous:
        may_write.set()
    writer.save(1, model, optimizer)
    advance(model, optimizer)
    assert (tmp_path / "step-1").exists() == (not asynchronous)
    may_write.set()
    writer.close()
    other, other_optimizer = make_trainable()
    assert restore(tmp_path, other, other_optimizer) == 1
    assert_same(trained(other), expected)
    adapter = load_file(tmp_path / "step-1" / "adapter" / "adapter_model.safetensors")
    by_name = {name.replace(".default", ""): value for name, value in expected.items()}
    assert_same(adapter, by_name)


def test_keep_none_keeps_all(make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path) -> None:
    model, optimizer = make_trainable()
    for step in (1, 2, 3):
        save(tmp_path, step, model, optimizer, keep=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2", "step-3"]


def test_runs_a_command_after_each_checkpoint(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model, optimizer = make_trainable()
    command = f"ls {{adapter}} > {tmp_path}/seen-{{step}}; echo size=${{WORLD_SIZE}}; exit {{step}}"
    writer = saving.CheckpointWriter(tmp_path / "checkpoints", CheckpointSettings(command=command), World())
    for step in (0, 3):
        writer.save(step, model, optimizer)
    writer.close()
    writer.end_commands(StopFlag())
    assert "adapter_model.safetensors" in (tmp_path / "seen-3").read_text()
    assert (tmp_path / "checkpoints" / "step-3.command.log").read_text() == "size=\n"
    said = capsys.readouterr().err
    assert said.count("checkpoint.command ended with") == 1
    assert "checkpoint.command ended with 3" in said


def test_a_stop_leaves_commands_running_in_a_session_of_their_own(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal and torchrun signal the whole process group of training: a command in it would not be left."""
    model, optimizer = make_trainable()
    command = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo done"
    writer = saving.CheckpointWriter(tmp_path / "checkpoints", CheckpointSettings(command=command), World())
    writer.save(3, model, optimizer)
    writer.close()
    stop = StopFlag()
    stop.set()
    writer.end_commands(stop)
    log = tmp_path / "checkpoints" / "step-3.command.log"
    assert f"checkpoint.command is left running, its output goes to {log}" in capsys.readouterr().err
    ((process, _),) = writer._commands
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    (tmp_path / "go").touch()
    assert process.wait(20) == 0
    assert log.read_text() == "done\n"


def test_what_a_kill_left_is_removed(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder half written, one half deleted, and one too many: none of them stays, or looks like a checkpoint."""
    model, optimizer = make_trainable()
    for step in (1, 2):
        save(tmp_path, step, model, optimizer, keep=None)
    writer = saving.CheckpointWriter(tmp_path, CheckpointSettings(keep=1), World())
    (tmp_path / ".step-7.tmp").mkdir()
    (tmp_path / ".step-7.tmp" / "half").touch()

    def killed(folder: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            writer._remove_old()
    assert not (tmp_path / "step-1").exists()
    save(tmp_path, 3, model, optimizer, keep=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]
    # Killed after the last checkpoint: the run that goes on has none to write.
    saving.CheckpointWriter(tmp_path, CheckpointSettings(keep=1), World()).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("where", ["torch", "safetensors"])
def test_a_full_disk_is_one_line(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    asynchronous: bool,
) -> None:
    """Neither torch's report of all processes' tracebacks nor an error that is no OSError comes through."""
    model, optimizer = make_trainable()

    def full(*_: object, **__: object) -> None:
        if where == "safetensors":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    target = (export, "save_file") if where == "safetensors" else (os, "fsync")
    monkeypatch.setattr(*target, full)
    with pytest.raises(UserError, match=r"cannot write: [^\n]*No space left on device") as caught:
        save(tmp_path, 1, model, optimizer, asynchronous=asynchronous)
    assert "Traceback" not in str(caught.value)
    assert restore(tmp_path, model, optimizer) == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("place", ["table", "value", "tensor"])
def test_what_stops_a_reading_is_no_fault_of_the_checkpoint(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
    place: str,
) -> None:
    """torch makes a fault of this process of it, whatever it is."""
    model, optimizer = make_trainable()
    save(tmp_path, 3, model, optimizer)

    def fail(*_: Any, **__: Any) -> Any:
        raise stop

    where: dict[str, tuple[Any, str]] = {
        "table": (safe_reading._Unpickler, "find_class"),
        "value": (safe_reading.torch, "load"),
        "tensor": (safe_reading.FileSystemReader, "read_data"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*where[place], fail)
        with pytest.raises(stop):
            restore(tmp_path, model, optimizer)
    assert restore(tmp_path, model, optimizer) == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_what_stops_a_writing_is_no_full_disk(
    make_trainable: Callable[[], tuple[PeftModel, AdamW]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise stop

    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    model, optimizer = make_trainable()
    with pytest.raises(stop):
        save(tmp_path, 3, model, optimizer, asynchronous=False)
