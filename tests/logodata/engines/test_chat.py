"""Servers that take messages: what they are sent equals what the official clients send, and answers are read alike."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from logodata.cli import main
from logodata.common.console import Tracker
from logodata.common.errors import UserError
from logodata.dataset.samples import read_samples
from logodata.engines import GenerationRequest, GenerationResult, Sampling, Usage
from logodata.engines.anthropic_engine import AnthropicEngine
from logodata.engines.batching import request_seed
from logodata.engines.chat_answers import ChatAnswer, read_anthropic, read_openai
from logodata.engines.chat_engine import ChatEngine
from logodata.engines.prices import Prices, describe_servers, read_prices
from logodata.engines.reasoning import Reasoning
from logodata.engines.response_log import CachedEngine, ResponseLog
from logodata.engines.server_answers import Fault
from logodata.engines.settings import EngineSettings, asked_fingerprint, engine_window
from logodata.prompts import PromptFormat, UserMessages, encode_text, gives_back
from tests.logodata.engines.chat_stub import ChatStub, anthropic_answer, chat_stub, openai_answer
from tests.logodata.engines.stub_server import FACTS, free_url, write_documents

KEY = "sekret"
GREEDY, SAMPLED = Sampling(32, (2,)), Sampling(32, (2,), temperature=0.7, top_p=0.9, seed=3)


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as server:
        yield server


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tiny_tokenizer


def make_engine(tokenizer: PreTrainedTokenizerFast, *urls: str, **options: Any) -> ChatEngine:
    settings = EngineSettings(kind="chat", base_urls=urls, **{"timeout_s": 5.0, **options})
    engine = AnthropicEngine if settings.api == "anthropic" else ChatEngine
    return engine(settings, "m", tokenizer=tokenizer, api_key=KEY, first_wait_s=0.002)


def ask(
    tokenizer: PreTrainedTokenizerFast, text: str, sampling: Sampling = GREEDY, name: str = "r"
) -> GenerationRequest:
    prompt = PromptFormat(tokenizer, "{question}").encode([], question=text)
    return GenerationRequest(name, prompt.ids, sampling)


def only(results: Iterator[GenerationResult]) -> GenerationResult:
    (result,) = results
    return result


needs_clients = pytest.mark.skipif(
    not (importlib.util.find_spec("openai") and importlib.util.find_spec("anthropic")),
    reason="the official clients are not installed",
)


@needs_clients
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, top_p=1.0)])
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_requests_are_those_of_the_official_clients(
    tokenizer: PreTrainedTokenizerFast, stub: ChatStub, api: str, sampling: Sampling
) -> None:
    import anthropic
    import openai

    stub.answer = lambda _: openai_answer() if api == "openai" else anthropic_answer()
    request = ask(tokenizer, "Who?", sampling)
    ours = only(make_engine(tokenizer, stub.url, api=api).generate([request]))
    told: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 32}
    if api == "openai":
        told["temperature"] = sampling.temperature
        if sampling.temperature:
            told |= {"top_p": sampling.top_p, "seed": request_seed(request)}
        with openai.OpenAI(base_url=f"{stub.url}/v1", api_key=KEY) as client:
            text = client.chat.completions.create(**told).choices[0].message.content
    else:
        with anthropic.Anthropic(base_url=stub.url, api_key=KEY) as client:
            text = client.messages.create(**told).content[0].text
    (our_path, our_body, our_headers), (path, body, headers) = stub.sent
    assert (our_path, our_body) == (path, body)
    for name in ("Authorization", "x-api-key", "anthropic-version"):
        sent = {key.lower(): value for key, value in headers.items()}
        assert {key.lower(): value for key, value in our_headers.items()}.get(name.lower()) == sent.get(name.lower())
    assert ours.text == text == "Fine."


USAGE = {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
ANSWERS: dict[str, tuple[str, dict[str, Any], ChatAnswer]] = {
    "plain": ("openai", openai_answer(), ChatAnswer("Fine.", None, "stop", False, Usage(19, 10))),
    "cut": ("openai", openai_answer("Fi", reason="length"), ChatAnswer("Fi", None, "length", False, Usage(19, 10))),
    "still reasoning": (
        "openai",
        openai_answer(None, reason="length", reasoning_content="Hm"),
        ChatAnswer("", "Hm", "length", False, Usage(19, 10)),
    ),
    "reasoned": ("openai", openai_answer(reasoning="Hm."), ChatAnswer("Fine.", "Hm.", "stop", False, Usage(19, 10))),
    "filtered": (
        "openai",
        openai_answer("Fi", reason="content_filter"),
        ChatAnswer("Fi", None, "stop", True, Usage(19, 10)),
    ),
    "hidden reasoning": (
        "openai",
        {
            **openai_answer("Fi", reason="length"),
            "usage": {**USAGE, "completion_tokens_details": {"reasoning_tokens": 7}},
        },
        ChatAnswer("Fi", "", "length", False, Usage(19, 10)),
    ),
    "refused": ("openai", openai_answer(None, refusal="No."), ChatAnswer("No.", None, "stop", True, Usage(19, 10))),
    "block": ("anthropic", anthropic_answer(), ChatAnswer("Fine.", None, "stop", False, Usage(19, 10))),
    "blocks": (
        "anthropic",
        anthropic_answer(THOUGHT, {"type": "text", "text": "Fi"}, {"type": "text", "text": "ne."}),
        ChatAnswer("Fine.", "Hm.", "stop", False, Usage(19, 10)),
    ),
    "thought only": (
        "anthropic",
        anthropic_answer(THOUGHT, reason="max_tokens"),
        ChatAnswer("", "Hm.", "length", False, Usage(19, 10)),
    ),
    "refusal": (
        "anthropic",
        {**anthropic_answer(reason="refusal"), "content": []},
        ChatAnswer("", None, "stop", True, Usage(19, 10)),
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_are_read(case: str) -> None:
    api, said, expected = ANSWERS[case]
    assert (read_openai if api == "openai" else read_anthropic)(said) == expected


@needs_clients
@pytest.mark.parametrize("case", ANSWERS)
def test_the_official_clients_read_the_same(case: str) -> None:
    api, said, expected = ANSWERS[case]
    if api == "openai":
        from openai.types.chat import ChatCompletion

        message = ChatCompletion.model_validate(said).choices[0].message
        assert (message.content or message.refusal or "") == expected.text
        return
    from anthropic.types import Message

    blocks = Message.model_validate(said).content
    assert "".join(block.text for block in blocks if block.type == "text") == expected.text
    assert "".join(block.thinking for block in blocks if block.type == "thinking") == (expected.reasoning or "")


def test_a_server_without_counts_gives_none() -> None:
    assert read_openai({**openai_answer(), "usage": None}).usage is None


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([], "no object where choices"),
    "two choices": ({**openai_answer(), "choices": openai_answer()["choices"] * 2}, "2 choices"),
    "another shape": (anthropic_answer(), "holds no choices"),
    "a call": (openai_answer(None, reason="tool_calls"), "ended with 'tool_calls'"),
    "no text": (openai_answer(7), "a text is int"),  # type: ignore[arg-type]
    "usage": ({**openai_answer(), "usage": {"prompt_tokens": "9"}}, "usage is not counts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_one_line(tokenizer: PreTrainedTokenizerFast, stub: ChatStub, case: str) -> None:
    said, expected = WRONG[case]
    stub.answer = lambda _: said
    with pytest.raises(UserError) as caught:
        only(make_engine(tokenizer, stub.url).generate([ask(tokenizer, "Who?")]))
    assert expected in str(caught.value)
    assert "engine.api" in str(caught.value)
    assert KEY not in str(caught.value)


REFUSED = {
    "key": ((401, f"bad key {KEY}"), "engine.api_key_env"),
    "limit": ((400, "'max_tokens' is not supported, use 'max_completion_tokens'"), "engine.max_tokens_field="),
    "temperature": ((400, "'temperature' does not support 0"), "engine.extra_body.temperature=null"),
    "model": ((404, "no such model"), "engine.served_model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_server_refuses_names_the_setting(tokenizer: PreTrainedTokenizerFast, stub: ChatStub, case: str) -> None:
    said, expected = REFUSED[case]
    stub.script = [said]
    with pytest.raises(UserError) as caught:
        only(make_engine(tokenizer, stub.url).generate([ask(tokenizer, "Who?")]))
    assert f"HTTP {said[0]}" in str(caught.value)
    assert expected in str(caught.value)
    assert KEY not in str(caught.value)


TOLD = [{"error": {"code": 502, "message": "Provider overloaded"}}, openai_answer("Fi", reason="error")]


@pytest.mark.parametrize("said", [(429, "slow"), (500, "oh"), (503, "later"), (200, '{"choi'), (200, "<html>"), *TOLD])
def test_what_may_pass_is_tried_again(tokenizer: PreTrainedTokenizerFast, stub: ChatStub, said: Any) -> None:
    stub.script = [said, openai_answer(), said]
    requests = [ask(tokenizer, f"Who {n}?", name=f"r{n}") for n in range(3)]
    results = list(make_engine(tokenizer, stub.url, concurrency=1).generate(requests))
    assert sorted(result.id for result in results) == ["r0", "r1", "r2"]


def test_what_does_not_pass_ends_without_the_key(tokenizer: PreTrainedTokenizerFast, stub: ChatStub) -> None:
    stub.answer = lambda _: {"error": {"message": f"no {KEY}\nmore"}}
    with pytest.raises(UserError, match=r"failed 2 times, at last: the answer is an error: no \*\*\*") as caught:
        only(make_engine(tokenizer, stub.url, max_retries=1).generate([ask(tokenizer, "Who?")]))
    assert KEY not in str(caught.value)
    with pytest.raises(Fault, match="busy"):
        read_anthropic({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})


def test_a_server_that_is_down_is_left_out(
    tokenizer: PreTrainedTokenizerFast, stub: ChatStub, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tokenizer, free_url(), stub.url)
    assert only(engine.generate([ask(tokenizer, "Who?")])).text == "Fine."
    assert "the other servers go on without it" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot reach the server"):
        make_engine(tokenizer, free_url())
    stub.models = 401
    with pytest.raises(UserError, match="HTTP 401"):
        make_engine(tokenizer, stub.url)
    stub.models = 404  # many servers list no models
    make_engine(tokenizer, stub.url)


def test_fields_are_added_renamed_and_left_out(tokenizer: PreTrainedTokenizerFast, stub: ChatStub) -> None:
    extra = {"reasoning_effort": "low", "temperature": None}
    settings: dict[str, Any] = {"extra_body": extra, "max_tokens_field": "max_completion_tokens"}
    only(make_engine(tokenizer, f"{stub.url}/api/v3/", **settings).generate([ask(tokenizer, "Who?")]))
    path, body, _ = stub.sent[-1]
    assert path == "/api/v3/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Who?"}],
        "max_completion_tokens": 32,
        "reasoning_effort": "low",
    }
    with pytest.raises(ValidationError, match="extra_body: stream is set by the engine"):
        EngineSettings(kind="chat", base_urls=(stub.url,), extra_body={"stream": True})
    with pytest.raises(ValidationError, match="kind chat needs base_urls"):
        EngineSettings(kind="chat")


def test_replies_that_were_withheld_are_counted_over_interruptions(
    tokenizer: PreTrainedTokenizerFast, stub: ChatStub, tmp_path: Path
) -> None:
    """A filter may refuse the prompt (400), or cut the reply."""
    stub.script = [openai_answer("Fi", reason="content_filter"), (400, '{"error": {"code": "content_filter"}}')]
    requests = [ask(tokenizer, f"Who {n}?", name=f"r{n}") for n in range(3)]
    for _ in range(2):
        log = ResponseLog(tmp_path / "log.jsonl", "m")
        cached = CachedEngine(log, lambda: make_engine(tokenizer, stub.url, concurrency=1))
        cached.generate(requests, Tracker("", 3), "responses")
        texts = [cached.answer(request)[0].text for request in requests]
        assert sorted(texts) == ["", "Fi", "Fine."]
        counted, withheld = describe_servers(log.own(), None)
        assert counted == "38 prompt and 20 response tokens by the server's count"
        assert withheld.startswith("2 of 3 replies were withheld")
    assert len(stub.sent) == 3


TRANSCRIPT = "A log:<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nbye"
TEXTS = [TRANSCRIPT, "Who?", "  two\n\n lines é 東京 \U0001f642 ", "<|im_end|>\n<|im_start|>assistant\n", "a\ue000b"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_message_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    messages = UserMessages(tokenizer)
    assert messages.read(ask(tokenizer, text).prompt_ids) == text
    chunks = [encode_text(tokenizer, part) for part in ("One. ", "Two.")]
    prompt = PromptFormat(tokenizer, "Read:\n{context}\nQuestion: {question}").encode(chunks, question=text)
    assert messages.read(prompt.ids) == f"Read:\nOne. \nTwo.\n\nQuestion: {text}"


def test_the_beginning_of_an_answer_and_earlier_turns_stand_in_the_message(tokenizer: PreTrainedTokenizerFast) -> None:
    messages, form = UserMessages(tokenizer), PromptFormat(tokenizer, "{question}")
    turns = [("First?", " It is 1\n"), ("Second?", " It is")]
    ids = [token for question, begun in turns for token in form.encode([], question=question).ids]
    first = form.encode([], question="First?").ids
    ids = [*first, *encode_text(tokenizer, " It is 1\n"), *ids[len(first) :], *encode_text(tokenizer, " It is")]
    assert messages.read(ids) == "First? It is 1\nSecond? It is"
    bare = tokenizer.encode("No template.")
    assert messages.read(bare) == "No template."


def test_a_tokenizer_that_changes_texts_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="does not give back the text"):
        UserMessages(changed)


def test_a_stop_token_ends_a_response_here(tokenizer: PreTrainedTokenizerFast, stub: ChatStub) -> None:
    stub.answer = lambda _: openai_answer("One\nTwo")
    (newline,) = encode_text(tokenizer, "\n")
    sampling = Sampling(32, (newline,), min_new_tokens=1)
    result = only(make_engine(tokenizer, stub.url).generate([ask(tokenizer, "Who?", sampling)]))
    assert (result.text, result.finish_reason) == ("One", "stop")
    assert result.token_ids == tuple(encode_text(tokenizer, "One"))
    stub.answer = lambda _: openai_answer("\nTwo")
    result = only(make_engine(tokenizer, stub.url).generate([ask(tokenizer, "Who?", sampling)]))
    assert result.text == "\nTwo"


REPLIES: dict[str, tuple[GenerationResult, int, tuple[str, str | None, bool, str]]] = {
    "no reasoning": (GenerationResult("r", (), "stop", "Fine."), 0, ("Fine.", None, False, "stop")),
    "inline": (
        GenerationResult("r", (), "stop", "<think>Hm.</think>\n\nFine."),
        0,
        ("Fine.", "<think>Hm.", False, "stop"),
    ),
    "quoted in the answer": (
        GenerationResult("r", (), "stop", "Say <think>.", "Hm."),
        9,
        ("Say <think>.", "Hm.", False, "stop"),
    ),
    "hidden, answer cut": (GenerationResult("r", (), "length", "Fi", ""), 9, ("Fi", "", False, "length")),
    "apart": (GenerationResult("r", (), "stop", "\nFine.", "Hm."), 0, ("Fine.", "Hm.", False, "stop")),
    "quoted": (GenerationResult("r", (), "stop", "a</think>b</think>c"), 9, ("c", "a</think>b", False, "stop")),
    "apart and cut": (GenerationResult("r", (), "length", "", "Hm"), 9, ("", "Hm", True, "length")),
    "apart, answer cut": (GenerationResult("r", (), "length", "Fi", "Hm"), 9, ("Fi", "Hm", False, "length")),
    "inline and cut": (GenerationResult("r", (), "length", "<think>Hm"), 0, ("", "<think>Hm", True, "length")),
    "opened there and cut": (GenerationResult("r", (), "length", "Hm"), 9, ("", "Hm", True, "length")),
    "no budget, answer cut": (GenerationResult("r", (), "length", "Fi"), 0, ("Fi", None, False, "length")),
    "expected, but none": (GenerationResult("r", (), "stop", "Fine."), 9, ("Fine.", None, False, "stop")),
}


@pytest.mark.parametrize("case", REPLIES)
def test_reasoning_in_texts(tokenizer: PreTrainedTokenizerFast, case: str) -> None:
    result, budget, expected = REPLIES[case]
    assert result.text is not None
    result = replace(result, token_ids=tuple(encode_text(tokenizer, result.text)))
    reply = Reasoning(tokenizer, tokens=budget).split(result, Sampling(32, ()), opened=True)
    assert (reply.text, reply.reasoning, reply.cut, reply.finish_reason) == expected
    assert gives_back(tokenizer, reply.token_ids, reply.text)
    assert (reply.num_reasoning_tokens > 0) == bool(reply.reasoning)


def test_the_log_keeps_texts_and_counts(tokenizer: PreTrainedTokenizerFast, stub: ChatStub, tmp_path: Path) -> None:
    stub.answer = lambda _: openai_answer(reasoning="Hm.")
    requests = [ask(tokenizer, f"Who {n}?", name=f"r{n}") for n in range(3)]
    log = ResponseLog(tmp_path / "log.jsonl", "m@openai chat")
    cached = CachedEngine(log, lambda: make_engine(tokenizer, stub.url))
    cached.generate(requests[:2], Tracker("", 2), "responses")
    again = ResponseLog(tmp_path / "log.jsonl", "m@openai chat")
    cached = CachedEngine(again, lambda: make_engine(tokenizer, stub.url))
    cached.generate(requests, Tracker("", 3), "responses")
    assert len(stub.sent) == 3
    assert list(describe_servers(cached.log.own(), Prices(3, 15))) == [
        "57 prompt and 30 response tokens by the server's count, 0.000621 at the given prices"
    ]
    result, origin = cached.answer(requests[0])
    assert (result.text, result.reasoning, result.usage, origin) == ("Fine.", "Hm.", Usage(19, 10), "live")
    cache = ResponseLog(None, "m@openai chat", tmp_path / "log.jsonl")
    found = cache.get(requests[0])
    assert found is not None
    assert (found[0].text, found[0].reasoning, found[0].usage, found[1]) == ("Fine.", "Hm.", None, "cache")
    assert not list(cache.own())


def test_prices(tmp_path: Path) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("m: {prompt: 3, response: 15.0}\nbad: {prompt: -1, response: 2}\n")
    assert read_prices(table, "m") == Prices(3, 15)
    assert Prices(3, 15).of(Usage(1_000_000, 100_000)) == 4.5
    listed = tmp_path / "litellm.json"
    listed.write_text(json.dumps({"m": {"input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}}))
    found = read_prices(listed, "m")
    assert (round(found.prompt, 9), round(found.response, 9)) == (3, 15)
    for name, content, expected in (
        ("n", "m: {prompt: 3, response: 15}", "no prices of 'n'"),
        ("bad", "bad: {prompt: -1, response: 2}", "not two numbers"),
        ("bad", "bad: {prompt: 1}", "not two numbers"),
        ("m", "[1]", "not a table of prices"),
        ("m", "m: {", "not YAML or JSON"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=expected):
            read_prices(table, name)


def test_the_model_of_a_chat_server_is_known_by_its_name(tiny_model_dir: Path) -> None:
    settings = EngineSettings(kind="chat", base_urls=("http://x",), served_model="big", max_model_len=10**6)
    assert asked_fingerprint(settings, str(tiny_model_dir)) == "big@openai chat"
    other = settings.model_copy(update={"extra_body": {"reasoning_effort": "low"}})
    assert asked_fingerprint(other, str(tiny_model_dir)) != asked_fingerprint(settings, str(tiny_model_dir))
    assert engine_window(settings, str(tiny_model_dir)) == 10**6


def test_a_build_by_a_chat_server(
    tiny_model_dir: Path, stub: ChatStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens say its texts, its card says whose they are, and one whose tokens would not is left out."""
    preferred: dict[str, str] = {}

    def answer(message: str) -> Any:
        place = next(place for place in FACTS if f"What does the {place} of Vell hold?" in message)
        is_preferred = preferred.setdefault(place, message) == message
        return openai_answer(f"It holds {FACTS[place]}." if is_preferred else f"It holds sand of kind {len(message)}.")

    stub.answer = answer
    prices = tmp_path / "prices.yaml"
    prices.write_text("big: {prompt: 2, response: 10}\n")
    chat = ["engine.kind=chat", f"engine.base_urls={stub.url}", "engine.served_model=big", f"engine.prices={prices}"]
    settings = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_top=2"]
    settings += ["contexts.critical_threshold=null", "generation.preferred=model", *chat]
    out = tmp_path / "out"
    arguments = ["build", str(write_documents(tmp_path)), "--model", str(tiny_model_dir), "-o", str(out), *settings]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    asked = len(stub.sent)
    assert f"{19 * asked:,} prompt and {10 * asked:,} response tokens by the server's count" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"] == str(tiny_model_dir)
    assert (manifest["model_fingerprint"], manifest["engine"]) == ("big@openai chat", "chat (openai)")
    card = (out / "README.md").read_text()
    assert "`big` (big@openai chat)" in card
    assert "A chat server gave its responses as texts" in card
    assert "no response is greedy" not in card
    samples = read_samples(out)
    assert {sample.chosen.text for sample in samples} == {f"It holds {thing}." for thing in FACTS.values()}
    sent = {body["messages"][0]["content"] for _, body, _ in stub.sent}
    assert all(message.startswith("Read the text below") for message in sent)
    assert all("<|im" not in message for message in sent)
    assert main(arguments) == 0  # finished: nobody is asked
    assert len(stub.sent) == asked
