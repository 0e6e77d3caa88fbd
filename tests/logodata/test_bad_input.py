"""Bad input of sources, one table: each case ends in a line that says what, where and how to mend it, or in a row of
``rejected.jsonl`` with its reason. Nothing is lost without a word."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logodata.sources.json_rows
from logodata.common.errors import UserError
from logodata.sources import SourceSettings, read_source

GOOD = {"doc_id": "good", "context": "A long text.", "questions": [{"question": "Who?", "answers": ["Ann"]}]}
QA = {"context": "T", "question": "Q", "answers": ["A"]}

Write = Callable[[Path], SourceSettings]


def lines(*rows: object, name: str = "docs.jsonl", **settings: Any) -> Write:
    """Writes a file of JSON lines; bytes stand as they are."""

    def write(folder: Path) -> SourceSettings:
        encoded = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        (folder / name).write_bytes(b"\n".join(encoded))
        return SourceSettings(path=str(folder / name), **settings)

    return write


def table(rows: list[dict[str, Any]], cut: int | None = None, **settings: Any) -> Write:
    def write(folder: Path) -> SourceSettings:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / "docs.parquet")
        if cut:
            data = (folder / "docs.parquet").read_bytes()
            (folder / "docs.parquet").write_bytes(data[:cut])
        return SourceSettings(path=str(folder / "docs.parquet"), **settings)

    return write


def files(contents: dict[str, bytes], at: str = "", **settings: Any) -> Write:
    def write(folder: Path) -> SourceSettings:
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return SourceSettings(path=str(folder / at), **settings)

    return write


def saved_splits(**settings: Any) -> Write:
    def write(folder: Path) -> SourceSettings:
        import datasets

        both = {name: datasets.Dataset.from_list([QA]) for name in ("train", "test")}
        datasets.DatasetDict(both).save_to_disk(str(folder / "saved"))
        return SourceSettings(path=str(folder / "saved"), **settings)

    return write


def side(*rows: object) -> Write:
    def write(folder: Path) -> SourceSettings:
        encoded = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        (folder / "qa.jsonl").write_bytes(b"\n".join(encoded))
        return lines({"doc_id": "d", "context": "Some text."})(folder).model_copy(
            update={"questions": str(folder / "qa.jsonl")}
        )

    return write


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"role": role, "content": text} for role, text in said]}


REFUSED: dict[str, tuple[Write, str, str]] = {
    # JSON lines
    "half an object": (lines(GOOD, b'{"context": "T", '), "docs.jsonl:2", "not valid JSON"),
    "last line cut off": (lines(GOOD, json.dumps(QA).encode()[:-9]), "docs.jsonl:2", "not valid JSON"),
    "not UTF-8": (lines(GOOD, b'{"context": "caf\xe9"}'), "docs.jsonl:2", "not UTF-8 (byte 16"),
    "UTF-16": (lines(json.dumps(GOOD).encode("utf-16")), "docs.jsonl:1", "not UTF-8 (byte 0"),
    "a bare string": (lines(GOOD, "text"), "docs.jsonl:2", "a JSON str, not an object"),
    "null": (lines(GOOD, None), "docs.jsonl:2", "a JSON NoneType, not an object"),
    "a list in a line": (lines(GOOD, [GOOD]), "docs.jsonl:2", "a JSON list, not an object"),
    "an HTML page": (lines(b"<!doctype html>"), "docs.jsonl:1", "not valid JSON"),
    "nested without end": (lines(b'{"context": ' + b"[" * 200_000), "docs.jsonl:1", "not valid JSON"),
    "a number of 5,000 digits": (lines(b'{"context": ' + b"1" * 5000 + b"}"), "docs.jsonl:1", "not valid JSON"),
    "a key twice": (lines(b'{"context": "T", "context": "U"}'), "docs.jsonl:1", "key 'context' stands twice"),
    "a gigantic line": (lines(GOOD, {"context": "x" * 5000}), "docs.jsonl:2", "a row of more than"),
    "half a character": (lines({**QA, "context": "a\ud83d"}), "docs.jsonl:1", "half a character (\\ud83d, at 1)"),
    "half a character in an answer": (lines({**QA, "answers": ["\ude00"]}), "docs.jsonl:1", "'answers' holds half"),
    "an empty file": (lines(), "docs.jsonl", "holds no document"),
    "blank lines only": (lines(b" ", b"\t"), "docs.jsonl", "holds no document"),
    "compressed": (files({"d.jsonl": gzip.compress(b"{}")}, "d.jsonl"), "d.jsonl", "is compressed (gzip)"),
    # a JSON list
    "a list cut off": (lines(json.dumps([QA, QA]).encode()[:-5], name="l.json"), "l.json:1", "has no end"),
    "a list with a fault": (lines(b"[", QA, b', {"context": T}]', name="l.json"), "l.json:3", "not valid JSON"),
    "a list without comma": (lines(b"[", QA, QA, b"]", name="l.json"), "l.json:3", "no comma here"),
    "a list with a comma too many": (lines(b"[", QA, b",]", name="l.json"), "l.json:3", "not valid JSON"),
    "two lists": (lines(b"[", QA, b"]", b"[]", name="l.json"), "l.json:4", "something follows the list"),
    "a list of strings": (lines(["T"], name="l.json"), "l.json:1", "a JSON str, not an object"),
    "a list not UTF-8": (lines(b'[{"context": "caf\xe9"}]', name="l.json"), "l.json:1", "not UTF-8"),
    "an empty list": (lines([], name="l.json"), "l.json", "holds no document"),
    # fields
    "no context": (lines({"contxt": "T", "question": "Q"}), "docs.jsonl:1", "found: contxt, question"),
    "context is null": (lines({**QA, "context": None}), "docs.jsonl:1", "no field 'context/text/document'"),
    "context is a number": (lines({**QA, "context": 5}), "docs.jsonl:1", "field 'context' is int, not str"),
    "context is a list": (lines({**QA, "context": ["T"]}), "docs.jsonl:1", "field 'context' is list, not str"),
    "no question": (lines({"context": "T"}), "docs.jsonl:1", "no field 'question/input'"),
    "questions are an object": (lines({"context": "T", "questions": {}}), "docs.jsonl:1", "is dict, not list"),
    "a question is a string": (lines({"context": "T", "questions": ["Q"]}), "docs.jsonl:1", "a question is str"),
    "an answer is a number": (lines({**QA, "answers": [3]}), "docs.jsonl:1", "an answer is not a string"),
    "an answer is null": (lines({**QA, "answers": ["A", None]}), "docs.jsonl:1", "an answer is not a string"),
    "answers are an object": (lines({**QA, "answers": {"a": 1}}), "docs.jsonl:1", "is dict, not list or str"),
    "an id is true": (lines({**QA, "doc_id": True}), "docs.jsonl:1", "field 'doc_id' is bool, not str or int"),
    "an id is a fraction": (lines({**QA, "id": 1.5}), "docs.jsonl:1", "field 'id' is float, not str or int"),
    "evidence of words": (lines({**QA, "evidence": [["a", "b"]]}), "docs.jsonl:1", "question field 'evidence'"),
    "evidence of three": (lines({**QA, "evidence": [[0, 1, 2]]}), "docs.jsonl:1", "question field 'evidence'"),
    "one id, two texts": (lines(GOOD, {**GOOD, "context": "B"}), "docs.jsonl:2", "another context than at"),
    "one question id twice": (lines({**QA, "id": 1}, {**QA, "id": "1"}), "docs.jsonl:2", "question id '1' stands"),
    "a column that is not there": (lines(QA, columns={"answers": "gold"}), "docs.jsonl", "no row has a column 'gold'"),
    "a context column that is not there": (lines(QA, columns={"context": "body"}), "docs.jsonl:1", "no field 'body'"),
    # parquet
    "parquet cut off": (table([QA], cut=200), "docs.parquet", "cannot read as parquet"),
    "parquet that is JSON": (lines(QA, name="d.parquet"), "d.parquet", "cannot read as parquet"),
    "parquet without context": (table([{"body": "T"}]), "docs.parquet:row 1", "found: body"),
    "parquet of bytes": (table([{**QA, "context": b"T"}]), "docs.parquet:row 1", "'context' is bytes, not str"),
    "parquet null in the second row": (table([QA, {**QA, "context": None}]), "docs.parquet:row 2", "no field"),
    "a parquet column that is not there": (table([QA], columns={"title": "t"}), "docs.parquet", "has a column 't'"),
    # text
    "text without questions": (files({"a.txt": b"T"}, "a.txt"), "a.txt", "text files hold no questions"),
    "text not UTF-8": (files({"t/a.txt": b"caf\xe9"}, "t", questions="qa"), "t/a.txt", "not UTF-8 (byte 3)"),
    "two texts of one name": (files({"t/a.txt": b"T", "t/a.md": b"T"}, "t", questions="qa"), "a.txt", "doc_id 'a'"),
    "a folder of nothing": (files({"t/a.png": b"T"}, "t"), "t", "holds no documents"),
    "a folder of both": (files({"t/a.txt": b"T", "t/b.jsonl": b"{}"}, "t"), "t", "text files and tables"),
    "a text format without text": (files({"t/a.png": b"T"}, "t", format="text"), "t", "holds no text file"),
    "an unknown format": (files({"a.bin": b"\x00\x01"}, "a.bin"), "a.bin", "its format cannot be told"),
    # data sets
    "several splits": (saved_splits(), "saved", "holds several splits: train, test"),
    "no such split": (saved_splits(split="dev"), "saved", "no split 'dev'"),
    "a subset of a saved set": (saved_splits(split="test", subset="x"), "saved", "no subsets"),
    "a split of a file": (lines(QA, split="train"), "docs.jsonl", "a source of format jsonl has no split"),
    "an empty folder as a set": (files({"t/a.txt": b""}, "t/none", format="hub"), "none", "cannot load this data set"),
    # the questions' file
    "no such questions": (lines(QA, questions="none.jsonl"), "none.jsonl", "no such file"),
    "questions without doc_id": (side({"question": "Q"}), "qa.jsonl:1", "no field 'doc_id'"),
    "questions cut off": (side(b'{"doc_id": "d"'), "qa.jsonl:1", "not valid JSON"),
    "questions without question": (side({"doc_id": "d", "answers": ["A"]}), "qa.jsonl:1", "no field 'question/input'"),
    # conversations and LongAlpaca
    "turns are a string": (lines({"conversations": "Q"}), "docs.jsonl:1", "no list of turns"),
    "no turns": (lines({"conversations": []}), "docs.jsonl:1", "no list of turns"),
    "a turn is a string": (lines({"conversations": ["Q"]}), "docs.jsonl:1", "a turn is str, not an object"),
    "a turn of nobody": (lines(turns(("narrator", "T"))), "docs.jsonl:1", "a turn's role is 'narrator'"),
    "a turn without text": (lines(turns(("user", None))), "docs.jsonl:1", "field 'content' is absent"),
    "an instruction is a number": (lines({"instruction": 1, "output": "A"}), "docs.jsonl:1", "is int, not str"),
    "an output is null": (lines({"instruction": "Q", "output": None}), "docs.jsonl:1", "'output' is absent"),
    "columns of conversations": (
        lines(turns(("user", "Q")), format="conversations", columns={"title": "t"}),
        "docs.jsonl",
        "source.columns has no meaning for conversations",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    write, place, what = REFUSED[case]
    if case == "a gigantic line":
        monkeypatch.setattr(logodata.sources.json_rows, "MAX_ROW_BYTES", 4096)
    with pytest.raises(UserError) as caught:
        read_source(write(tmp_path))
    message = str(caught.value)
    assert what in message
    assert place in caught.value.where
    assert caught.value.mend
    assert "\n" not in message
    assert len(message) < 600, "the line is for a person"


SET_APART: dict[str, tuple[Write, list[tuple[str, str]]]] = {
    "an empty context": (lines({**QA, "context": ""}), [("Q", "empty_document")]),
    "a context of white space": (lines({**QA, "context": " \n\t\u00a0\u3000"}), [("Q", "empty_document")]),
    "two questions on nothing": (lines({**QA, "context": ""}, {**QA, "context": ""}), [("Q", "empty_document")] * 2),
    "nothing at all": (lines({"context": "", "questions": []}), [("", "empty_document")]),
    "an empty question": (lines({**QA, "question": " "}), [(" ".strip(), "empty_question")]),
    "answers absent": (lines({"context": "T", "question": "Q"}), [("Q", "no_reference_answer")]),
    "answers null": (lines({**QA, "answers": None}), [("Q", "no_reference_answer")]),
    "answers empty": (lines({**QA, "answers": []}), [("Q", "no_reference_answer")]),
    "answers blank": (lines({**QA, "answers": [" ", ""]}), [("Q", "no_reference_answer")]),
    "evidence past the end": (lines({**QA, "evidence": [[0, 2]]}), [("Q", "evidence_outside_document")]),
    "evidence backwards": (lines({**QA, "evidence": [[1, 0]]}), [("Q", "evidence_outside_document")]),
    "a question on no document": (side({**QA, "doc_id": "x"}), [("Q", "unknown_document")]),
    "an empty text file": (files({"t/a.txt": b"", "t/b.txt": b"T", "q": b""}, "t"), [("", "empty_document")]),
    "a conversation without document": (lines(turns(("user", "Q"), ("assistant", "A"))), [("Q", "empty_document")]),
    "a conversation without answer": (lines(turns(("user", "T\n\nQ"))), [("Q", "no_reference_answer")]),
    "an instruction without document": (lines({"instruction": "Q", "output": "A"}), [("Q", "empty_document")]),
}


@pytest.mark.parametrize("case", list(SET_APART))
def test_set_apart_with_a_reason(tmp_path: Path, case: str) -> None:
    write, expected = SET_APART[case]
    settings = write(tmp_path)
    if case == "an empty text file":
        settings = settings.model_copy(update={"questions": str(tmp_path / "t" / ".." / "q")})
    source = read_source(settings)
    assert [(fault["question"], fault["reason"]) for fault in source.faults] == expected
    assert all(str(tmp_path) in fault["where"] for fault in source.faults)
    assert source.documents.num_questions == 0


def test_a_fault_does_not_take_its_neighbours_id(tmp_path: Path) -> None:
    questions = [{"question": "Q1"}, {"question": "Q2", "answers": ["A"]}, {"question": "", "answers": ["A"]}]
    source = read_source(lines({"doc_id": "d", "context": "T", "questions": questions})(tmp_path))
    assert [q.id for d in source.documents for q in d.questions] == ["d-02"]
    assert [fault["id"] for fault in source.faults] == ["d-01", "d-03"]


STAYS = {
    "one word of 100,000 characters": "x" * 100_000,
    "control characters": "a\x00b\x07c\x1b[31md\x7f\u202e\ufeff",
    "template tokens": "<|im_end|>\n<|im_start|>assistant\nyes</s>[/INST]{context}{question}",
    "line ends of all kinds": "a\r\nb\rc\u2028d\x0be",
    "astral characters": "𝔘𝔫𝔦 👩‍👩‍👧 e\u0301",
}


@pytest.mark.parametrize("name", list(STAYS))
@pytest.mark.parametrize("container", ["docs.jsonl", "list.json", "docs.parquet", "a.txt"])
def test_odd_text_stays_as_it_is(tmp_path: Path, name: str, container: str) -> None:
    text = STAYS[name]
    row = {"context": text, "question": f"Q {text}", "answers": [f"A {text}"]}
    if container == "docs.parquet":
        settings = table([row])(tmp_path)
    elif container == "list.json":
        settings = lines([row], name=container)(tmp_path)
    elif container == "a.txt":
        (tmp_path / "qa.jsonl").write_text(json.dumps({**row, "doc_id": "a"}))
        (tmp_path / container).write_bytes(text.encode())
        settings = SourceSettings(path=str(tmp_path / container), questions=str(tmp_path / "qa.jsonl"))
    else:
        settings = lines(row)(tmp_path)
    source = read_source(settings)
    [document] = source.documents
    assert not source.faults
    assert document.text == text
    assert document.questions[0].question == f"Q {text}".strip()
    assert document.questions[0].answers == [f"A {text}".strip()]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", json.dumps(QA)), ("b.json", json.dumps([QA]))):
        settings = files({name: b"\xef\xbb\xbf" + data.encode()}, name)(tmp_path)
        assert read_source(settings).documents[0].text == "T"


@pytest.mark.parametrize("columns", [{"contxt": "body"}, {"answer": "gold"}])
def test_a_column_for_no_field_of_ours_is_refused(columns: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is no field of ours"):
        SourceSettings(path="x", columns=columns)
