"""Engines against independent references: full forwards without cache, naive sampling, a server that misbehaves."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import check_requests, common_prefix, finish, plan_batches, share_prefixes
from logodata.engines.openai_engine import OpenAIEngine, _spread
from logodata.engines.settings import EngineSettings, open_engine
from logodata.engines.transformers_engine import TransformersEngine, draw

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

STOP = 2


def make_requests(
    lengths: Sequence[int], sampling: Sampling, *, shared: int = 0, seed: int = 0
) -> list[GenerationRequest]:
    """Random prompts of these lengths; the first ``shared`` tokens are the same in all that are long enough."""
    rng = random.Random(seed)
    start = [rng.randrange(3, 260) for _ in range(shared)]
    requests = []
    for number, length in enumerate(lengths):
        ids = (start + [rng.randrange(3, 260) for _ in range(max(lengths))])[:length]
        requests.append(GenerationRequest(f"r{number}", tuple(ids), sampling))
    return requests


def by_id(results: Iterator[GenerationResult]) -> dict[str, GenerationResult]:
    collected = list(results)
    assert len({result.id for result in collected}) == len(collected)
    return {result.id: result for result in collected}


@torch.no_grad()
def reference_greedy(model: LlamaForCausalLM, request: GenerationRequest) -> GenerationResult:
    """One full forward a token: no cache, no padding, no mask."""
    ids, new = list(request.prompt_ids), []
    while len(new) < request.sampling.max_new_tokens:
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in request.sampling.stop_ids:
            return GenerationResult(request.id, tuple(new), "stop")
        ids.append(token)
        new.append(token)
    return GenerationResult(request.id, tuple(new), "length")


# batching


@given(st.lists(st.integers(0, 2), max_size=20), st.lists(st.integers(0, 2), max_size=20))
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert len(a) == length or len(b) == length or a[length] != b[length]


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(5, 60),
)
def test_batches_hold_every_request_once_within_the_limits(
    prompts: list[tuple[int, ...]], max_rows: int, max_tokens: int
) -> None:
    requests = [GenerationRequest(str(n), ids, Sampling(1, (STOP,))) for n, ids in enumerate(prompts)]
    batches = plan_batches(requests, max_tokens=max_tokens, max_rows=max_rows)
    groups = [group for batch in batches for group in batch]
    assert sorted(int(r.id) for group in groups for r in group.requests) == list(range(len(prompts)))
    for group in groups:
        for request in group.requests:
            assert request.prompt_ids[: group.prefix_length] == group.prefix_ids
            assert len(request.prompt_ids) > group.prefix_length
    for batch in batches:
        rows = sum(len(group.requests) for group in batch)
        widest = max(group.prefix_length for group in batch) + max(group.suffix_length for group in batch)
        assert rows <= max_rows
        assert rows == 1 or rows * widest <= max_tokens
    computed = sum(g.prefix_length + sum(len(r.prompt_ids) - g.prefix_length for r in g.requests) for g in groups)
    assert computed <= sum(len(ids) for ids in prompts)


def test_prompts_that_share_only_the_template_stay_apart() -> None:
    """Joining them would hide the long prefix that the second and the third share."""
    requests = make_requests([100, 100, 100], Sampling(1, (STOP,)), shared=10)
    twin = replace(requests[2], id="twin")
    groups = share_prefixes([*requests, twin], max_tokens=10_000, max_rows=10)
    assert sorted((group.prefix_length, len(group.requests)) for group in groups) == [(99, 1), (99, 1), (99, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ()}, "empty"),
        ({"prompt_ids": (5,) * 95}, "95 prompt and 6 new tokens exceed the window 100"),
        ({"id": "r0"}, "twice"),
        ({"sampling": Sampling(0, (STOP,))}, "out of range"),
        ({"sampling": Sampling(4, (STOP,), temperature=1.0, top_p=0.0)}, "out of range"),
    ],
)
def test_requests_that_no_engine_may_run_are_refused_by_id(change: dict[str, Any], message: str) -> None:
    good = make_requests([94, 94], Sampling(6, (STOP,)))
    check_requests(good, 100)
    with pytest.raises(UserError, match=message) as caught:
        check_requests([good[0], replace(good[1], **change)], 100)
    assert f"request {change.get('id', 'r1')!r}" in str(caught.value)


def test_outputs_of_engines_that_ignore_the_stop_ids_are_refused() -> None:
    request = make_requests([5], Sampling(4, (STOP, 9)))[0]
    assert finish(request, [5, 6, 9], "stop", where="e") == GenerationResult("r0", (5, 6), "stop")
    assert finish(request, [5, 6, 7, 8], "length", where="e") == GenerationResult("r0", (5, 6, 7, 8), "length")
    for token_ids, reason in (([5, 6], "stop"), ([], "stop"), ([5, 9, 6], "length"), ([5], "abort"), ([5], None)):
        with pytest.raises(UserError, match="r0"):
            finish(request, token_ids, reason, where="e")


# transformers


LENGTHS = [40, 1, 7, 41, 23, 2, 64, 30, 30]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("limits", [(16384, 32), (200, 3), (1, 1)])
def test_greedy_equals_full_forwards(tiny_model: LlamaForCausalLM, limits: tuple[int, int], attention: str) -> None:
    requests = make_requests(LENGTHS, Sampling(12, ()), shared=20)
    # A token that the model does produce ends some of the responses, at several lengths.
    free = [reference_greedy(tiny_model, request).token_ids for request in requests]
    stops = (free[0][4], free[3][7], free[6][0])
    requests = [replace(r, sampling=Sampling(3 + n, stops)) for n, r in enumerate(requests)]
    expected = {request.id: reference_greedy(tiny_model, request) for request in requests}
    assert {result.finish_reason for result in expected.values()} == {"stop", "length"}
    tiny_model.set_attn_implementation(attention)
    engine = TransformersEngine(tiny_model, max_batch_tokens=limits[0], max_batch_rows=limits[1])
    assert by_id(engine.generate(requests)) == expected


def test_sampled_results_do_not_depend_on_the_batch(tiny_model: LlamaForCausalLM) -> None:
    requests = make_requests(LENGTHS, Sampling(10, (STOP,), temperature=0.9, top_p=0.9, seed=3), shared=20)
    requests += [replace(request, id=f"again-{request.id}") for request in requests]
    together = by_id(TransformersEngine(tiny_model).generate(requests))
    backwards = by_id(TransformersEngine(tiny_model, max_batch_rows=3).generate(requests[::-1]))
    alone = {r.id: next(TransformersEngine(tiny_model).generate([r])) for r in requests}
    assert together == backwards == alone
    # Another id or another seed draws other numbers.
    assert together["r0"].token_ids != together["again-r0"].token_ids
    reseeded = replace(requests[0], sampling=replace(requests[0].sampling, seed=4))
    assert next(TransformersEngine(tiny_model).generate([reseeded])).token_ids != together["r0"].token_ids


def watch_shapes(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    forward = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    return shapes


def test_a_shared_prompt_is_prefilled_once(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_requests([100], Sampling(3, ()))[0]
    same = [replace(request, id=str(n)) for n in range(6)]
    longer = [
        replace(request, id=f"guided{n}", prompt_ids=(*request.prompt_ids[:90], *range(30, 50))) for n in range(2)
    ]
    shapes = watch_shapes(tiny_model, monkeypatch)
    list(TransformersEngine(tiny_model).generate(same))
    assert shapes == [(1, 99), (6, 1), (6, 1), (6, 1)]
    shapes.clear()
    list(TransformersEngine(tiny_model).generate([*same[:1], *longer]))
    assert shapes == [(1, 90), (3, 20), (3, 1), (3, 1)]


def test_finished_rows_leave_the_batch(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        replace(request, sampling=Sampling(1 if n < 6 else 5, ()))
        for n, request in enumerate(make_requests([10] * 8, Sampling(1, ())))
    ]
    shapes = watch_shapes(tiny_model, monkeypatch)
    results = TransformersEngine(tiny_model).generate(requests)
    # They are out before the others go on.
    assert {next(results).id for _ in range(6)} == {f"r{n}" for n in range(6)}
    assert shapes == [(8, 9), (8, 1)]
    list(results)
    assert shapes[2:] == [(2, 1)] * 4


def test_the_model_keeps_its_attention(tiny_model: LlamaForCausalLM) -> None:
    requests = make_requests([10, 12], Sampling(4, ()))
    results = TransformersEngine(tiny_model, max_batch_rows=1).generate(requests)
    next(results)
    results.close()
    assert tiny_model.config._attn_implementation == "sdpa"


def test_window_is_refused_before_anything_runs(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch_shapes(tiny_model, monkeypatch)
    requests = make_requests([10, 2040], Sampling(9, (STOP,)))
    with pytest.raises(UserError, match="request 'r1': 2040 prompt and 9 new tokens exceed the window 2048"):
        next(TransformersEngine(tiny_model).generate(requests))
    assert not shapes
    with pytest.raises(UserError, match="window 18"):
        next(TransformersEngine(tiny_model, max_model_len=18).generate(requests))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sliding_window", 16, "sliding_attention"),
        ("layer_types", ["full_attention", "linear_attention"], "linear_attention"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "dynamic"),
    ],
)
def test_models_whose_batches_would_be_wrong_are_refused(
    tiny_model: LlamaForCausalLM, name: str, value: object, message: str
) -> None:
    setattr(tiny_model.config, name, value)
    with pytest.raises(UserError, match=message):
        TransformersEngine(tiny_model)


# sampling


def naive_nucleus(logits: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    """The most probable tokens one by one, until their mass reaches top_p; renormalised."""
    weights = [(float(p), i) for i, p in enumerate((logits.double() / sampling.temperature).softmax(-1))]
    kept: dict[int, float] = {}
    for weight, token in sorted(weights, reverse=True):
        if sum(kept.values()) >= sampling.top_p:
            break
        kept[token] = weight
    mass = sum(kept.values())
    return {token: weight / mass for token, weight in kept.items()}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.5, 0.5)])
def test_draws_follow_the_nucleus(temperature: float, top_p: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 2
    sampling = Sampling(1, (), temperature, top_p)
    expected = naive_nucleus(logits, sampling)
    generator = torch.Generator().manual_seed(0)
    draws = [draw(logits, sampling, generator) for _ in range(4000)]
    assert set(draws) <= set(expected)
    for token, probability in expected.items():
        # Four standard errors of a share of 4000.
        assert abs(draws.count(token) / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5 + 1e-9


def test_a_nucleus_wider_than_the_likeliest_few_is_not_cut() -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 0.1
    sampling = Sampling(1, (), 1.0, 0.9)
    expected = naive_nucleus(logits, sampling)
    assert len(expected) > 2000
    generator = torch.Generator().manual_seed(0)
    draws = {draw(logits, sampling, generator) for _ in range(3000)}
    assert draws <= set(expected)
    assert len(draws) > 1200  # 63 % of those kept, if all are as likely


# settings


def test_settings_are_checked() -> None:
    for values in (
        {"kind": "openai"},
        {"kind": "openai", "base_urls": ["localhost:8000"]},
        {"base_urls": ["http://user:secret@host/v1"]},
        {"max_batch_rows": 0},
    ):
        with pytest.raises(ValidationError) as caught:
            EngineSettings.model_validate(values)
        assert "use api_key_env" in str(caught.value) or "secret" not in str(values)


def test_open_engine_loads_a_folder(tiny_model: LlamaForCausalLM, tiny_model_dir: Path) -> None:
    request = make_requests([20], Sampling(5, ()))[0]
    engine = open_engine(EngineSettings(device="cpu", max_model_len=25), str(tiny_model_dir))
    assert engine.name.startswith("transformers ")
    assert next(engine.generate([request])) == reference_greedy(tiny_model, request)
    with pytest.raises(UserError, match="window 25"):
        next(engine.generate(make_requests([21], Sampling(5, ()))))


def test_missing_vllm_says_how_to_install_it(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"logo-align\[vllm\]"):
        open_engine(EngineSettings(kind="vllm"), str(tiny_model_dir))


# OpenAI-compatible servers


class FakeServer:
    """Completes a prompt with its last token + 1 and the stop token; ``script`` spoils the next answers, one each."""

    def __init__(self) -> None:
        self.script: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.cards: list[dict[str, Any]] = [{"id": "m", "owned_by": "test", "max_model_len": 50}]
        self.keys: list[str | None] = []
        self.delay_s = 0.0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                fake.keys.append(self.headers.get("Authorization"))
                found = {"/v1/models": {"data": fake.cards}, "/version": {"version": "9.9"}}.get(self.path)
                self.reply(200 if found else 404, json.dumps(found))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                fake.keys.append(self.headers.get("Authorization"))
                time.sleep(fake.delay_s)
                kind = fake.script.pop(0) if fake.script else "good"
                choice = {"text": "x", "finish_reason": "stop", "token_ids": [body["prompt"][-1] + 1, STOP]}
                good = json.dumps({"choices": [choice]})
                if kind == "hang up":
                    return
                if kind == "half the body":
                    self.reply(200, good[: len(good) // 2], length=len(good))
                elif kind == "half JSON":
                    self.reply(200, good[: len(good) // 2])
                elif kind == "text only":
                    self.reply(200, json.dumps({"choices": [{"text": "x", "finish_reason": "stop"}]}))
                elif kind == "no choice":
                    self.reply(200, json.dumps({"error": "?"}))
                elif kind == "no stop":
                    self.reply(200, json.dumps({"choices": [{**choice, "token_ids": [4, 5]}]}))
                elif kind.isdigit():
                    self.reply(
                        int(kind), "bad key sekret\nsecond line", {"Retry-After": "0.3"} if kind == "429" else {}
                    )
                else:
                    self.reply(200, good)

            def reply(
                self, status: int, text: str, headers: dict[str, str] | None = None, length: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(length or len(text)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def new_server() -> Iterator[Callable[[], FakeServer]]:
    servers: list[FakeServer] = []

    def start() -> FakeServer:
        servers.append(FakeServer())
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(new_server: Callable[[], FakeServer]) -> FakeServer:
    return new_server()


def make_engine(*servers: FakeServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine([server.url for server in servers], "m", **{"first_wait_s": 0.01, "timeout_s": 5.0, **options})


REQUESTS = make_requests([5, 6, 7, 8, 9], Sampling(4, (STOP,), temperature=0.5, top_p=0.9))
EXPECTED = {r.id: GenerationResult(r.id, (r.prompt_ids[-1] + 1,), "stop") for r in REQUESTS}


def test_openai_sends_token_ids_and_everything_that_shapes_sampling(server: FakeServer) -> None:
    engine = make_engine(server, api_key="sekret")
    assert by_id(engine.generate(REQUESTS)) == EXPECTED
    assert engine.name == "openai (test)"
    assert set(server.keys) == {"Bearer sekret"}
    body = min(server.bodies, key=lambda body: len(body["prompt"]))
    assert body["prompt"] == list(REQUESTS[0].prompt_ids)
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stop_token_ids"]) == (0.5, 0.9, 4, [STOP])
    # What vLLM would take from the model's generation config.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["ignore_eos"]) == (0, 0.0, 1.0, True)
    assert len({body["seed"] for body in server.bodies}) == len(REQUESTS)
    list(engine.generate([replace(REQUESTS[0], sampling=Sampling(4, (STOP,), 0.0, 0.9))]))
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["top_p"]) == (0.0, 1.0)


@pytest.mark.parametrize("fault", ["429", "500", "503", "hang up", "half the body", "half JSON"])
def test_openai_tries_again(server: FakeServer, fault: str) -> None:
    server.script = [fault, "good", fault]
    engine = make_engine(server, concurrency=1)
    start = time.monotonic()
    assert by_id(engine.generate(REQUESTS)) == EXPECTED
    assert len(server.bodies) == len(REQUESTS) + 2
    if fault == "429":
        assert time.monotonic() - start > 0.6  # Retry-After, twice


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (["500"] * 3, "failed 3 times, at last: HTTP 500: bad key"),
        (["half JSON"] * 3, "failed 3 times, at last: the answer is not JSON"),
        (["hang up"] * 3, "failed 3 times"),
        (["400"], "HTTP 400: bad key"),
        (["401"], r"HTTP 401: bad key \*\*\*"),
        (["text only"], "no token ids"),
        (["no choice"], "holds no choice"),
        (["no stop"], "does not end at its stop token"),
    ],
)
def test_openai_gives_up_with_one_line(server: FakeServer, script: list[str], message: str) -> None:
    server.script = list(script)
    with pytest.raises(UserError, match=message) as caught:
        list(make_engine(server, max_retries=2, api_key="sekret").generate(REQUESTS[:1]))
    line = str(caught.value)
    assert server.url in line
    assert "sekret" not in line
    assert "second line" not in line
    assert len(server.bodies) == len(script)


def test_openai_waits_no_longer_than_the_timeout(server: FakeServer) -> None:
    engine = make_engine(server, timeout_s=0.2, max_retries=1)
    server.delay_s = 1.0
    with pytest.raises(UserError, match="failed 2 times, at last: ReadTimeout"):
        list(engine.generate(REQUESTS[:1]))


def test_openai_refuses_what_is_not_served(server: FakeServer) -> None:
    server.cards = [{"id": "other"}, {"id": "third"}]
    with pytest.raises(UserError, match="serves other, third, not m"):
        make_engine(server)
    server.cards = [{"id": "m", "parent": None}]
    with pytest.raises(UserError, match="not an adapter"):
        make_engine(server, needs_adapter=True)
    server.cards = [{"id": "m", "parent": "base"}]
    make_engine(server, needs_adapter=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{url}/v1/models: cannot reach the server"):
        OpenAIEngine([url], "m")


def test_openai_asks_vllm_for_its_version_and_window(server: FakeServer) -> None:
    server.cards = [{"id": "m", "owned_by": "vllm", "max_model_len": 12}]
    engine = make_engine(server)
    assert engine.name == "openai (vllm 9.9)"
    with pytest.raises(UserError, match="request 'r4': 9 prompt and 4 new tokens exceed the window 12"):
        next(engine.generate(REQUESTS))
    assert not server.bodies


def test_openai_spreads_over_servers_and_survives_a_dead_one(new_server: Callable[[], FakeServer]) -> None:
    first, second = new_server(), new_server()
    engine = make_engine(first, second)
    assert by_id(engine.generate(REQUESTS)) == EXPECTED
    assert len(first.bodies) == 2
    assert len(second.bodies) == 3
    # Sorted by tokens, each server holds one stretch.
    assert max(body["prompt"] for body in first.bodies) < min(body["prompt"] for body in second.bodies)
    second.close()
    assert by_id(engine.generate(REQUESTS)) == EXPECTED
    assert len(first.bodies) == 2 + 5


def test_spread_takes_turns_and_drops_nothing() -> None:
    for count in range(8):
        requests = make_requests([4] * count, Sampling(1, ())) if count else []
        turns = _spread(requests, 3)
        assert sorted(request.id for _, request in turns) == sorted(request.id for request in requests)
        counts = [[server for server, _ in turns].count(server) for server in range(3)]
        assert max(counts) - min(counts) <= 1
        assert len({server for server, _ in turns[:3]}) == min(count, 3)


def test_openai_stops_when_the_caller_does(server: FakeServer) -> None:
    server.delay_s = 0.3
    engine = make_engine(server, concurrency=2)
    results = engine.generate(make_requests([5] * 20, Sampling(4, (STOP,))))
    next(results)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 0.25
    time.sleep(0.4)
    assert len(server.bodies) <= 4
