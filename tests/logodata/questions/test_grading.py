"""Grades of written questions: by a scripted judge, and as a build reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import logodata.contexts.embedding
import logodata.judge.asked_judge
import logodata.questions.writer
from logodata.cli import main
from logodata.common.errors import UserError
from logodata.dataset.samples import read_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer
from logodata.prompts import QUESTION_GRADE_TEMPLATE, PromptFormat, encode_text
from logodata.questions.grader import Grade, describe_grades
from logodata.sources import SourceSettings, read_source
from tests.logodata.questions.scripted import SMALL, TEXT, ScriptedWriter, TopicEmbedder, read_lines, run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "tower.txt").write_text(TEXT)
    return folder


def names(number: int) -> str:
    kind = ("single_detail", "multi_detail", "biography", "summary")[number % 4]
    return f"tower-{kind}-{number + 1:02d}"


REPLIES = {
    0: "Score: 10",
    1: "It is true and clear.\nScore: 6.9",
    2: "Score: 11",
    3: "Score: 8\nScore: 9",
    4: "Score: 7.25",
    5: "Score: 9, and so on",
    6: "7.0",
    7: "score: 7.0.",
}
GRADES: dict[int, float] = {0: 10.0, 1: 6.9, 7: 7.0}
EIGHT = "questions_per_document=8"


def grade_replies() -> dict[str, str]:
    return {f"{names(number)}/grade": reply for number, reply in REPLIES.items()}


def graded(output: Path) -> dict[str, float | None]:
    [row] = read_lines(output)
    return {question["id"]: question.get("model_grade") for question in row["questions"]}


def test_grades_are_written_on_the_questions_and_a_malformed_one_is_none(
    tmp_path: Path,
    corpus: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, output = ScriptedWriter(tiny_model_dir, grade_replies()), tmp_path / "q.jsonl"
    assert run(monkeypatch, engine, corpus, output, tiny_model_dir, EIGHT, "grade={}") == 0
    assert graded(output) == {names(number): GRADES.get(number) for number in range(8)}
    assert not read_lines(tmp_path / "q.rejected.jsonl")
    said = capsys.readouterr().out
    assert "grades of 8 questions: 0 to 4 0, 4 to 6 0, 6 to 8 2, 8 to 10 1, malformed 5" in said
    # The judge sees the question, the answer and the evidence, chunk by chunk.
    [row] = read_lines(output)
    tokenizer = load_tokenizer(str(tiny_model_dir))
    question = row["questions"][1]
    chunks = [encode_text(tokenizer, TEXT[start:end]) for start, end in question["evidence"]]
    [request] = [request for request in engine.asked if request.id == f"{question['id']}/grade"]
    expected = PromptFormat(tokenizer, QUESTION_GRADE_TEMPLATE).encode(
        chunks, question=question["question"], reference=question["answers"][0]
    )
    assert request.prompt_ids == expected.ids
    assert (len(chunks), request.sampling.temperature) == (4, 0.0)


def test_questions_below_the_least_grade_are_not_kept_nor_those_without_one(
    tmp_path: Path, corpus: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, output = ScriptedWriter(tiny_model_dir, grade_replies()), tmp_path / "q.jsonl"
    assert run(monkeypatch, engine, corpus, output, tiny_model_dir, EIGHT, "grade={least: 7}") == 0
    assert graded(output) == {names(0): 10.0, names(7): 7.0}
    rows = {row["id"]: row for row in read_lines(tmp_path / "q.rejected.jsonl")}
    reasons = {names(number): "grade_malformed" for number in (2, 3, 4, 5, 6)} | {names(1): "graded_too_low"}
    assert {name: row["reason"] for name, row in rows.items()} == reasons
    assert rows[names(1)]["grade"] == 6.9


def test_another_least_grade_makes_the_file_again_and_asks_nothing(
    tmp_path: Path,
    corpus: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, silent = ScriptedWriter(tiny_model_dir, grade_replies()), ScriptedWriter(tiny_model_dir, {}, 0)
    output, direct = tmp_path / "q.jsonl", tmp_path / "direct.jsonl"
    assert run(monkeypatch, engine, corpus, output, tiny_model_dir, EIGHT, "grade={}") == 0
    everything = output.read_bytes()
    engine = ScriptedWriter(tiny_model_dir, grade_replies())
    assert run(monkeypatch, engine, corpus, direct, tiny_model_dir, EIGHT, "grade={least: 7}") == 0
    assert run(monkeypatch, silent, corpus, output, tiny_model_dir, EIGHT, "grade={least: 7}") == 0
    assert output.read_bytes() == direct.read_bytes() != everything
    assert output.with_suffix(".rejected.jsonl").read_bytes() == direct.with_suffix(".rejected.jsonl").read_bytes()
    capsys.readouterr()
    assert run(monkeypatch, silent, corpus, output, tiny_model_dir, EIGHT, "grade={least: 7}") == 0
    assert "is finished already" in capsys.readouterr().err
    assert run(monkeypatch, silent, corpus, output, tiny_model_dir, EIGHT, "grade={least: 5, max_new_tokens: 9}") == 2
    assert output.read_bytes() == direct.read_bytes(), "other settings are refused, and the file is left alone"
    assert run(monkeypatch, silent, corpus, output, tiny_model_dir, EIGHT, "grade={}") == 0
    assert output.read_bytes() == everything
    assert not silent.asked


def test_no_question_with_the_least_grade_is_an_error_of_one_line_with_the_grades(
    tmp_path: Path,
    corpus: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = ScriptedWriter(tiny_model_dir, {})
    assert run(monkeypatch, engine, corpus, tmp_path / "q.jsonl", tiny_model_dir, "grade={least: 8}") == 2
    error = capsys.readouterr().err
    assert "not kept: graded_too_low 4; grades of 4 questions: 0 to 4 0, 4 to 6 0, 6 to 8 4, 8 to 10 0" in error


def test_grades_are_kept_when_questions_are_added_and_a_build_reads_the_file(
    tmp_path: Path, corpus: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    replies = grade_replies()
    assert run(monkeypatch, ScriptedWriter(tiny_model_dir, replies), corpus, first, tiny_model_dir, "grade={}") == 0
    assert run(monkeypatch, ScriptedWriter(tiny_model_dir, {}), first, second, tiny_model_dir) == 0
    before = graded(first)
    assert graded(second) == {**before, **{names(number): None for number in range(4, 8)}}

    build = ["chunking.chunk_tokens=48", "contexts={num_chunks: 4, critical_top: 2}"]
    build += ["generation={max_new_tokens: 8, preferred: reference}"]
    data = []
    for name in ("graded", "plain"):
        if name == "plain":  # the same questions without grades give the same data
            rows = read_lines(first)
            for question in rows[0]["questions"]:
                question.pop("model_grade", None)
            first.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = tmp_path / name
        assert main(["build", str(first), *build, "--model", str(tiny_model_dir), "-o", str(folder)]) == 0
        data.append([sample.model_dump() for sample in read_samples(folder)])
    assert len(data[0]) == 4
    assert data[0] == data[1]


@pytest.mark.parametrize("value", ["high", 5, 11, True, None, [7]])
def test_a_grade_of_other_data_is_ignored(tmp_path: Path, value: Any) -> None:
    row = {"doc_id": "d", "context": TEXT, "questions": [{"question": "Who?", "answers": ["A"], "grade": value}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    [document] = read_source(SourceSettings(path=str(tmp_path / "d.jsonl"))).documents
    assert document.questions[0].model_grade is None
    assert "model_grade" not in document.questions[0].model_dump()


@pytest.mark.parametrize("value", ["high", 11, -1, [7]])
def test_a_damaged_grade_of_ours_is_an_error(tmp_path: Path, value: Any) -> None:
    row = {"doc_id": "d", "context": TEXT, "questions": [{"question": "Who?", "answers": ["A"], "model_grade": value}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="question field 'model_grade'"):
        read_source(SourceSettings(path=str(tmp_path / "d.jsonl")))


class OtherJudge:
    name = "judge 1"

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))
        self.asked: list[str] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            self.asked.append(request.id)
            yield GenerationResult(request.id, tuple(encode_text(self._tokenizer, "Score: 3")), "stop")


def test_another_model_with_another_engine_may_grade(
    tmp_path: Path,
    corpus: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, writer = OtherJudge(tiny_model_dir), ScriptedWriter(tiny_model_dir, {})
    grade = "grade={{least: {}, engine: {{kind: chat, base_urls: 'http://127.0.0.1:{}', served_model: judge-1}}}}"
    opened = []

    def run_with(least: str, port: int) -> int:
        def open_judge(settings: Any, *_: Any) -> OtherJudge:
            opened.append(settings.served_model)
            return judge

        args = ["questions", str(corpus), "-o", str(tmp_path / "q.jsonl"), "--model", str(tiny_model_dir)]
        monkeypatch.setattr(logodata.questions.writer, "open_engine", lambda *_: writer)
        monkeypatch.setattr(logodata.judge.asked_judge, "open_engine", open_judge)
        return main([*args, *SMALL, grade.format(least, port)])

    assert run_with("null", 9) == 0
    assert set(graded(tmp_path / "q.jsonl").values()) == {3.0}
    assert len(judge.asked) == 4
    assert opened == ["judge-1"]
    assert not any("/grade" in request.id for request in writer.asked)
    assert run_with("null", 10) == 0, "an engine may move"
    assert len(judge.asked) == 4


def test_what_does_not_fit_the_window_of_the_judge_is_not_graded(
    tmp_path: Path, corpus: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "grade={{engine: {{max_model_len: 900}}, least: {}}}"
    engine = ScriptedWriter(tiny_model_dir, {})
    more = ("kinds=[single_detail, summary]", "questions_per_document=2")
    assert run(monkeypatch, engine, corpus, tmp_path / "a.jsonl", tiny_model_dir, *more, small.format("null")) == 0
    found = graded(tmp_path / "a.jsonl")
    asked = {request.id for request in engine.asked if request.id.endswith("/grade")}
    assert found == {"tower-single_detail-01": 7.5, "tower-summary-02": None}
    assert asked == {"tower-single_detail-01/grade"}
    assert run(monkeypatch, engine, corpus, tmp_path / "b.jsonl", tiny_model_dir, *more, small.format("0")) == 0
    [row] = read_lines(tmp_path / "b.rejected.jsonl")
    assert (row["id"], row["reason"]) == ("tower-summary-02", "grade_exceeds_window")


def test_grades_are_described_in_the_bins_of_the_published_code() -> None:
    grades: list[Grade] = [0.0, 3.9, 4.0, 5.9, 6.0, 7.9, 8.0, 10.0, "malformed", "exceeds_window"]
    said = "grades of 10 questions: 0 to 4 2, 4 to 6 2, 6 to 8 2, 8 to 10 2, malformed 1, exceeds_window 1"
    assert describe_grades(grades) == said


def test_the_estimate_holds_all_checks_and_grades(
    tmp_path: Path,
    corpus: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is an upper bound of what is sent, and all that it counts is sent where every question is good."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("writer-1: {prompt: 1000000, response: 0}\n")
    engine = ScriptedWriter(tiny_model_dir, {}, evidence=", ".join(map(str, range(1, 9))))
    chat = f"engine={{kind: chat, base_urls: 'http://127.0.0.1:9', served_model: writer-1, prices: {prices}}}"
    more = (chat, "kinds=multi_detail", "clusters={min_clusters: 2}", "grade={}", "questions_per_document=2")
    monkeypatch.setattr(logodata.contexts.embedding, "SentenceEmbedder", TopicEmbedder)
    assert run(monkeypatch, engine, corpus, tmp_path / "q.jsonl", tiny_model_dir, *more) == 0
    said = capsys.readouterr().err
    replies = [request for request in engine.asked if not request.id.endswith("/grade")]
    grades = [request for request in engine.asked if request.id.endswith("/grade")]
    assert len(replies) == 2 * (1 + 1 + 8)
    for asked, label, spare in ((replies, "", 64 * 18), (grades, "grades: ", 64 * 2)):
        sent = sum(len(request.prompt_ids) for request in asked)
        [line] = [line for line in said.splitlines() if line.startswith(f"{label}{len(asked)} prompts of ")]
        estimate = int(line.removeprefix(label).split()[3].replace(",", ""))
        assert sent <= estimate <= sent + spare, "it cannot know how long a question will be, up to max_new_tokens"
