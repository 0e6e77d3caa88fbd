"""What the main process meets reaches the others, and a machine with too few GPUs says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import distributed

from logodata.common.errors import UserError
from logotrain.parallel import World, launched


@pytest.mark.parametrize(
    ("error", "sent"),
    [(UserError("no"), UserError), (OSError(28, "full"), OSError), (ValueError("a bug"), RuntimeError)],
)
def test_an_exception_of_the_main_process_is_told_to_those_that_wait(
    error: Exception, sent: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def send(outcome: list[Any], src: int) -> None:
        told.append((src, copy.copy(outcome)))

    monkeypatch.setattr(distributed, "broadcast_object_list", send)

    def action() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        World(0, 2).on_main(action)
    assert caught.value is error
    [(source, [value, fault])] = told
    assert (source, value) == (0, None)
    assert type(fault) is sent

    def receive(outcome: list[Any], **_: int) -> None:
        outcome[:] = [value, fault]

    monkeypatch.setattr(distributed, "broadcast_object_list", receive)
    with pytest.raises(sent):
        World(1, 2).on_main(action)


def test_more_processes_than_gpus_are_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match=r"4 processes on this machine, which has 2 GPUs \(--nproc-per-node 2\)"),
        launched(),
    ):
        pass
