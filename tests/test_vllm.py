"""The same requests through transformers, offline vLLM and a vLLM server give the same tokens (embedded model)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import pytest
import torch

from logodata.build.preparing import PreparedQuestion, QuestionPreparer
from logodata.common.append_log import AppendLog
from logodata.common.recipes.reading import load_recipe, shipped_recipes
from logodata.common.turn_end import turn_end_ids
from logodata.contexts.scores import open_evaluator
from logodata.dataset.samples import read_samples
from logodata.engines import Engine, GenerationRequest, GenerationResult, Sampling
from logodata.engines.settings import EngineSettings, open_engine
from logodata.engines.transformers_engine import TransformersEngine
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapters import write_base_config
from logodata.models.loading import load_config, load_model, load_tokenizer, resolve_model
from logodata.prompts import ANSWER_TEMPLATE, PromptFormat, encode_text
from logodata.recipe.settings import BuildRecipe
from logodata.sources import read_source
from logoeval.cli import main
from logoeval.records import read_results

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Found, not imported: vLLM's import would cost every other test run 20 s.
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MODEL = "embedded"
SERVER_START_S = 420  # 45 s on an idle machine, two minutes and more on a busy one
NEAR_TIE = 1e-3
"""Logits this close may come out in either order: the engines sum in different orders."""

SENTENCES = (
    "The miller's youngest daughter carried the letters across the frozen river every Tuesday.",
    "In the attic stood a clock that had not been wound since the flood of 1882.",
    "Captain Orlov kept a grey parrot, which could say the names of seven harbours.",
    "Nobody in the village knew why the bell rang at a quarter past four.",
    "The schoolmaster had planted eleven apple trees, and nine of them bore fruit.",
    "A tall woman in a green coat bought the old mill for six hundred crowns.",
    "When the snow melted they found the brass key under the third step.",
    "The doctor's horse was blind in one eye and afraid of bridges.",
)
QUESTIONS = ("Who kept a parrot?", "What was found under the step?", "How many apple trees were planted?")


def make_requests() -> list[GenerationRequest]:
    """Five prompts of about 300 tokens over two contexts, so that the prefix caches have something to share."""
    tokenizer = load_tokenizer(MODEL)
    template = PromptFormat(tokenizer, ANSWER_TEMPLATE)
    sampling = Sampling(24, turn_end_ids(tokenizer))
    requests = []
    for context in range(2):
        chunks = [encode_text(tokenizer, s) for s in random.Random(context).choices(SENTENCES, k=13 + context)]
        for number, question in enumerate(QUESTIONS[: 3 - context]):
            ids = template.encode(chunks, question=question).ids
            requests.append(GenerationRequest(f"{context}-{number}", ids, sampling))
    return requests


def generate(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, GenerationResult]:
    return {result.id: result for result in engine.generate(requests)}


def assert_same_tokens(
    model: PreTrainedModel,
    expected: dict[str, GenerationResult],
    got: dict[str, GenerationResult],
    requests: Sequence[GenerationRequest] | None = None,
) -> None:
    """Equal, but for what follows a near-tie of the two likeliest tokens under ``model``."""
    assert expected.keys() == got.keys()
    prompts = {request.id: request.prompt_ids for request in requests or make_requests()}
    for name, result in expected.items():
        ours, theirs = ([*r.token_ids, *([-1] if r.finish_reason == "stop" else [])] for r in (result, got[name]))
        if ours == theirs:
            continue
        same = next(n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompts[name], *ours[:same]]])).logits[0, -1].float()
        top = logits.topk(2)
        gap = float(top.values[0] - top.values[1])
        assert gap < NEAR_TIE, f"{name} differs at token {same}, where the likeliest lead by {gap:.4f}"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def expected(model: PreTrainedModel) -> dict[str, GenerationResult]:
    return generate(TransformersEngine(model), make_requests())


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[str]:
    """Base URL of a vLLM server with the embedded model, float32, on a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The `vllm` command of the CPU build fails; the module works.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model(MODEL)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    # A group of its own: the server's workers must go with it.
    server = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    try:
        deadline = time.monotonic() + SERVER_START_S
        while True:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            assert time.monotonic() < deadline, "the server did not get ready"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_server_gives_the_same_tokens(
    model: PreTrainedModel, expected: dict[str, GenerationResult], vllm_server: str
) -> None:
    engine = open_engine(EngineSettings(kind="openai", base_urls=(vllm_server,)), MODEL)
    assert engine.name.startswith("openai (vllm ")
    assert_same_tokens(model, expected, generate(engine, make_requests()))


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_server_that_is_sent_messages_gives_the_same(vllm_server: str, api: Literal["openai", "anthropic"]) -> None:
    """Of prompts without chunks, which the server's tokenizer splits as ours does."""
    if api == "anthropic":
        pytest.importorskip("anthropic")
    tokenizer = load_tokenizer(MODEL)
    form, sampling = PromptFormat(tokenizer, "{question}"), Sampling(24, turn_end_ids(tokenizer))
    requests = [
        GenerationRequest(f"r{n}", form.encode([], question=f"{text} What is this about?").ids, sampling)
        for n, text in enumerate(SENTENCES)
    ]
    by_ids = generate(open_engine(EngineSettings(kind="openai", base_urls=(vllm_server,)), MODEL), requests)
    settings = EngineSettings(
        kind="chat",
        api=api,
        base_urls=(vllm_server.removesuffix("/v1"),),
        served_model=resolve_model(MODEL),
        extra_body={"temperature": 0} if api == "anthropic" else {},
    )
    by_message = generate(open_engine(settings, MODEL), requests)
    for request in requests:
        theirs, ours = by_ids[request.id], by_message[request.id]
        assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
        assert ours.usage is not None
        assert ours.usage.prompt_tokens == len(request.prompt_ids)


def test_server_samples_by_seed_and_id(vllm_server: str) -> None:
    engine = open_engine(EngineSettings(kind="openai", base_urls=(vllm_server,)), MODEL)
    check_sampling(engine)


def check_sampling(engine: Engine) -> None:
    request = make_requests()[0]
    hot = replace(request.sampling, temperature=1.5, max_new_tokens=12)
    twins = [replace(request, id=name, sampling=hot) for name in ("a", "b")]
    together, alone = generate(engine, twins), generate(engine, twins[:1])
    assert together["a"] == alone["a"]
    assert together["a"].token_ids != together["b"].token_ids


def test_offline_gives_the_same_tokens(model: PreTrainedModel, expected: dict[str, GenerationResult]) -> None:
    engine = open_engine(EngineSettings(kind="vllm", dtype="float32"), MODEL)
    assert engine.name.startswith("vllm ")
    assert_same_tokens(model, expected, generate(engine, make_requests()))
    check_sampling(engine)
    # Stopping early leaves nothing behind that would come out of the next call.
    results = engine.generate([replace(request, id=f"first-{request.id}") for request in make_requests()])
    next(results)
    results.close()
    assert generate(engine, make_requests()[:1]).keys() == {"0-0"}
    engine.close()


def test_offline_applies_an_adapter(
    tmp_path: Path, model: PreTrainedModel, expected: dict[str, GenerationResult]
) -> None:
    """With weights in both of its matrices, as a trained one has; rank 4 is none that vLLM knows as a limit."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(MODEL), config).save_pretrained(tmp_path / "adapter")
    adapted = load_model(MODEL, adapter=tmp_path / "adapter")
    requests = make_requests()[:2]
    with_adapter = generate(TransformersEngine(adapted), requests)
    assert with_adapter != {name: expected[name] for name in with_adapter}
    engine = open_engine(EngineSettings(kind="vllm", dtype="float32"), MODEL, adapter=tmp_path / "adapter")
    assert isinstance(engine, VllmEngine)
    assert_same_tokens(adapted, with_adapter, generate(engine, requests))
    # The prefix cache, which now holds these prompts, knows who read them.
    bare = generate(engine.without_adapter(), requests)
    assert_same_tokens(model, {name: expected[name] for name in bare}, bare)
    assert_same_tokens(adapted, with_adapter, generate(engine, requests))
    engine.close()


def test_offline_applies_the_rope_that_an_adapter_was_trained_with(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = load_config(MODEL)
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": 2.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }
    config.max_position_embeddings *= 2
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(MODEL), lora).save_pretrained(tmp_path / "adapter")
    requests = make_requests()[:2]
    unscaled = generate(TransformersEngine(load_model(MODEL, adapter=tmp_path / "adapter")), requests)
    write_base_config(tmp_path / "adapter", config)
    adapted = load_model(MODEL, adapter=tmp_path / "adapter")
    scaled = generate(TransformersEngine(adapted), requests)
    assert scaled != unscaled
    engine = open_engine(EngineSettings(kind="vllm", dtype="float32"), MODEL, adapter=tmp_path / "adapter")
    assert engine._window == config.max_position_embeddings  # type: ignore[attr-defined]
    assert_same_tokens(adapted, scaled, generate(engine, requests))
    engine.close()


BUILD = [
    "source.max_documents=4",
    "source.max_questions_per_document=2",
    "generation.cache=null",
    "generation.num_candidates=1",
    "generation.max_new_tokens=24",
    "judge.enabled=false",
]


def build(output: Path, *engine: str) -> dict[str, GenerationResult]:
    """Run ``logodata build`` as a user does; what it generated, by request."""
    recipe = str(shipped_recipes() / "embedded.yaml")
    command = [sys.executable, "-m", "logodata", "build", recipe, *BUILD, *engine, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    log = AppendLog(output / "work" / "responses.jsonl", key="key").values()
    return {r["id"]: GenerationResult(r["id"], tuple(r["token_ids"]), r["finish_reason"]) for r in log}


def test_the_same_five_samples_through_every_engine(tmp_path: Path, model: PreTrainedModel, vllm_server: str) -> None:
    ours = build(tmp_path / "transformers")
    offline = build(tmp_path / "vllm", "engine.kind=vllm")
    server = build(tmp_path / "openai", "engine.kind=openai", f"engine.base_urls=[{vllm_server}]")
    samples = {name: {s.id: s for s in read_samples(tmp_path / name)} for name in ("transformers", "vllm", "openai")}
    shared = set.intersection(*(set(found) for found in samples.values()))
    assert len(shared) >= 5
    for found in samples.values():
        assert all(found[name].prompt_ids == samples["transformers"][name].prompt_ids for name in shared)

    recipe = load_recipe(BuildRecipe, "build", shipped_recipes() / "embedded.yaml", BUILD)
    preparer = QuestionPreparer(recipe, load_tokenizer(MODEL), model.config.max_position_embeddings)
    pools = preparer.pools(read_source(recipe.source).documents)
    prepared = [one for pool in pools for one in preparer.prepare_pool(pool, open_evaluator(recipe.evaluator))]
    requests = [
        request
        for one in prepared
        if isinstance(one, PreparedQuestion)
        for request in (*one.preferred, *one.rejected.values())
    ]
    assert len(requests) == 24
    assert_same_tokens(model, ours, offline, requests)
    assert_same_tokens(model, ours, server, requests)


def test_the_harness_gives_the_numbers_of_its_model_in_transformers(tmp_path: Path) -> None:
    """``logoeval short``: log-likelihoods, and greedy responses of a task that says nothing of sampling."""
    pytest.importorskip("lm_eval")
    rows = [
        {"question": f"The {place} of {country} is called", "choices": [" Paris", " Rome", " Oslo"], "answer": number}
        for number, (place, country) in enumerate([("capital", "France"), ("capital", "Italy"), ("capital", "Norway")])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choice = {
        "task": "capitals",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
        **shared,
    }
    written = {
        "task": "capitals_written",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
        **shared,
    }
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for task in (choice, written):
        (tasks / f"{task['task']}.yaml").write_text(json.dumps(task), encoding="utf-8")
    answers = {}
    for kind in ("transformers", "vllm"):
        command = ["short", "--model", MODEL, "--include-path", str(tasks), "--tasks", "capitals,capitals_written"]
        assert main([*command, f"engine.kind={kind}", "engine.max_model_len=512", "-o", str(tmp_path / kind)]) == 0
        lines = (tmp_path / kind / "predictions" / "short_answers.jsonl").read_text(encoding="utf-8").splitlines()
        answers[kind] = {record["id"]: record["answer"] for record in map(json.loads, lines)}
        assert len(answers[kind]) == 12
    assert answers["vllm"].keys() == answers["transformers"].keys()
    for key, answer in answers["transformers"].items():
        other = answers["vllm"][key]
        if isinstance(answer, str):
            assert other == answer
        else:
            assert other == [pytest.approx(answer[0], abs=1e-4), answer[1]]
    results = [read_results(tmp_path / kind).tasks["short"] for kind in ("transformers", "vllm")]
    assert results[0].summary == results[1].summary
    assert (results[0].settings.get("engine"), results[1].settings.get("engine")) == (None, "vllm")


def test_the_harness_sets_no_variable_of_the_chat_template() -> None:
    """Its own model in vLLM would set ``enable_thinking`` to None, which some templates take for false."""
    pytest.importorskip("lm_eval")
    from logoeval.tasks.short.vllm_model import VllmHarnessModel

    model = VllmHarnessModel.__new__(VllmHarnessModel)  # no vLLM is needed to write a chat
    model.tokenizer = load_tokenizer(MODEL, "{{ enable_thinking is defined }}")
    model.chat_template_args, model.enable_thinking, model.hf_chat_template = {}, None, None
    assert model.apply_chat_template([{"role": "user", "content": "Who?"}]) == "False"
