"""The page of samples: whole, escaped, self-contained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main
from logodata.common.files import write_json
from logodata.contract import (
    ContextChunk,
    DecisionRow,
    PreferenceSample,
    QuestionOutcome,
    RejectedQuestion,
    Response,
    Stats,
)
from logodata.dataset.inspect_words import ruling
from logodata.dataset.samples import write_samples
from logodata.judge.settings import JudgeSettings
from tests.data_sets import new_statistics, recipe_json, write_manifest

EVIL = "<script>alert('mill')</script> & \"owls\" <img src=x onerror=alert(1)>"
REJECTED = RejectedQuestion(
    id="r0",
    doc_id="d<b>",
    where="my.jsonl:7",
    source="my.jsonl",
    question="Who?",
    kind="other",
    answers=["a mill"],
    reason="preferred_wrong",
    stage="judge",
)


def statistics(outcomes: Iterable[QuestionOutcome]) -> Stats:
    gathered = new_statistics()
    for outcome in outcomes:
        gathered.add(outcome)
    return gathered.result()


class Reader(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, class_: str) -> int:
        return sum(class_ in (attributes.get("class") or "").split() for _, attributes in self.elements)


def write_data(folder: Path, count: int = 3, rejected: list[RejectedQuestion] | None = None) -> Path:
    def response(strategy: str, text: str, share: float) -> Response:
        return Response(
            strategy=strategy,
            text=text,
            token_ids=[5],
            ended=True,
            word_share=share,
            token_f1=0.5,
            verdict="right" if share >= 0.6 else "wrong",
        )

    samples = [
        PreferenceSample(
            id=f"q{number}",
            doc_id="d",
            question_id=f"q{number}",
            kind="single_detail",
            question=f"What is {EVIL} number {number}?",
            answers=["green millet"],
            prompt_ids=[1, 2, 3],
            chunks=[
                ContextChunk(
                    doc_id="d<i>",
                    index=n,
                    start=0,
                    end=1,
                    token_start=n,
                    token_end=n + 1,
                    score=2.5 - n,
                    critical=n == 0,
                    text=f"The Millet is green. {EVIL}",
                )
                for n in range(2)
            ],
            chosen=response("model", f"It is millet. {EVIL}", 1.0),
            rejected=[response("irrelevant", "It is an owl's number.", 0.0), response("mixed-0.5", "Sand.", 0.0)],
            answer_in_critical=True,
        )
        for number in range(count)
    ]
    rows = [REJECTED.model_copy(update={"preferred": [EVIL]})] if rejected is None else rejected
    folder.mkdir()
    outcomes = [*map(decided, samples), *map(unkept, rows)]
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    (folder / "decisions.jsonl").write_text(
        "".join(json.dumps(row.to_json()) + "\n" for outcome in outcomes for row in outcome.decisions)
    )
    write_json(folder / "stats.json", statistics(outcomes).to_json())
    recipe = recipe_json(judge={"right_at": 0.7})
    if samples:
        (folder / "data").mkdir()
        write_samples(folder / "data" / "train-00000-of-00001.parquet", samples)
        write_manifest(folder, model="m<u>", source={"path": EVIL, "sha256": "123"}, recipe=recipe)
    else:
        (folder / "work").mkdir()
        write_json(folder / "work" / "settings.json", {"recipe": recipe})
    return folder


def decided(sample: PreferenceSample) -> QuestionOutcome:
    """The sample with its decisions: of two candidates the first one was ruled out."""
    rows = [decision(sample.id, "preferred", sample.chosen, rule="preferred_not_ended", kept=False)]
    rows.append(decision(sample.id, "preferred", sample.chosen, model_verdict="correct", second="wrong"))
    rows += [decision(sample.id, "rejected", response, model_verdict="wrong") for response in sample.rejected]
    return QuestionOutcome(id=sample.id, decisions=rows, sample=sample)


def unkept(row: RejectedQuestion) -> QuestionOutcome:
    said = Response(
        strategy="model", text=EVIL, token_ids=[5], ended=False, word_share=0.65, token_f1=0.2, number_share=0.0,
        verdict="wrong",
    )  # fmt: skip
    rows = [decision(row.id, "preferred", said, rule="preferred_wrong", kept=False) for _ in row.preferred or []]
    return QuestionOutcome(id=row.id, decisions=rows, rejected=row)


def decision(
    question_id: str,
    role: str,
    response: Response,
    *,
    rule: str | None = None,
    kept: bool = True,
    model_verdict: str | None = None,
    second: str | None = None,
) -> DecisionRow:
    return DecisionRow.model_validate(
        {
            "id": question_id,
            "source": "my.jsonl",
            "role": role,
            **response.model_dump(exclude={"token_ids"}),
            "rule": rule,
            "model_verdict": model_verdict,
            "second_model_verdict": second,
            "kept": kept,
        }
    )


def inspect(data: Path, *arguments: str) -> Reader:
    file = data.parent / "page.html"
    assert main(["inspect", str(data), "--html", str(file), *arguments]) == 0
    return Reader(file.read_text(encoding="utf-8"))


def test_the_page_holds_everything_and_only_as_text(tmp_path: Path) -> None:
    page = inspect(write_data(tmp_path / "set"))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "iframe", "link", "i", "b", "u"}
    assert not page.open, "every element is closed"
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert re.fullmatch(r"(#reason-\d+)?", attributes.get("href") or "")
    assert page.text.count(EVIL) == 1 + 3 * (1 + 1 + 2) + 1  # source; question, answer, two chunks; the rejected one
    limit = "of the reference's words (right from 70 %)"
    assert f"wrong: 0 % {limit}; hallucination; no rule against it; model judge: wrong1 tokens" in page.text
    assert f"wrong: 0 % {limit}; instruction unfollowing; no rule against it; model judge: wrong1 tokens" in page.text
    assert f"right: 100 % {limit}; no rule against it; model judge: correct, in another wording wrong1" in page.text
    assert f"wrong: 65 % {limit}; instruction unfollowing; rule: preferred wrongcut at the length cap; F1" in page.text
    assert "Purity 0%" in page.text, "the second wording says that every preferred response is wrong"
    assert "chunk 0, critical, score 2.5" in page.text
    assert "my.jsonl:7, preferred wrong" in page.text
    assert page.named("critical") == 3
    assert page.named("preferred") == 3
    assert page.named("dis-preferred") == 6
    viewport = [attributes for name, attributes in page.elements if attributes.get("name") == "viewport"]
    assert "width=device-width" in str(viewport[0]["content"]), "a phone does not shrink it"
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_words_of_the_reference_are_marked_in_critical_chunks_and_answers(tmp_path: Path) -> None:
    page = inspect(write_data(tmp_path / "set", 1, []))
    assert sum(name == "mark" for name, _ in page.elements) == 3  # Millet and green in the chunk, millet in the answer


def test_how_many_are_shown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [REJECTED.model_copy(update={"id": f"r{n}"}) for n in range(7)]
    data = write_data(tmp_path / "set", 60, rows)
    page = inspect(data)
    assert "50 of 60 samples and 5 of 7 questions without one" in capsys.readouterr().out
    assert "The first 50 of 60 samples" in page.text
    assert "Not kept: preferred wrong (7, the first 5)" in page.text
    assert "All 60 samples" in inspect(data, "-n", "60").text
    one = inspect(data, "--id", "q7")
    assert "number 7?" in one.text
    assert "number 8?" not in one.text
    assert "r6, my.jsonl:7" in inspect(data, "--id", "r6").text
    assert main(["inspect", str(data), "--html", str(tmp_path / "x.html"), "--id", "nobody"]) == 2
    assert "no question 'nobody'" in capsys.readouterr().err


def test_a_build_without_a_pair_shows_what_was_not_kept(tmp_path: Path) -> None:
    changes = {"question": "", "answers": None, "reason": "empty_question", "detail": f"of {EVIL}", "stage": "source"}
    page = inspect(write_data(tmp_path / "set", 0, [REJECTED.model_copy(update=changes)]))
    assert "Kept 0 of 1 questions; not kept: empty_question 1." in page.text
    assert f"empty question: of {EVIL}" in page.text


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_a_file_in_the_way_is_met_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Before the data are even looked for."""
    (tmp_path / "file").touch()
    options = {"inspect": ["--html"], "export": ["--format", "trl", "-o"]}[command]
    for place, message in (("file/x.jsonl", "file: a file, not a folder"), ("file/y/x.jsonl", "file: a file, not a")):
        assert main([command, str(tmp_path / "none"), *options, str(tmp_path / place)]) == 2
        assert message in capsys.readouterr().err
    if command == "inspect":
        assert main(["inspect", str(tmp_path / "none"), "--html", str(tmp_path)]) == 2
        assert "is a folder (give --html FILE.html)" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["-1", "0", "many"])
def test_a_count_is_a_positive_number(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str) -> None:
    assert main(["inspect", str(tmp_path), "-n", count]) == 2
    assert f"'{count}' is no positive number" in capsys.readouterr().err


def test_no_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none"), "--html", str(tmp_path / "x.html")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_stats_count_error_patterns_and_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(write_data(tmp_path / "set")), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["dispreferred_error_patterns"] == {"instruction_unfollowing": 3, "hallucination": 3}
    assert json.loads(out) == json.loads((tmp_path / "set" / "stats.json").read_text())


def test_right_dispreferred_responses_of_a_switched_off_judge_are_counted_apart(tmp_path: Path) -> None:
    from logodata.dataset.card import describe_patterns
    from logodata.dataset.samples import read_samples

    sample = read_samples(write_data(tmp_path / "set", 1))[0]
    right = sample.model_copy(update={"rejected": [sample.chosen, sample.rejected[1]]})
    stats = statistics([decided(right)])
    assert stats.dispreferred_error_patterns == {"instruction_unfollowing": 1, "hallucination": 0, "right": 1}
    assert "1 are right: the judge was off" in describe_patterns(stats)
    assert stats.purity == 0


def terminal(data: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["inspect", str(data), *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_verdicts_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "set")
    limit = "of the reference's words (right from 70 %)"
    shown = terminal(data, capsys)
    assert "q0: 3 prompt tokens" in shown
    assert "q1" not in shown
    assert f"preferred It is millet. {EVIL} right: 100 % {limit}; no rule against it; model judge: correct, in" in shown
    assert f"dis-preferred Sand. wrong: 0 % {limit}; instruction unfollowing; no rule against it" in shown
    assert "(mixed-0.5, 1 tokens, ended by itself)" in shown
    assert "q2: 3 prompt tokens" in terminal(data, capsys, "--id", "q2")
    left = terminal(data, capsys, "--id", "r0")
    assert left.startswith("r0 (my.jsonl:7): not kept, preferred wrong question Who? reference a mill")
    assert f"wrong: 65 % {limit}; instruction unfollowing; rule: preferred wrong (model, cut at" in left
    assert main(["inspect", str(data), "--id", "nobody"]) == 2


@pytest.mark.parametrize(
    ("settings", "measured", "said"),
    [
        ({}, {"word_share": 0.5}, "wrong: 50 % of the reference's words (right from 60 %); instruction"),
        ({}, {"similarity": 0.8, "verdict": "half_right"}, "half right: similarity to the reference 0.80 (right from "),
        ({"measure": "token_f1", "right_at": 0.4}, {"verdict": "right"}, "right: token F1 50 % (right from 40 %)"),
        ({"measure": "containment"}, {}, "wrong: does not hold the reference; instruction"),
        ({}, {"word_share": 1.0, "number_share": 0.5, "verdict": "half_right"}, "60 %), but 50 % of its numbers"),
        ({"enabled": False}, {}, "no rule against it; the judge was off"),
    ],
)
def test_the_measure_that_decided_is_named(settings: dict[str, Any], measured: dict[str, Any], said: str) -> None:
    common = {"strategy": "model", "text": "Sand.", "token_ids": [5], "ended": True, "word_share": 0.0}
    response = Response(**{**common, "token_f1": 0.5, "contains_reference": False, "verdict": "wrong", **measured})
    assert said in ruling(decision("q", "preferred", response), "Who?", JudgeSettings(**settings))
