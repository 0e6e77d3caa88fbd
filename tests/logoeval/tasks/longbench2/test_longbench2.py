"""LongBench v2. ``official_cases.json`` holds inputs of our own, and what the official code (2e00731) made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer
from logodata.prompts import decode_text, encode_text
from logoeval.cli import main
from logoeval.intervals import summarise
from logoeval.records import SampleRow, read_results
from logoeval.tasks.chat_prompts import ChatPrompts
from logoeval.tasks.longbench2.data import Question, read_questions
from logoeval.tasks.longbench2.prompts import cut, fill
from logoeval.tasks.longbench2.scores import METRICS, extract_answer, scores
from logoeval.tasks.longbench2.settings import LongBench2Settings
from logoeval.tasks.longbench2.task import run
from tests.logoeval.tasks.test_pairs import make_session

CASES = json.loads(Path(__file__).with_name("official_cases.json").read_text(encoding="utf-8"))
MODES = {"0shot": "zero_shot", "cot": "cot", "no_context": "no_context"}


@cache
def embedded_prompts() -> ChatPrompts:
    return ChatPrompts(load_tokenizer("embedded"))


@pytest.mark.parametrize("case", CASES["extract"], ids=lambda case: case["response"][:40])
def test_the_choice_is_the_official_one(case: dict[str, str]) -> None:
    assert extract_answer(case["response"]) == case["pred"]


@pytest.mark.parametrize("case", CASES["results"], ids=lambda case: case["about"])
def test_the_numbers_are_those_of_result_py(case: dict[str, Any]) -> None:
    rows = []
    for number, row in enumerate(case["rows"]):
        facts = Question(**row_fields(row), where="").facts
        found = scores(row["pred"], row["answer"])
        assert found["accuracy"] == float(row["judge"])
        rows.append(SampleRow(id=str(number), cluster=str(number), prompt_hash="", scores=found, facts=facts))
    summary = summarise([metric for metric in METRICS if metric.key != "truncated"], rows)
    for kind, key in (("plain", "accuracy"), ("compensated", "compensated")):
        ours = {
            next(iter(row.slice.values()), "overall"): round(100 * row.value, 1)
            for row in summary
            if row.metric == key and row.slice.keys() <= {"difficulty", "text_length"}
        }
        official = {name: value for name, value in case[kind].items() if name not in ("name", "official_error")}
        if "official_error" in case[kind]:  # it divides by the number of easy rows, and there are none
            assert "easy" not in ours or len(rows) == 1
        else:
            assert ours == official


def row_fields(row: dict[str, str]) -> dict[str, Any]:
    given = {
        name: row.get(name, "") for name in ("domain", "sub_domain", "difficulty", "length", "question", "context")
    }
    choices = tuple(row.get(f"choice_{letter}", "") for letter in "ABCD")
    return {**given, "id": row["_id"], "choices": choices, "answer": row["answer"]}


@pytest.mark.parametrize("case", CASES["prompts"], ids=lambda case: case["about"])
def test_prompts_are_those_of_pred_py(case: dict[str, Any]) -> None:
    question = Question(**row_fields(case["item"]), where="")
    reasoning = ""
    for number, (asked, answer) in enumerate(zip(case["asked"], case["answers"], strict=True)):
        template = "cot_answer" if number else MODES[case["mode"]]
        text, _ = cut(embedded_prompts(), fill(template, question, reasoning), case["max_len"])  # type: ignore[arg-type]
        if case["about"] == "special tokens in the text, cut: they go":
            # The official tokenizer reads them as control tokens, and drops them where it cuts.
            assert "<|im_end|>" in text
            assert "<|im_end|>" not in asked["prompt"]
            continue
        assert text == asked["prompt"]
        reasoning = answer.strip()
    for written in case["written"]:
        assert extract_answer(written["response"]) == written["pred"]


def item(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "_id": f"q{number}",
        "domain": "Single-Document QA" if number % 2 else "Code Repository Understanding",
        "sub_domain": "Literary",
        "difficulty": "easy" if number % 3 else "hard",
        "length": ("short", "medium", "long")[number % 3],
        "question": f"Who rang bell {number}?",
        "choice_A": "Anna",
        "choice_B": "Ben",
        "choice_C": "Clara",
        "choice_D": "Nobody",
        "answer": "ABCD"[number % 4],
        "context": f"Bell {number} rang at noon. " * 40,
    }
    return {**made, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_questions_read_alike_from_every_form(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [item(number) for number in range(5)]
    expected = read_questions(str(write(tmp_path / "data.json", rows)), None)
    assert [question.id for question in expected] == [f"q{number}" for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "data.json", rows)
    for source in (write(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet", tmp_path / "hub"):
        found = read_questions(str(source), None)
        assert [(q.id, q.choices, q.context, q.answer) for q in found] == [
            (q.id, q.choices, q.context, q.answer) for q in expected
        ]
    assert read_questions(str(tmp_path / "data.json"), 2) == expected[:2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no questions"),
        ([{**item(0), "answer": "E"}], "the answer 'E' is none of A, B, C and D"),
        ([{**item(0), "choice_C": None}], "no text under 'choice_C'"),
        ([item(0), item(0)], "_id 'q0' is at"),
        (["q0"], "no text under"),
    ],
)
def test_rows_that_cannot_be_asked_are_one_line(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read_questions(str(write(tmp_path / "data.json", rows)), None)


def test_files_that_hold_no_rows_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[{")
    (tmp_path / "one.json").write_text("{}")
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    for name, said in [
        ("data.json", "not JSON"),
        ("one.json", "not a list of rows"),
        ("rows.csv", "not a file of rows"),
        ("empty", "holds no .json, .jsonl or .parquet file"),
        ("none/at/all", "no such file or folder"),
    ]:
        with pytest.raises(UserError, match=said):
            read_questions(str(tmp_path / name), None)


def say(tokenizer: Any, choose: Callable[[str], str]) -> Callable[[GenerationRequest], GenerationResult]:
    def answer(request: GenerationRequest) -> GenerationResult:
        text = choose(decode_text(tokenizer, request.prompt_ids))
        return GenerationResult(request.id, tuple(encode_text(tokenizer, text)), "stop")

    return answer


def test_chain_of_thought_is_two_calls_and_the_second_decides(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.json", [item(number) for number in range(6)])

    def choose(prompt: str) -> str:
        if "bell 5?" in prompt and "omitted" not in prompt:
            return " "
        if "omitted" in prompt:
            assert "step by step: I saw Ben" in prompt or "bell 5?" in prompt
            return "The correct answer is (B)"
        return "I saw Ben. The correct answer is (A)\n"

    session = make_session(tiny_model, tiny_tokenizer, say(tiny_tokenizer, choose))
    session.settings.seed = 0
    outcome = run(LongBench2Settings(data=str(data), mode="cot"), session, tmp_path)
    found = {row.id: row.scores["accuracy"] for row in outcome.samples}
    # q1's and q5's right choice is B; of q5 no reasoning came, and officially it would be left out
    assert found == {"q0": 0.0, "q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 0.0, "q5": 0.0}
    assert [row.scores["no_choice"] for row in outcome.samples] == [0.0] * 5 + [1.0]
    lines = [json.loads(line) for line in (tmp_path / "longbench2.jsonl").read_text().splitlines()]
    assert {line["response_cot"] for line in lines} == {"I saw Ben. The correct answer is (A)", None}
    again = make_session(tiny_model, tiny_tokenizer, say(tiny_tokenizer, choose))
    again.settings = session.settings
    assert run(LongBench2Settings(data=str(data), mode="cot"), again, tmp_path).samples == outcome.samples
    assert again.engine.answered == 0


def test_the_command_and_a_window_that_cuts(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.json", [item(number) for number in range(4)])
    command = ["longbench2", "--model", str(tiny_model_dir), "--data", str(data), "--limit", "3"]
    assert main([*command, "engine.max_model_len=900", "-o", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert "3 questions, where LongBench v2 has 503: no official score" in said.out
    result = read_results(tmp_path / "a").tasks["longbench2"]
    assert all(row.scores["truncated"] for row in result.samples)
    assert any("3 of 3 prompts were cut" in note for note in result.notes)
    assert main([*command, "engine.max_model_len=900", "longbench2.mode=no_context", "-o", str(tmp_path / "b")]) == 0
    assert not any(row.scores["truncated"] for row in read_results(tmp_path / "b").tasks["longbench2"].samples)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "r.html")]) == 2
    assert "mode" in capsys.readouterr().err
    assert main([*command, "engine.max_model_len=500", "-o", str(tmp_path / "c")]) == 2
    assert "leave no room for a prompt" in capsys.readouterr().err
    # LongBench's own predictions lie beside, and neither is taken for the other
    rows = [{"dataset": "qasper", "input": "Who?", "context": "Ben.", "answers": ["Ben"], "length": 3, "_id": "1"}]
    lines = write(tmp_path / "rows.jsonl", rows)
    assert main(["score", str(tmp_path / "a")]) == 0
    assert main(["longbench", "--model", str(tiny_model_dir), "--data", str(lines), "-o", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "a")]) == 2
    assert "holds predictions of LongBench and of LongBench v2" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "a" / "predictions" / "longbench2.jsonl")]) == 0
    assert main(["score", str(tmp_path / "a" / "predictions" / "longbench")]) == 0


@pytest.mark.parametrize("case", CASES["results"], ids=lambda case: case["about"])
def test_official_prediction_files_are_scored(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "pred": row["pred"] or None} for row in case["rows"]]
    path = write(tmp_path / "Some-Model-7B.jsonl", rows)
    assert main(["score", str(path), "-o", str(tmp_path / "scores.json")]) == 0
    assert "no official score" in capsys.readouterr().out
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["benchmark"] == "LongBench v2"
    (overall,) = [row["value"] for row in record["summary"] if row["metric"] == "accuracy" and not row["slice"]]
    if "overall" in case["plain"]:
        assert round(100 * overall, 1) == case["plain"]["overall"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "E"}, "the answer 'E' is none of A, B, C and D"),
        ({"pred": "yes"}, "'pred' is 'yes', no letter"),
        ({"length": None}, "no text under 'length'"),
    ],
)
def test_a_line_that_cannot_be_scored_is_one_line(
    change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"_id": "a", "answer": "A", "difficulty": "easy", "length": "short", "pred": "A"}
    path = write(tmp_path / "model.jsonl", [row, {**row, "_id": "b", **change}])
    assert main(["score", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
