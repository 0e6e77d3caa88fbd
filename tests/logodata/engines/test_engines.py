"""Engines against independent references: full forwards without cache, naive sampling, servers on a clock of ours."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.batching import (
    check_requests,
    common_prefix,
    finish,
    plan_batches,
    plan_whole,
    share_prefixes,
)
from logodata.engines.decoding import draw
from logodata.engines.server_answers import Fault
from logodata.engines.server_retries import RateLimit, Schedule, Server
from logodata.engines.settings import EngineSettings, open_engine
from logodata.engines.transformers_engine import TransformersEngine

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


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple), max_size=20),
    st.integers(1, 6),
    st.integers(5, 60),
    st.booleans(),
)
def test_batches_of_whole_prompts_hold_every_request_once_within_the_limits(
    prompts: list[tuple[int, ...]], max_rows: int, max_tokens: int, alike: bool
) -> None:
    requests = [GenerationRequest(str(n), ids, Sampling(1, (STOP,))) for n, ids in enumerate(prompts)]
    batches = plan_whole(requests, max_tokens=max_tokens, max_rows=max_rows, alike=alike)
    assert sorted(int(request.id) for batch in batches for request in batch) == list(range(len(prompts)))
    for batch in batches:
        lengths = [len(request.prompt_ids) for request in batch]
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths) <= max_tokens
        assert not alike or len(set(lengths)) == 1


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
        ({"prompt_ids": (5, 10**6)}, "token id 1000000 is outside the model's vocabulary of 1000000"),
        ({"sampling": Sampling(4, (STOP, 10**6))}, "token id 1000000 is outside"),
        ({"sampling": Sampling(0, (STOP,))}, "out of range"),
        ({"sampling": Sampling(4, (STOP,), temperature=1.0, top_p=0.0)}, "out of range"),
    ],
)
def test_requests_that_no_engine_may_run_are_refused_by_id(change: dict[str, Any], message: str) -> None:
    good = make_requests([94, 94], Sampling(6, (STOP,)))
    check_requests(good, 100, None)
    with pytest.raises(UserError, match=message) as caught:
        check_requests([good[0], replace(good[1], **change)], 100, 10**6)
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
    engine = TransformersEngine(tiny_model, EngineSettings(max_batch_tokens=limits[0], max_batch_rows=limits[1]))
    assert by_id(engine.generate(requests)) == expected


def test_sampled_results_do_not_depend_on_the_batch(tiny_model: LlamaForCausalLM) -> None:
    requests = make_requests(LENGTHS, Sampling(10, (STOP,), temperature=0.9, top_p=0.9, seed=3), shared=20)
    requests += [replace(request, id=f"again-{request.id}") for request in requests]
    together = by_id(TransformersEngine(tiny_model).generate(requests))
    backwards = by_id(TransformersEngine(tiny_model, EngineSettings(max_batch_rows=3)).generate(requests[::-1]))
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
    results = TransformersEngine(tiny_model, EngineSettings(max_batch_rows=1)).generate(requests)
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
        next(TransformersEngine(tiny_model, EngineSettings(max_model_len=18)).generate(requests))


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
        {"kind": "openai", "base_urls": ["http://localhost:80000/v1"]},
        {"requests_per_minute": 0},
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


# the schedule of requests over servers, on a clock of its own

Behaviour = Callable[[str, str, float], "tuple[float, Fault | None]"]


def simulate(
    schedule: Schedule, servers: Sequence[Server], concurrency: int, behave: Behaviour
) -> list[tuple[float, float, str, str]]:
    """Run the schedule: ``behave(url, request id or 'check', start)`` says how long a server takes, and its fault.

    Returns:
        (start, end, url, id) of what was answered, in the order of the answers.
    """
    now, answers, numbers = 0.0, [], itertools.count()
    idle = [server for server in servers for _ in range(concurrency)]
    busy: list[tuple[float, int, Any]] = []
    while True:
        still_idle, wake_at = [], math.inf
        for server in idle:
            step = schedule.next(server, now)
            if step is None or isinstance(step, float):
                still_idle.append(server)
                wake_at = min(wake_at, now + (math.inf if step is None else step))
                continue
            request = None if step == "check" else step
            took_s, fault = behave(server.url, request.id if request else "check", now)
            heapq.heappush(busy, (now + took_s, next(numbers), (now, server, request, fault, server.generation)))
        idle = still_idle
        if not busy and wake_at == math.inf:
            return answers
        if not busy or wake_at < busy[0][0]:
            assert wake_at > now, "the schedule must not ask for a wait that is none"
            now = wake_at
            continue
        now, _, (start, server, request, fault, generation) = heapq.heappop(busy)
        idle.append(server)
        if fault:
            schedule.failed(server, request, fault, generation, now)
        else:
            schedule.answered(server, request)
            if request:
                answers.append((start, now, server.url, request.id))


def make_schedule(count: int, servers: Sequence[Server], max_retries: int = 3) -> Schedule:
    requests = [GenerationRequest(f"r{n:03}", (5, n + 1), Sampling(8, (STOP,))) for n in range(count)]
    return Schedule(requests, servers, max_retries=max_retries, first_wait_s=1.0)


def test_servers_share_the_work_and_an_idle_one_takes_from_the_far_end() -> None:
    servers = [Server("slow"), Server("quick")]
    answers = simulate(make_schedule(100, servers), servers, 2, lambda url, *_: (9.0 if url == "slow" else 1.0, None))
    assert sorted(answer[3] for answer in answers) == [f"r{n:03}" for n in range(100)]
    assert max(end for _, end, _, _ in answers) == 45.0, "5 turns of the slow server in the time of 45 quick ones"
    assert sorted(id for _, _, url, id in answers if url == "slow") == [f"r{n:03}" for n in range(10)]
    quick = [int(id[1:]) for _, _, url, id in answers if url == "quick"]
    assert quick == [*range(50, 100), *range(49, 9, -1)]


def test_a_dead_server_costs_no_request_its_tries(capsys: pytest.CaptureFixture[str]) -> None:
    servers = [Server("dead"), Server("good")]
    refused = Fault("refused", of_server=True)

    def behave(url: str, _: str, start: float) -> tuple[float, Fault | None]:
        return (0.1, refused if start > 2 else None) if url == "dead" else (3.0, None)

    answers = simulate(make_schedule(300, servers, max_retries=1), servers, 4, behave)
    assert sorted(answer[3] for answer in answers) == [f"r{n:03}" for n in range(300)]
    assert servers[0].rests > 3, "it was asked again and again, with growing waits"
    assert capsys.readouterr().err.splitlines() == [
        "dead: refused; the other servers go on without it, and it is asked again"
    ]


def test_a_server_that_comes_back_is_checked_and_tried_with_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    servers = [Server("ill"), Server("good")]
    starts: list[tuple[float, str]] = []

    def behave(url: str, id: str, start: float) -> tuple[float, Fault | None]:
        if url == "good":
            return 5.0, None
        starts.append((start, id))
        return 1.0, Fault("HTTP 500") if start < 6 and id != "check" else None

    answers = simulate(make_schedule(200, servers), servers, 4, behave)
    assert len(answers) == 200
    down = starts[[id for _, id in starts].index("check") :]
    assert [id == "check" for _, id in down[:4]] == [True, False, True, False], "a check, one request"
    recovered = next(end for start, end, url, _ in answers if url == "ill")
    assert all(later >= start + 1 for (start, _), (later, _) in itertools.pairwise(down) if later < recovered), (
        "one at a time"
    )
    assert len([start for start, _ in starts if start == recovered]) == 4, "then all at once"
    assert capsys.readouterr().err.count("\n") == 2, "down, and up again"


def test_a_server_is_tried_again_although_old_requests_hang(capsys: pytest.CaptureFixture[str]) -> None:
    servers = [Server("rebooted")]

    def behave(_: str, id: str, start: float) -> tuple[float, Fault | None]:
        if start == 0.0 and id != "r000":  # the connections are dead, and nobody says so
            return 600.0, Fault("no answer")
        return 1.0, Fault("refused", of_server=True) if start < 3 else None

    answers = simulate(make_schedule(100, servers), servers, 4, behave)
    assert sorted(answer[3] for answer in answers) == [f"r{n:03}" for n in range(100)]
    assert sum(end < 600 for _, end, _, _ in answers) == 97
    assert capsys.readouterr().err == "", "there is no other server to speak of"


def test_a_rate_limit_pauses_the_whole_server_and_takes_no_tries() -> None:
    servers = [Server("busy")]
    starts: list[float] = []

    def behave(url: str, id: str, start: float) -> tuple[float, Fault | None]:
        starts.append(start)
        is_over = start < 50 and len([earlier for earlier in starts if earlier > start - 10]) > 4
        return (0.1, Fault("HTTP 429", True, True, 20.0)) if is_over else (0.5, None)

    answers = simulate(make_schedule(40, servers, max_retries=1), servers, 32, behave)
    assert len(answers) == 40
    assert sorted(set(starts))[:3] == [0.0, 20.1, 40.2], "nobody asks before the time that the server named"


def test_a_request_that_always_fails_ends_the_work_when_its_tries_are_used_up() -> None:
    servers = [Server("one"), Server("two")]
    tried: list[float] = []

    def behave(url: str, id: str, start: float) -> tuple[float, Fault | None]:
        if id != "r007":
            return 1.0, None
        tried.append(start)
        return 1.0, Fault("HTTP 500: out of memory")

    with pytest.raises(UserError, match=r"(one|two), request 'r007': failed 4 times, at last: HTTP 500: out of memory"):
        simulate(make_schedule(500, servers), servers, 4, behave)
    waits = [later - start - 1.0 for start, later in itertools.pairwise(tried)]
    # Doubling, less up to a half; a worker that gets free takes it, at most a second later.
    assert all(0.5 * 2**n <= wait <= 2**n + 1 for n, wait in enumerate(waits))
    assert len(waits) == 3


def test_when_all_servers_are_down_the_error_names_each() -> None:
    servers = [Server("http://a"), Server("http://b")]
    with pytest.raises(UserError) as caught:
        simulate(make_schedule(50, servers), servers, 4, lambda url, *_: (0.1, Fault(f"{url} said so", of_server=True)))
    assert "http://a: failed" in str(caught.value)
    assert "at last: http://a said so; http://b: failed" in str(caught.value)
    assert "at last: http://b said so (check the server" in str(caught.value)
    # The first fault opens a rest; three more rests are what max_retries allows.
    assert {server.rests for server in servers} == {4}


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_every_request_is_answered_once_while_one_server_works(
    num_servers: int, concurrency: int, count: int, rng: random.Random
) -> None:
    servers = [
        Server(str(place), tokens=RateLimit(600) if rng.random() < 0.3 else None) for place in range(num_servers)
    ]
    faults = [
        Fault("x"),
        Fault("x", True),
        Fault("x", True, True),
        Fault("x", True, True, 7.0),
        Fault("x", True, False, 3.0),
    ]
    spoilt: Counter[str] = Counter()

    def behave(url: str, id: str, start: float) -> tuple[float, Fault | None]:
        fault = rng.choice([None, None, *faults])
        if url == "0" or fault is None:  # server 0 spoils each answer at most twice
            spoilt[id] += 1
            fault = fault if url == "0" and id != "check" and spoilt[id] <= 2 and not servers[0].rests else None
        return rng.choice([0.0, 0.5, 40.0]), fault

    answers = simulate(make_schedule(count, servers, max_retries=1000), servers, concurrency, behave)
    assert sorted(answer[3] for answer in answers) == [f"r{n:03}" for n in range(count)]
    assert all(not server.is_trying for server in servers)


@pytest.mark.parametrize("per_minute", [3, 60, 600, 7.5])
def test_rate_limits_let_through_what_they_say(per_minute: float) -> None:
    rng, limit, now, sent = random.Random(0), RateLimit(per_minute), 100.0, []
    for _ in range(400):
        cost = rng.choice([1, 1, 2, 5, 20])
        while wait_s := limit.wait_s(cost, now):
            now += wait_s
        limit.take(cost, now)
        sent.append((now, cost))
    for start, _ in sent:
        assert (
            sum(cost for at, cost in sent if start <= at < start + 60) <= per_minute + max(per_minute / 60, 20) + 1e-6
        )
    # Nobody waits for nothing: the whole takes no longer than at the limit.
    assert sum(cost for _, cost in sent) >= (now - 100) * per_minute / 60
