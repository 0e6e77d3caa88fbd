"""One fork server for the tests, and each command run through once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.faults.layer import ForkServer, compile_shim
from tests.faults.points import Trial
from tests.faults.scenarios import Scenario, make_scenarios


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compile_shim(tmp_path_factory.mktemp("shim"))
    if found is None:
        pytest.skip("no C compiler, or no Linux")
    return found


@pytest.fixture(scope="session")
def server(shim: Path) -> Iterator[ForkServer]:
    with ForkServer(shim) as server:
        yield server


@pytest.fixture(scope="session")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    return make_scenarios(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def trial(
    server: ForkServer, scenarios: dict[str, Scenario], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trial]:
    """``trial(name)``: of a scenario, its uninterrupted run made once."""

    @cache
    def make(name: str) -> Trial:
        return Trial(server.run, scenarios[name], tmp_path_factory.mktemp("trial") / "folder")

    return make
