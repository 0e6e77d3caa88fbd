"""benchmarks/fault_proxy.py and faulty_server.py, in seconds and without vLLM: the client against every fault."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from logodata.engines import GenerationRequest, Sampling
from logodata.engines.openai_engine import OpenAIEngine
from logodata.engines.settings import EngineSettings
from tests.logodata.engines.stub_server import STOP, StubServer

REQUESTS = [GenerationRequest(f"r{n}", (*range(3, 8 + n % 5), n + 10), Sampling(4, (STOP,))) for n in range(200)]
RIGHT = {request.id: ((request.prompt_ids[-1] + 1,), "stop") for request in REQUESTS}


@pytest.fixture
def faulty_server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import faulty_server

    return faulty_server


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer()
    yield server
    server.close()


@pytest.fixture
def proxy(faulty_server: ModuleType, stub: StubServer) -> Iterator[Any]:
    proxy = sys.modules["fault_proxy"].FaultProxy(stub.url, delay_s=0.02, asked_s=0.02)
    yield proxy
    proxy.close()


def make_engine(proxy: Any, **options: Any) -> OpenAIEngine:
    settings = EngineSettings(base_urls=(proxy.url,), **{"concurrency": 8, "max_retries": 20, **options})
    return OpenAIEngine(settings, "m", first_wait_s=0.002)


def test_every_fault_and_storm_is_survived_and_counted(faulty_server: ModuleType, proxy: Any, stub: StubServer) -> None:
    kinds = [kind for kind in sys.modules["fault_proxy"].KINDS if kind != "silence"]
    storms = {90: ("503", 0.03), 120: ("429", 0.03), 150: ("reset", 0.03), 180: ("HTML with 502", 0.03)}
    plan = sys.modules["fault_proxy"].Plan(faults=dict(enumerate(kinds * 3, 1)), storms=storms)
    run = faulty_server.run_requests(make_engine(proxy), REQUESTS, proxy, plan)
    assert run.answers == RIGHT
    assert not run.doubled
    assert not run.reported
    counts = run.counts
    assert {kind for kind in kinds if counts.faults[kind] < 3} == set()
    in_vain = sum(counts.faults[kind] for kind in sys.modules["fault_proxy"].IN_VAIN)
    lives = [{"server_finished": stub.answered.total(), "came_back": counts.came_back}]
    assert faulty_server.faults_of_counting(counts, len(REQUESTS), lives) == []
    assert counts.passed_on == counts.came_back == len(REQUESTS) + in_vain
    assert counts.cut_off == counts.given_up == 0


def test_a_server_that_says_nothing_is_left_after_the_timeout(faulty_server: ModuleType, proxy: Any) -> None:
    plan = sys.modules["fault_proxy"].Plan(faults={1: "silence", 3: "silence"})
    engine = make_engine(proxy, timeout_s=0.3, concurrency=1)
    run = faulty_server.run_requests(engine, REQUESTS[:3], proxy, plan)
    assert run.answers == {request.id: RIGHT[request.id] for request in REQUESTS[:3]}
    assert run.counts.faults["silence"] == 2
    assert len(run.counts.delays) == 2


def test_a_server_that_dies_and_comes_back_elsewhere(faulty_server: ModuleType, proxy: Any) -> None:
    second = StubServer()

    def replace() -> None:
        proxy.go_down()
        proxy.upstream = second.url
        proxy.come_up()

    plan = sys.modules["fault_proxy"].Plan(events={100: replace})
    run = faulty_server.run_requests(make_engine(proxy), REQUESTS, proxy, plan)
    second.close()
    assert run.answers == RIGHT
    assert set(run.counts.delivered.values()) == {1}
    assert 0 < second.answered.total() <= len(REQUESTS) - 90


def test_what_is_given_up_is_reported(faulty_server: ModuleType, proxy: Any) -> None:
    plan = sys.modules["fault_proxy"].Plan(storms={50: ("hang up", 600.0)})
    run = faulty_server.run_requests(make_engine(proxy, max_retries=1), REQUESTS, proxy, plan)
    assert len(run.reported) == 5
    assert all(re.match(rf"{proxy.url}/v1(, request 'r\d+')?: failed \d+ times", line) for line in run.reported)
    assert run.answers.items() <= RIGHT.items()
    assert faulty_server.check_run(run, faulty_server.Run(RIGHT), REQUESTS) == [
        f"{len(REQUESTS) - len(run.answers)} requests without an answer"
    ]


def test_what_counts_do_not_agree_is_told(faulty_server: ModuleType) -> None:
    counts = sys.modules["fault_proxy"].Counts()
    counts.delivered.update(["a", "a", "b"])
    lives = [{"server_finished": 2, "came_back": 2}, {"server_finished": 3, "came_back": 2}]
    assert faulty_server.faults_of_counting(counts, 3, lives) == [
        "1 requests were asked again after their answer had arrived",
        "2 requests were answered, 3 were needed",
        "life 2 of the server: it finished 3, 2 came back",
    ]
    clean = faulty_server.Run({"r0": ((1,), "stop"), "r1": ((1,), "stop")})
    run = faulty_server.Run({"r0": ((2,), "stop"), "r1": ((1,), "stop")}, doubled=["r0"])
    assert faulty_server.check_run(run, clean, REQUESTS[:2]) == [
        "1 results came twice",
        "1 answers differ from the clean run's",
    ]


def test_what_faults_cost_counts_overlaps_once(faulty_server: ModuleType) -> None:
    counts = sys.modules["fault_proxy"].Counts(
        came_back=108, cut_off=2, outages=[(10.0, 14.0), (0.0, 2.0), (12.0, 15.0)]
    )
    counts.delivered.update(map(str, range(100)))
    counts.delays = [(1.0, 4.0), (11.0, 13.0)]
    assert faulty_server.cost(counts, clean_s=50.0, num_requests=100, concurrency=4) == {
        "clean_s": 50.0,
        "work_done_again_s": 5.0,
        "outages_s": 7.0,
        "delays_s": 0.5,
        "own_cost_s": 62.5,
    }
