from __future__ import annotations

import json
from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logodata.sources import SourceSettings, read_source
from logodata.text import words

GOOD = {"doc_id": "d", "context": "A long text.", "questions": [{"question": "Who?", "answers": ["Ann"]}]}


def write(folder: Path, *lines: object) -> SourceSettings:
    file = folder / "docs.jsonl"
    file.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return SourceSettings(path=str(file))


def test_one_document_with_many_questions_from_either_shape(tmp_path: Path) -> None:
    nested = {
        "doc_id": "a",
        "context": "T",
        "questions": [{"question": "Q1", "answers": ["x"]}, {"question": "Q2", "answers": ["y", " "]}],
    }
    flat = [{"_id": str(n), "context": "U", "input": f"Q{n}", "answers": [f"{n}"]} for n in (7, 8)]
    documents = read_source(write(tmp_path, nested, *flat)).documents
    assert [[q.id for q in d.questions] for d in documents] == [["a-01", "a-02"], ["7", "8"]]
    assert documents[0].questions[1].answers == ["y"]
    assert documents[1].where.endswith("docs.jsonl:2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"context": "T", ', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ([1, 2], "a JSON list, not an object"),
        ({"questions": []}, "no field 'context/text/document'"),
        ({"context": "T"}, "no field 'question/input'"),
        ({"context": 5, "question": "Q"}, "field 'context' is int, not str"),
        ({"context": "T", "question": "Q", "answers": [3]}, "an answer is not a string"),
        ({"context": "T", "questions": ["Q"]}, "a question is str, not an object"),
        ({"doc_id": "d", "context": "another", "question": "Q", "answers": ["A"]}, "has another context than at"),
        ({"context": "T", "id": "d-01", "question": "Q", "answers": ["A"]}, "question id 'd-01' stands at"),
        ({"context": "T", "question": "Q", "answers": ["A"], "evidence": [["x"]]}, "question field 'evidence'"),
    ],
)
def test_structural_faults_name_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_source(write(tmp_path, GOOD, line))
    assert message in str(caught.value)
    assert "docs.jsonl:2" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"context": " \n", "question": "Q", "answers": ["A"]}, "empty_document"),
        ({"context": "T", "question": " ", "answers": ["A"]}, "empty_question"),
        ({"context": "T", "question": "Q", "answers": [" "]}, "no_reference_answer"),
        ({"context": "T", "question": "Q"}, "no_reference_answer"),
    ],
)
def test_faults_of_content_are_rows_with_a_reason(tmp_path: Path, row: object, reason: str) -> None:
    source = read_source(write(tmp_path, GOOD, row))
    assert [fault["reason"] for fault in source.faults] == [reason]
    assert sum(len(d.questions) for d in source.documents) == 1


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    settings = write(tmp_path, {"passage": "T", "ask": "Q", "gold": "A"})
    mapped = settings.model_copy(update={"columns": {"context": "passage", "question": "ask", "answers": "gold"}})
    assert read_source(mapped).documents[0].questions[0].answers == ["A"]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_source(SourceSettings(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match="holds no document"):
        read_source(write(tmp_path, b""))


@pytest.mark.parametrize(("name", "least"), [("train", 12), ("eval", 6)])
def test_the_embedded_documents_keep_their_promises(name: str, least: int) -> None:
    source = read_source(SourceSettings(path=f"embedded:{name}"))
    assert not source.faults
    assert len(source.documents) >= least
    for document in source.documents:
        assert 1500 <= len(document.text.split()) <= 4000
        assert len(document.questions) >= 8
        assert {q.kind for q in document.questions} == {"single_detail", "multi_detail", "summary"}
        for question in document.questions:
            assert question.evidence
            spans = [document.text[start:end] for start, end in question.evidence]
            assert all(spans)
            if question.kind == "single_detail":
                assert set(words(question.answers[0])) <= set(words(" ".join(spans))), question.id


def test_train_and_eval_documents_are_disjoint() -> None:
    texts = [
        {d.text for d in read_source(SourceSettings(path=f"embedded:{name}")).documents} for name in ("train", "eval")
    ]
    assert not texts[0] & texts[1]
