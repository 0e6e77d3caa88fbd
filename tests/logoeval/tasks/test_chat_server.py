"""A model behind a chat server is measured by the tasks that generate, under its own name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from logodata.prompts import UserMessages
from logoeval.cli import main
from logoeval.records import read_results
from logoeval.tasks.ruler.prompts import Frame
from tests.logodata.engines.chat_stub import ChatStub, chat_stub, openai_answer


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as server:
        yield server


def find_all(message: str) -> Any:
    """The numbers of the needles in a message: a model that finds them all."""
    return openai_answer(", ".join(re.findall(r"is: (\d{7})\.", message)))


def command(model: Path, stub: ChatStub, out: Path, task: str, *more: str) -> list[str]:
    chat = ["engine.kind=chat", f"engine.base_urls={stub.url}", "engine.served_model=big", "engine.max_model_len=2048"]
    return [task, "--model", str(model), "-o", str(out), *chat, *more]


def test_needles(tiny_model_dir: Path, stub: ChatStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answer = find_all
    prices = tmp_path / "prices.yaml"
    prices.write_text("big: {prompt: 2, response: 10}\n")
    out = tmp_path / "out"
    # The window of the tokenizer's model, which is smaller, does not bound the server's.
    asked = ["niah.lengths=[1024]", "niah.num_samples=2", "niah.haystacks=noise", f"engine.prices={prices}"]
    assert main(command(tiny_model_dir, stub, out, "niah", *asked)) == 0
    result = read_results(out).tasks["niah"]
    assert [row.scores["recall"] for row in result.samples] == [1.0, 1.0]
    assert (result.provenance.model, result.provenance.model_fingerprint) == ("big", "big@openai chat")
    assert result.provenance.engine == "chat (openai)"
    assert any("38 prompt and 20 response tokens by the server's count" in said for said in result.notes)
    assert "2 prompts of" in capsys.readouterr().err
    for _, body, _ in stub.sent:
        message = body["messages"][0]["content"]
        assert message.startswith("Some special magic numbers")
        assert message.endswith("mentioned in the provided text are")  # the answer's beginning
    assert main(command(tiny_model_dir, stub, out, "niah", *asked)) == 0
    assert len(stub.sent) == 2  # finished: nobody is asked
    records = [json.loads(line) for line in (out / "predictions" / "niah.jsonl").open(encoding="utf-8")]
    assert [record["usage"] for record in records] == [[19, 10]] * 2


def test_what_needs_log_probabilities_or_an_adapter_is_refused(
    tiny_model_dir: Path,
    stub: ChatStub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_build: Callable[..., Path],
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("The bridge stood in the mill. " * 200)
    for number, (more, expected) in enumerate(
        {
            ("ppl", f"ppl.text={text}", "ppl.lengths=64"): "no log-probabilities",
            ("pairs", f"pairs.data={make_build()}"): "no log-probabilities",
            ("niah", "niah.lengths=[256]", f"adapter={tmp_path}"): "told no adapter",
            ("niah", "niah.lengths=[256]", f"engine.prices={text}"): "table of prices",
        }.items()
    ):
        assert main(command(tiny_model_dir, stub, tmp_path / str(number), *more)) == 2
        assert expected in capsys.readouterr().err
    assert not stub.sent


def test_the_message_of_a_ruler_prompt_is_its_text_without_a_chat_template(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = [("Track: A = 1.\nWhich?", " They are:  A\n"), ("Track: B = 2.\nWhich?", " They are: ")]
    framed = Frame(tiny_tokenizer, "chat").encode(turns)
    bare = Frame(tiny_tokenizer, "none").encode(turns)
    messages = UserMessages(tiny_tokenizer)
    assert messages.read(framed) == messages.read(bare) == "".join(question + begun for question, begun in turns)


def test_what_two_chat_runs_may_differ_in(
    tiny_model_dir: Path, stub: ChatStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model, but not what the server is told."""
    stub.answer = find_all
    asked = ["niah.lengths=[1024]", "niah.num_samples=1", "niah.haystacks=noise"]
    for name, more in {
        "one": [],
        "other": ["engine.served_model=other"],
        "hot": ["engine.extra_body={temperature: 1}"],
    }.items():
        assert main([*command(tiny_model_dir, stub, tmp_path / name, "niah", *asked), *more]) == 0
    notes = read_results(tmp_path / "hot").tasks["niah"].notes
    assert any("the answers are not greedy" in said for said in notes)
    report = ["-o", str(tmp_path / "report.html")]
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "other"), *report]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "hot"), *report]) == 2
    assert "extra_body" in capsys.readouterr().err
    assert main([*command(tiny_model_dir, stub, tmp_path / "one", "niah", *asked), "engine.api=anthropic"]) == 2
    assert "now it is 'big@anthropic chat'" in capsys.readouterr().err
