"""benchmarks/soak.py: two rounds leave nothing behind, and a leak would be told."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import theilslopes


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import soak

    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return soak


@pytest.mark.slow
def test_a_round_leaves_nothing_behind(soak: ModuleType, tmp_path: Path) -> None:
    model = soak.prepare(tmp_path)
    with soak.stub_process(model) as url, soak.tokens_not_cached():
        first, second = (soak.run_round(tmp_path, model, url, {}) for _ in range(2))
    assert first.leftovers == second.leftovers == 0
    assert first.written == second.written > 100
    for held in ("open_files", "threads", "python_threads", "children", "temporary_files"):
        # Fewer are no leak: what tests before this one left may end meanwhile.
        assert getattr(second, held) <= getattr(first, held), held
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("documents.jsonl", "empty.yaml", "longbench.jsonl", "model", "said.txt", "tmp")
    ]


def test_what_a_command_leaves_behind_is_counted(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    held: list[Any] = []

    def leaking(arguments: list[str]) -> int:
        (tmp_path / "round").mkdir()
        (tmp_path / "round" / ".step-1.tmp").touch()
        held.extend([tempfile.NamedTemporaryFile(delete=False), threading.Thread(target=over.wait)])  # noqa: SIM115
        held[-1].start()
        held.append(subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL))
        return 3

    monkeypatch.setattr(soak, "commands", lambda *_: [("logodata", ["x"], 3)])
    monkeypatch.setitem(soak.PROGRAMS, "logodata", leaking)
    born: dict[str, str] = {}
    states = [soak.run_round(tmp_path, tmp_path, "", born) for _ in range(3)]
    over.set()
    for file in held[::3]:
        file.close()
    for process in held[2::3]:
        process.kill()
        process.wait()
    for name in ("open_files", "threads", "python_threads", "children", "temporary_files"):
        first, second, third = (getattr(state, name) for state in states)
        assert third - second == second - first == 1, name
    assert [state.leftovers for state in states] == [1, 1, 1]
    assert [sum(state.threads_from.values()) for state in states] == [state.threads for state in states]
    assert [state.threads_from["logodata x"] - states[0].threads_from["logodata x"] for state in states] == [0, 1, 2]


@pytest.fixture
def make_states(soak: ModuleType) -> Callable[..., list[Any]]:
    """Fifty rounds of noise around 700 MiB; a keyword gives a field as a function of the round's number."""
    state = soak.State(
        seconds=9.0,
        anonymous_mib=700.0,
        objects=637_000,
        open_files=9,
        threads=7,
        python_threads=4,
        children=0,
        temporary_files=1,
        leftovers=0,
        written=147,
        threads_from={},
    )
    noise = [(7 * n) % 11 - 5 for n in range(50)]  # without a trend

    def make(**fields: Callable[[int], float]) -> list[Any]:
        values = [{name: value(n) for name, value in fields.items()} for n in range(50)]
        return [
            replace(state, **{**row, "anonymous_mib": noise[n] + row.get("anonymous_mib", 700.0)})
            for n, row in enumerate(values)
        ]

    return make


def test_noise_and_what_warms_up_are_no_leak(soak: ModuleType, make_states: Callable[..., list[Any]]) -> None:
    assert soak.judge(make_states())["leaks"] == []
    warm = {"anonymous_mib": lambda n: 700.0 + 50 * min(n, 8), "open_files": lambda n: min(n, 9)}
    assert soak.judge(make_states(**warm))["leaks"] == []
    assert soak.judge(make_states(threads=lambda n: 7 + (n > 25)))["leaks"] == [], "a pool that fills up"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anonymous_mib", lambda n: 700 + 0.3 * n),
        ("objects", lambda n: 637_000 + 9 * n),
        ("open_files", lambda n: 9 + n // 20),
        ("threads", lambda n: 7 + n),
        ("children", lambda n: n // 30),
        ("temporary_files", lambda n: 1 + n // 10),
        ("leftovers", lambda n: n == 30),
        ("written", lambda n: 147 + n),
    ],
)
def test_a_leak_is_told(
    soak: ModuleType, make_states: Callable[..., list[Any]], name: str, value: Callable[[int], float]
) -> None:
    (leak,) = soak.judge(make_states(**{name: value}))["leaks"]
    assert leak.startswith(name)


def test_the_slope_is_theil_and_sen_s(soak: ModuleType) -> None:
    rng = np.random.default_rng(1)
    for count in (5, 20, 61):
        values = rng.normal(0, 1, count) + 0.1 * np.arange(count)
        expected = theilslopes(values, np.arange(count))
        found = soak.slope(list(values))
        assert [found.value, found.low, found.high] == pytest.approx([expected[0], expected[2], expected[3]])
