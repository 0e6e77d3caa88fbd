"""A model that reasons before it answers: only the answer is scored, and what was cut is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.reasoning import Reasoning
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.tasks.generate import Completion, PromptItem, complete
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.needles.task import build_samples
from logoeval.tasks.needles.task import run as run_needles
from logoeval.tasks.qa import METRICS, QaSettings, run
from logoeval.tasks.record_file import RecordFile
from tests.conftest import CHATML
from tests.logoeval.tasks.test_pairs import make_session

THOUGHT = "<think>Perhaps a mill? No.</think>\n\n"
OPENING = CHATML + "{% if add_generation_prompt and thinks is not false %}{{ '<think>\\n' }}{% endif %}"


def thinking_session(model: Any, tokenizer: Any, answers: Callable[[int], str], *, tokens: int = 60) -> Any:
    """A session whose engine answers the n-th question by ``answers(n)``, cut at what it is allowed."""
    asked: dict[str, int] = {}

    def answer(request: GenerationRequest) -> GenerationResult:
        number = asked.setdefault(request.id, len(asked))
        ids = encode_text(tokenizer, answers(number))
        most = request.sampling.max_new_tokens
        return GenerationResult(request.id, tuple(ids[:most]), "length" if len(ids) > most else "stop")

    session = make_session(model, tokenizer, answer)
    session.reasoning = Reasoning(tokenizer, tokens=tokens)
    return session


def test_the_answer_is_scored_and_the_reasoning_is_kept_beside_it(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path]
) -> None:
    def say(number: int) -> str:
        return ["the bridge", THOUGHT + "the bridge", "<think>the bridge, the bridge" + " on and on" * 50][number % 3]

    session = thinking_session(tiny_model, tiny_tokenizer, say)
    settings = QaSettings(data=make_build(), max_new_tokens=30)
    outcome = run(settings, session, tmp_path)
    records = {record["id"]: record for record in map(json.loads, (tmp_path / "qa.jsonl").open(encoding="utf-8"))}
    found = {row.id: (row.scores["token_f1"], row.scores["reasoning_cut"]) for row in outcome.samples}
    assert sorted(found.values()) == [(0.0, 1.0)] * 2 + [(1.0, 0.0)] * 4
    for row in outcome.samples:
        record = records[row.id]
        assert "think" not in record["response"]
        assert row.scores["reasoning_tokens"] == record.get("num_reasoning_tokens", 0)
        assert row.scores["ended"] == float(not record.get("reasoning_cut"))
        if not record.get("reasoning_cut") and "reasoning" in record:
            assert record["reasoning"] == "<think>Perhaps a mill? No."
    assert {"reasoning_cut", "reasoning_tokens"} <= {metric.key for metric in outcome.metrics}
    (said,) = outcome.notes
    assert said == (
        "4 of 6 replies reasoned, up to '</think>' and within 60 tokens; 2 did not come to its end, and their answers "
        "count as empty"
    )
    again = thinking_session(tiny_model, tiny_tokenizer, say)
    assert run(settings, again, tmp_path).samples == outcome.samples
    assert again.engine.answered == 0


def test_without_a_budget_it_is_a_note_and_no_measure(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, make_build: Callable[..., Path]
) -> None:
    """Else two runs under equal settings would have other measures, and could not be compared."""

    def say(number: int) -> str:
        return "<think>the bridge? the bridge" if number == 0 else "the bridge"

    session = thinking_session(tiny_model, tiny_tokenizer, say, tokens=0)
    outcome = run(QaSettings(data=make_build(), max_new_tokens=30), session, tmp_path)
    assert [metric.key for metric in outcome.metrics] == [metric.key for metric in METRICS]
    assert sorted(row.scores["token_f1"] for row in outcome.samples) == [0.0] + [1.0] * 5
    (said,) = outcome.notes
    assert said.startswith("1 of 6 replies reasoned without a budget for it, and 1 were cut there")


def test_a_text_to_continue_gets_no_budget_and_is_scored_whole(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    session = thinking_session(tiny_model, tiny_tokenizer, lambda _: "one<think>two" + "x" * 90, tokens=60)
    sampling = Sampling(20, (2,))
    items = [PromptItem(name, (5, 6), sampling, "t", reasons=name == "chat") for name in ("chat", "text")]
    file = RecordFile(tmp_path / "answers.jsonl", Completion)
    chat, text = complete(session, items, file, record=lambda made, _: made, label="a")
    assert (chat.response, chat.reasoning_cut) == ("", True)
    assert text.response.startswith("one<think>two")
    assert (text.num_response_tokens, text.finish_reason, text.reasoning) == (20, "length", None)


def test_a_number_named_while_reasoning_is_not_found(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """The official scores of RULER would count it."""
    settings = NiahSettings(lengths=(600,), haystacks=("noise",), num_samples=2)
    session = thinking_session(tiny_model, tiny_tokenizer, lambda _: "", tokens=200)
    session.settings.seed = 0
    built = build_samples(settings, session)
    samples = {sample.id: sample for sample, _ in built}
    session.reasoning = Reasoning(tiny_tokenizer, tokens=0)
    for (_, item), (_, other) in zip(built, build_samples(settings, session), strict=True):
        # The answer prefix would stand where the reasoning begins; the answer has room to repeat it.
        prefix = other.prompt_ids[len(item.prompt_ids) :]
        assert other.prompt_ids == item.prompt_ids + prefix
        assert tiny_tokenizer.decode(item.prompt_ids).endswith("<|im_start|>assistant\n")
        assert tiny_tokenizer.decode(prefix).endswith("mentioned in the provided text are")
        assert item.sampling.max_new_tokens == other.sampling.max_new_tokens + len(prefix)
    session.reasoning = Reasoning(tiny_tokenizer, tokens=200)

    def answer(request: GenerationRequest) -> GenerationResult:
        first, *others = samples[request.id].values
        text = f"<think>{' '.join(others)}</think>{first}"
        return GenerationResult(request.id, tuple(encode_text(tiny_tokenizer, text)), "stop")

    session.engine.answer = answer
    outcome = run_needles(settings, session, tmp_path)
    assert [row.scores["recall"] for row in outcome.samples] == [0.25, 0.25]
    assert outcome.notes[0].startswith("the model reasons first: no answer prefix was sent")


def test_runs_that_reason_otherwise_are_not_compared(
    tiny_model_dir: Path, tmp_path: Path, make_build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text(OPENING)
    command = ["qa", "--model", str(tiny_model_dir), "--data", str(make_build()), "qa.max_new_tokens=4"]
    command += ["qa.max_samples=2", f"chat_template={template}"]
    assert main([*command, "thinking_tokens=3", "-o", str(tmp_path / "thinks")]) == 0
    said = capsys.readouterr()
    assert "Cut while reasoning" in said.out
    assert main([*command, "chat_template_args.thinks=false", "-o", str(tmp_path / "not")]) == 0
    assert "reasoning" not in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "thinks"), str(tmp_path / "not"), "-o", str(tmp_path / "r.html")]) == 2
    assert "thinks" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "wide")]) == 2  # a budget of 8,192 where the template opens reasoning
    assert "thinking_tokens=8192" in capsys.readouterr().err
    assert main([*command, "chat_template_args.thnks=false", "-o", str(tmp_path / "typo")]) == 2
    assert "did you mean 'thinks'?" in capsys.readouterr().err
