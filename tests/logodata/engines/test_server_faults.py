"""OpenAI-compatible servers that misbehave, over loopback connections: a retry that succeeds, or one clear line."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main
from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.openai_engine import OpenAIEngine
from logodata.engines.settings import EngineSettings
from tests.logodata.engines.stub_server import KEY, STOP, StubServer, free_url, make_answer, write_documents


@pytest.fixture
def server(new_server: Callable[..., StubServer]) -> StubServer:
    return new_server()


def make_engine(*servers: StubServer | str, **options: Any) -> OpenAIEngine:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    own = {name: options.pop(name) for name in ("api_key", "needs_adapter") if name in options}
    settings = EngineSettings(base_urls=urls, **{"timeout_s": 5.0, **options})
    return OpenAIEngine(settings, "m", **{"first_wait_s": 0.002, "api_key": KEY, **own})


def make_requests(count: int) -> list[GenerationRequest]:
    sampling = Sampling(4, (STOP,), temperature=0.5, top_p=0.9)
    return [GenerationRequest(f"r{n}", (*range(3, 8 + n % 5), n + 10), sampling) for n in range(count)]


def right(requests: list[GenerationRequest]) -> dict[str, GenerationResult]:
    return {r.id: GenerationResult(r.id, (r.prompt_ids[-1] + 1,), "stop") for r in requests}


def by_id(results: Iterator[GenerationResult]) -> dict[str, GenerationResult]:
    collected = list(results)
    assert len({result.id for result in collected}) == len(collected)
    return {result.id: result for result in collected}


REQUESTS = make_requests(5)


def test_token_ids_and_everything_that_shapes_sampling_are_sent(server: StubServer) -> None:
    engine = make_engine(server)
    assert by_id(engine.generate(REQUESTS)) == right(REQUESTS)
    assert list(engine.generate([])) == []
    assert engine.name == "openai (test)"
    assert server.keys == {f"Bearer {KEY}"}
    body = next(body for body in server.bodies if body["prompt"][-1] == 10)
    assert body["prompt"] == list(REQUESTS[0].prompt_ids)
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stop_token_ids"]) == (0.5, 0.9, 4, [STOP])
    # What vLLM would take from the model's generation config.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["ignore_eos"]) == (0, 0.0, 1.0, True)
    assert len({body["seed"] for body in server.bodies}) == len(REQUESTS)
    list(engine.generate([replace(REQUESTS[0], sampling=Sampling(4, (STOP,), 0.0, 0.9))]))
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["top_p"]) == (0.0, 1.0)


MENDED = [
    *("408", "409", "429", "429 soon", "429 on a date", "429 nonsense", "500", "502", "503", "503 soon"),
    *("hang up", "reset", "half the body", "reset halfway", "half JSON", "HTML", "nothing", "not UTF-8", "deep JSON"),
    *("broken gzip", "abort"),
]


@pytest.mark.parametrize("fault", MENDED)
def test_a_fault_that_passes_is_tried_again(server: StubServer, fault: str) -> None:
    server.script = [fault, "good", fault]
    assert by_id(make_engine(server, concurrency=1).generate(REQUESTS)) == right(REQUESTS)
    assert len(server.bodies) == len(REQUESTS) + 2
    assert set(server.answered.values()) == {1}


def test_a_storm_passes(server: StubServer) -> None:
    requests = make_requests(30)
    server.script = ["500"] * 8 + ["reset", "HTML", "429"]
    assert by_id(make_engine(server, concurrency=8).generate(requests)) == right(requests)
    assert set(server.answered.values()) == {1}


def test_a_slow_answer_is_not_waited_for(server: StubServer) -> None:
    engine = make_engine(server, timeout_s=0.3, max_retries=1)
    server.script = ["held"]
    assert by_id(engine.generate(REQUESTS)) == right(REQUESTS)
    server.script = ["held", "held"]
    with pytest.raises(UserError, match=r"request 'r0': failed 2 times, at last: no answer within 0.3 s"):
        list(engine.generate(REQUESTS[:1]))


LASTING = [
    ("500", "HTTP 500: bad key \\*\\*\\* "),
    ("429", "HTTP 429: bad key \\*\\*\\* "),
    ("429 soon", "HTTP 429"),
    ("hang up", "no whole answer: RemoteProtocolError"),
    ("reset", "no whole answer: ReadError"),
    ("half the body", "no whole answer: RemoteProtocolError"),
    ("broken gzip", "not JSON|no whole answer"),
    ("half JSON", "the answer is not JSON"),
    ("HTML", "the answer is not JSON: <html>"),
    ("nothing", "the answer is not JSON: empty answer"),
    ("abort", "the server aborted the response"),
]
FINAL = [
    *((status, f"HTTP {status}: bad key \\*\\*\\* ") for status in ("301", "400", "401", "403", "404", "422")),
    ("an error", r"holds no choice: \{'error': \{'message': 'no \*\*\*'\}\}"),
    *((fault, "holds no choice") for fault in ("a list", "null", "no choices", "choices null", "choice null")),
    ("two choices", "2 choices, one was asked for"),
    *((fault, "no token ids") for fault in ("text only", "ids null", "ids a string")),
    ("string ids", "'4' is not a token id"),
    ("negative ids", "-1 is not a token id"),
    ("fractional ids", "4.0 is not a token id"),
    ("null ids", "None is not a token id"),
    ("true ids", "True is not a token id"),
    ("too many ids", "10 tokens that end with 'stop', where at most 4 were asked for"),
    ("cut by the server", "2 tokens that end with 'length', where at most 4 were asked for"),
    ("no stop", "does not end at its stop token"),
    ("no ids at all", "does not end at its stop token"),
    ("content filter", "generation ended with 'content_filter'"),
    ("no reason", "generation ended with None"),
    ("reason a list", "generation ended with"),
]


@pytest.mark.parametrize(("fault", "message", "tries"), [(*row, 3) for row in LASTING] + [(*row, 1) for row in FINAL])
def test_a_fault_that_lasts_ends_in_one_line(server: StubServer, fault: str, message: str, tries: int) -> None:
    server.script, server.always = ["good", "good"], fault
    engine = make_engine(server, concurrency=1, max_retries=2)
    results: list[GenerationResult] = []
    with pytest.raises(UserError, match=message) as caught:
        results.extend(engine.generate(REQUESTS[:3]))
    ordered = sorted(REQUESTS[:3], key=lambda request: request.prompt_ids)
    assert [result.id for result in results] == [request.id for request in ordered[:2]], "what came before is not lost"
    line = str(caught.value)
    assert line.startswith(server.url)
    assert line.endswith(")"), "it says how to mend it"
    assert KEY not in line
    assert "second line" not in line
    assert len(server.bodies) == 2 + tries


def test_an_api_key_that_no_header_can_carry_is_refused_and_not_shown(server: StubServer) -> None:
    for key in ("sekret\n", "sek ret\x00", "sekr\xe9t"):
        with pytest.raises(UserError, match="the API key holds") as caught:
            make_engine(server, api_key=key)
        assert key[:3] not in str(caught.value)


def test_what_is_not_served_is_refused(new_server: Callable[..., StubServer]) -> None:
    good, server = new_server(), new_server()
    server.cards = [{"id": "other"}, {"id": "third"}]
    with pytest.raises(UserError, match="serves other, third, not m"):
        make_engine(good, server)
    server.cards = [{"id": "m", "parent": None}]
    with pytest.raises(UserError, match="not an adapter"):
        make_engine(server, needs_adapter=True)
    server.cards = [{"id": "m", "parent": "base"}]
    make_engine(server, needs_adapter=True)
    server.cards = [{"id": "m", "max_model_len": "many"}]
    with pytest.raises(UserError, match="max_model_len is 'many'"):
        make_engine(server)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("HTML", "the answer is not JSON: <html>"),
        ("503", r"HTTP 503: bad key \*\*\*"),
        ("401", r"models: HTTP 401: bad key \*\*\* \(check engine.base_urls and engine.api_key_env"),
        ("404", "models: HTTP 404"),
        ("a list", "not a list of models"),
        ("hang up", "no whole answer"),
    ],
)
def test_the_start_needs_a_server_that_says_what_it_serves(server: StubServer, fault: str, message: str) -> None:
    server.models = fault
    with pytest.raises(UserError, match=message) as caught:
        make_engine(server)
    assert server.url in str(caught.value)
    assert KEY not in str(caught.value)


def test_with_no_server_at_the_start_the_error_names_each() -> None:
    one, two = free_url(), free_url()
    with pytest.raises(UserError, match=f"{one}/v1: cannot reach the server: .*; {two}/v1: cannot reach the server: "):
        make_engine(one, two)


def test_vllm_is_asked_for_its_version_and_window(server: StubServer) -> None:
    server.cards = [{"id": "m", "owned_by": "vllm", "max_model_len": 12}]
    engine = make_engine(server)
    assert engine.name == "openai (vllm 9.9)"
    with pytest.raises(UserError, match="request 'r3': 9 prompt and 4 new tokens exceed the window 12"):
        next(engine.generate(REQUESTS))
    assert not server.bodies


# several servers


def test_work_is_spread_in_stretches_of_the_sorted_prompts(new_server: Callable[..., StubServer]) -> None:
    first, second = new_server(), new_server()
    requests = make_requests(40)
    assert by_id(make_engine(first, second).generate(requests)) == right(requests)
    ordered = sorted(r.prompt_ids for r in requests)
    assert set(map(tuple, (b["prompt"] for b in first.bodies[:5]))) <= set(ordered[:20])
    assert not first.answered & second.answered
    assert set((first.answered + second.answered).values()) == {1}


def test_a_server_that_is_down_at_the_start_is_noted_and_used_when_it_comes(
    new_server: Callable[..., StubServer], capsys: pytest.CaptureFixture[str]
) -> None:
    good, late = new_server(), new_server()
    late.models = "503"
    engine = make_engine(late, good, concurrency=2)
    line = f"{late.url}/v1: HTTP 503: bad key ***; the other servers go on without it, and it is asked again\n"
    assert capsys.readouterr().err.replace("*** ;", "***;") == line
    requests = make_requests(30)
    assert by_id(engine.generate(requests)) == right(requests)
    assert not late.bodies
    assert capsys.readouterr().err == "", "it is noted once"
    late.models, good.delay_s = "good", 0.02
    for _ in range(50):
        assert by_id(engine.generate(requests)) == right(requests)
        if late.answered:
            break
    assert capsys.readouterr().err == f"{late.url}/v1 answers again\n"


def test_a_server_that_comes_back_with_another_model_is_left_alone(new_server: Callable[..., StubServer]) -> None:
    good, late = new_server(), new_server()
    late.models = "503"
    engine = make_engine(late, good, concurrency=1)
    late.models, late.cards, good.delay_s = "good", [{"id": "other"}], 0.01
    assert by_id(engine.generate(REQUESTS)) == right(REQUESTS)
    late.cards = [{"id": "m", "max_model_len": 20}]
    assert by_id(engine.generate(REQUESTS)) == right(REQUESTS)
    assert not late.bodies, "its window is smaller than the one that requests were checked against"


def test_one_of_two_servers_dies_halfway(
    new_server: Callable[..., StubServer], capsys: pytest.CaptureFixture[str]
) -> None:
    good, mortal = new_server(), new_server()
    mortal.dies_after, good.delay_s = 10, 0.005
    requests = make_requests(120)
    assert by_id(make_engine(good, mortal, concurrency=4).generate(requests)) == right(requests)
    assert mortal.answered.total() == 10
    assert good.answered.total() == 110
    assert set((good.answered + mortal.answered).values()) == {1}
    assert capsys.readouterr().err.count("\n") <= 1


def test_all_servers_die(new_server: Callable[..., StubServer]) -> None:
    one, two = new_server(), new_server()
    one.dies_after = two.dies_after = 10
    requests = make_requests(120)
    results: list[GenerationResult] = []
    with pytest.raises(UserError, match=f"{one.url}/v1: failed .*; {two.url}/v1: failed .* at last: ") as caught:
        results.extend(make_engine(one, two, concurrency=4, max_retries=2).generate(requests))
    assert KEY not in str(caught.value)
    assert {r.id: r for r in results}.items() <= right(requests).items()


def test_results_before_an_error_are_all_yielded(server: StubServer) -> None:
    server.dies_after = 17
    results: list[GenerationResult] = []
    with pytest.raises(UserError, match=r"cannot reach the server|no whole answer"):
        results.extend(make_engine(server, concurrency=1, max_retries=1).generate(make_requests(40)))
    assert len(results) == server.answered.total() == 17


# limits and interruptions


def test_rate_limits_are_kept(server: StubServer) -> None:
    engine = make_engine(server, requests_per_minute=1200)  # 20 at once, then one in 50 ms
    start = time.monotonic()
    assert len(by_id(engine.generate(make_requests(24)))) == 24
    assert time.monotonic() - start > 0.19
    engine = make_engine(server, tokens_per_minute=12)
    with pytest.raises(UserError, match="request 'r3': 13 tokens exceed tokens_per_minute 12"):
        next(engine.generate(REQUESTS))


def test_it_stops_when_the_caller_does(server: StubServer) -> None:
    server.script, server.always = ["good"], "held"
    results = make_engine(server, concurrency=2).generate(make_requests(20))
    next(results)
    results.close()
    assert not server.gate.is_set(), "it did not wait for those in flight"
    assert len(server.bodies) <= 3
    assert not any(thread.name == "openai-engine" for thread in threading.enumerate())


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler, which is missing where pytest was started in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_stops_it_at_once(server: StubServer) -> None:
    requests = make_requests(20)
    results: list[GenerationResult] = []

    def answer(prompt: list[int]) -> list[int]:
        if len(server.bodies) == 6:
            while len(results) < 5:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            server.gate.wait(30)
        return [prompt[-1] + 1, STOP]

    server.answer = answer
    with pytest.raises(KeyboardInterrupt):
        results.extend(make_engine(server, concurrency=1).generate(requests))
    assert not server.gate.is_set()
    assert len(server.bodies) == 6
    assert len(results) == 5, "what was answered before is with the caller"
    assert not any(thread.name == "openai-engine" for thread in threading.enumerate())


# a whole build


def run_build(documents: Path, model: Path, server: StubServer, output: Path) -> int:
    overrides = [
        *("chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"),
        *("contexts.critical_top=2", "generation.max_new_tokens=40", "engine.kind=openai", "engine.served_model=m"),
        *(f'engine.base_urls=["{server.url}"]', "engine.concurrency=1", "engine.max_retries=0"),
    ]
    return main(["build", str(documents), *overrides, "--model", str(model), "-o", str(output)])


@pytest.mark.parametrize("dies_after", [0, 2, 6])
def test_a_build_goes_on_after_its_server_died(
    tmp_path: Path,
    tiny_model_dir: Path,
    new_server: Callable[..., StubServer],
    capsys: pytest.CaptureFixture[str],
    dies_after: int,
) -> None:
    documents = write_documents(tmp_path)
    whole, mortal = new_server(), new_server()
    whole.answer, mortal.answer = make_answer(tiny_model_dir), make_answer(tiny_model_dir)
    whole.cards = mortal.cards = [{"id": "m"}]
    assert run_build(documents, tiny_model_dir, whole, tmp_path / "whole") == 0
    mortal.dies_after = dies_after
    capsys.readouterr()
    assert run_build(documents, tiny_model_dir, mortal, tmp_path / "broken") == 2
    read, error = capsys.readouterr().err.splitlines()
    assert read.endswith("read as jsonl")
    assert error.startswith("logodata: error: ")
    assert mortal.url in error
    assert "run the same command again to continue" in error
    assert not (tmp_path / "broken" / "manifest.json").exists()

    back = new_server(mortal.port)
    back.answer, back.cards = mortal.answer, mortal.cards
    assert run_build(documents, tiny_model_dir, back, tmp_path / "broken") == 0
    assert mortal.answered.total() == dies_after
    assert set((mortal.answered + back.answered).values()) == {1}, "nothing is asked for twice"
    assert mortal.answered + back.answered == whole.answered, "nothing is lost"
    for name in ("data/train-00000-of-00001.parquet", "stats.json", "rejected.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
