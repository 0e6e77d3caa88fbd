from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.logodata.engines.stub_server import StubServer


@pytest.fixture
def new_server() -> Iterator[Callable[..., StubServer]]:
    servers: list[StubServer] = []

    def start(port: int = 0) -> StubServer:
        servers.append(StubServer(port))
        return servers[-1]

    yield start
    for server in servers:
        server.gate.set()
        server.close()
