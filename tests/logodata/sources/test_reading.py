from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main
from logodata.common.errors import UserError
from logodata.common.words import words
from logodata.sources import SourceSettings, read_source, source_fingerprint

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
    documents = list(read_source(write(tmp_path, nested, *flat)).documents)
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
    assert [row.reason for row in source.rejected] == [reason]
    assert sum(len(d.questions) for d in source.documents) == 1


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    settings = write(tmp_path, {"passage": "T", "ask": "Q", "gold": "A"})
    mapped = settings.model_copy(update={"columns": {"context": "passage", "question": "ask", "answers": "gold"}})
    assert next(iter(read_source(mapped).documents)).questions[0].answers == ["A"]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_source(SourceSettings(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match="holds no document"):
        read_source(write(tmp_path, b""))


@pytest.mark.parametrize(("name", "least"), [("train", 12), ("eval", 6)])
def test_the_embedded_documents_keep_their_promises(name: str, least: int) -> None:
    source = read_source(SourceSettings(path=f"embedded:{name}"))
    assert not source.rejected
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


ROWS = [
    {"doc_id": "a", "context": "Ann lives here.", "question": "Who?", "answers": ["Ann"], "evidence": [[0, 3]]},
    {"doc_id": "b", "context": "Bo lives there.", "question": "Who?", "answers": ["Bo"]},
    {"doc_id": "a", "context": "Ann lives here.", "question": "Where?", "answers": ["here"], "kind": "summary"},
]


def seen(settings: SourceSettings) -> list[tuple[str, str, list[tuple[str, str, tuple[str, ...]]]]]:
    """A source without places, which formats spell differently."""
    source = read_source(settings)
    assert not source.rejected
    return [(d.doc_id, d.text, [(q.id, q.question, tuple(q.answers)) for q in d.questions]) for d in source.documents]


def save_rows(folder: Path, name: str) -> SourceSettings:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / name
    if name == "rows.jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif name == "list.json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([{**row, "unused": 1} for row in ROWS]), path)
    elif name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif name == "splits":
        both = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        datasets.DatasetDict(both).save_to_disk(str(path))
        return SourceSettings(path=str(path), split="train")
    elif name == "folder":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(ROWS), path / "train.parquet")
    elif name == "two files":
        docs = {row["doc_id"]: {"doc_id": row["doc_id"], "context": row["context"]} for row in ROWS}
        qa = [{key: value for key, value in row.items() if key != "context"} for row in ROWS]
        for file, rows in (("docs.jsonl", docs.values()), ("qa.jsonl", qa)):
            (folder / file).write_text("\n".join(json.dumps(row) for row in rows))
        return SourceSettings(path=str(folder / "docs.jsonl"), questions=str(folder / "qa.jsonl"))
    elif name == "texts":
        path.mkdir()
        for row in ROWS:
            (path / f"{row['doc_id']}.txt").write_text(str(row["context"]))
        (path / ".hidden.txt").write_text("no")
        qa = [{key: value for key, value in row.items() if key != "context"} for row in ROWS]
        (folder / "qa.jsonl").write_text("\n".join(json.dumps(row) for row in qa))
        return SourceSettings(path=str(path), questions=str(folder / "qa.jsonl"))
    return SourceSettings(path=str(path))


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize(
    "name", ["rows.jsonl", "list.json", "rows.parquet", "saved", "splits", "folder", "two files", "texts"]
)
def test_every_container_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    settings = save_rows(tmp_path, name)
    assert seen(settings) == [
        ("a", "Ann lives here.", [("a-01", "Who?", ("Ann",)), ("a-02", "Where?", ("here",))]),
        ("b", "Bo lives there.", [("b-01", "Who?", ("Bo",))]),
    ]
    documents = read_source(settings).documents
    assert [d.questions[0].evidence for d in documents] == [[(0, 3)], []]
    assert documents.num_questions == 3
    assert len(source_fingerprint(settings)) == 16
    assert source_fingerprint(settings) == source_fingerprint(settings)


def test_the_fingerprint_of_one_file_is_its_sha256_and_a_side_file_changes_it(tmp_path: Path) -> None:
    settings = save_rows(tmp_path, "two files")
    alone = SourceSettings(path=settings.path)
    assert source_fingerprint(alone) == hashlib.sha256(Path(settings.path).read_bytes()).hexdigest()[:16]
    before = source_fingerprint(settings)
    assert before != source_fingerprint(alone)
    with open(str(settings.questions), "a") as file:
        file.write("\n")
    assert source_fingerprint(settings) != before


def test_the_fingerprint_of_a_text_folder_is_of_its_texts_and_their_names(tmp_path: Path) -> None:
    settings = save_rows(tmp_path, "texts")
    before = source_fingerprint(settings)
    (tmp_path / "texts" / "picture.png").write_bytes(b"no text")
    assert source_fingerprint(settings) == before
    (tmp_path / "texts" / "sub").mkdir()
    (tmp_path / "texts" / "b.txt").rename(tmp_path / "texts" / "sub" / "b.txt")
    assert source_fingerprint(settings) != before, "its doc_id is another now"


ALPACA = {
    "paper": "Below is a paper. Memorize the paper and answer my question after the paper.\n The paper begins. \n D \n "
    "Now the paper ends. \nQ?",
    "two": "There are two papers. Memorize them and answer my question after the paper.\n The first paper begins. \n D "
    "Now the second paper ends.Q?",
    "book": "Below is some paragraphs in the book, T. Memorize the content and answer my question after the book.\n D "
    "\n Now the material ends. Q?",
    "user's": "Below is a paper. Memorize the material and answer my question after the paper.\n D \n Now the material "
    "ends. Q?",
}


@pytest.mark.parametrize("wording", list(ALPACA))
def test_longalpaca(tmp_path: Path, wording: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": ALPACA[wording].replace("D", "A text.\nNow the paper ends. More."), "output": "Yes."}
    settings = write(tmp_path, {**row, "input": "", "file": "f.txt"})
    [document] = read_source(settings).documents
    assert document.text == "A text.\nNow the paper ends. More."
    assert document.title == ("T" if wording == "book" else "f.txt")
    assert (document.questions[0].question, document.questions[0].answers) == ("Q?", ["Yes."])
    assert "read as jsonl, rows as longalpaca" in capsys.readouterr().err


def test_longalpaca_with_the_document_as_input_and_without_one(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up.", "input": "A text.", "output": "Text."}, {"instruction": "2+2?", "output": "4"}]
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(rows))
    source = read_source(SourceSettings(path=str(file), format="longalpaca"))
    assert [(d.text, d.questions[0].question) for d in source.documents] == [("A text.", "Sum up.")]
    assert [(row.question, row.reason) for row in source.rejected] == [("2+2?", "empty_document")]


FIRST_TURNS = {
    "ruled": "Context information is below:\n----------\nOne.\n\nTwo.\n----------\nQ1?",
    "opening": "Story:\n\nOne.\n\nTwo.\n\nQ1?",
    "asking": "Read the following context.\n\nOne.\n\nTwo.\n\n"
    "Answer my question using the knowledge from the context:\nQ1?",
    "plain": "One.\n\nTwo.\n\nQ1?",
    "longalpaca": ALPACA["paper"].replace("D", "One.\n\nTwo.").replace("Q?", "Q1?"),
}


@pytest.mark.parametrize("wording", list(FIRST_TURNS))
@pytest.mark.parametrize(
    ("role", "content", "names"), [("role", "content", ("user", "assistant")), ("from", "value", ("human", "gpt"))]
)
def test_conversations(tmp_path: Path, wording: str, role: str, content: str, names: tuple[str, str]) -> None:
    said = [FIRST_TURNS[wording], "A1", "Q2?", "A2", "Q3?"]
    turns = [{role: names[n % 2], content: text} for n, text in enumerate(said)]
    file = tmp_path / "one_detail_book.train.json"
    file.write_text(json.dumps({"conversations": turns}) + "\n")
    source = read_source(SourceSettings(path=str(file)))
    [document] = source.documents
    assert document.text == "One.\n\nTwo."
    assert [(q.question, q.answers, q.kind) for q in document.questions] == [
        ("Q1?", ["A1"], "single_detail"),
        ("Q2?", ["A2"], "single_detail"),
    ]
    assert [(row.question, row.reason) for row in source.rejected] == [("Q3?", "no_reference_answer")]


def test_texts_are_not_kept_in_memory(tmp_path: Path) -> None:
    """60 documents of about a megabyte: what a reading holds at its worst is a few of them."""
    import tracemalloc

    file = tmp_path / "big.jsonl"
    with open(file, "w") as handle:
        for n in range(60):
            handle.write(
                json.dumps({"doc_id": n, "context": f"{n} " * 2**18, "question": "Q", "answers": ["A"]}) + "\n"
            )
    tracemalloc.start()
    try:
        total = sum(len(document.text) for document in read_source(SourceSettings(path=str(file))).documents)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 40 * 2**20
    assert peak < total / 4


def test_a_list_longer_than_a_block_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logodata.sources.json_rows._BLOCK", 7)
    rows = [{"doc_id": n, "context": 'ü\\"[{,]} ' * n, "question": "Q", "answers": ["A"]} for n in range(1, 9)]
    file = tmp_path / "list.json"
    for indent in (None, 1):
        file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        documents = read_source(SourceSettings(path=str(file))).documents
        assert [d.text for d in documents] == [row["context"] for row in rows]
    text = file.read_text(encoding="utf-8").split("\n")
    for document in documents:
        line = int(document.where.rpartition(":")[2])
        assert text[line - 1 : line + 1] == [" {", f'  "doc_id": {document.doc_id},']


def test_a_file_that_changes_between_readings_is_noticed(tmp_path: Path) -> None:
    documents = read_source(write(tmp_path, GOOD)).documents
    write(tmp_path, {**GOOD, "context": "Another text."})
    with pytest.raises(UserError, match="changed while it was read"):
        list(documents)
    write(tmp_path, {**GOOD, "doc_id": "e"})
    with pytest.raises(UserError, match="changed while it was read"):
        list(documents)


def test_limits(tmp_path: Path) -> None:
    asked = (("Q0", "other"), ("Q1", "summary"), ("Q2", "summary"))
    questions = [{"question": question, "answers": ["A"], "kind": kind} for question, kind in asked]
    rows = [{"doc_id": n, "context": f"Text {n}.", "questions": questions} for n in range(4)]
    settings = write(tmp_path, *rows).model_copy(
        update={"max_documents": 2, "max_questions_per_document": 1, "kinds": ["summary"]}
    )
    assert [[q.question for q in d.questions] for d in read_source(settings).documents] == [["Q1"], ["Q1"]]


def test_what_the_selection_leaves_out_is_no_fault(tmp_path: Path) -> None:
    good, bad = {"question": "Q?", "answers": ["A"]}, {"question": "Q?", "answers": []}
    kinds = ("summary", "summary", "other")
    rows: list[dict[str, Any]] = [
        {"doc_id": "a", "context": "Text a.", "questions": [bad, good, bad]},
        {"doc_id": "empty", "context": " ", "questions": []},
        {"doc_id": "b", "context": "Text b.", "questions": [good]},
        {"doc_id": "c", "context": "Text c.", "questions": [bad]},
        {"doc_id": "blank", "context": " ", "questions": [good]},
    ]
    for row in rows:
        row["questions"] = [{**q, "kind": kind} for q, kind in zip(row["questions"], kinds, strict=False)]
    whole = write(tmp_path, *rows)

    def faults(**settings: Any) -> list[str]:
        return [row.id for row in read_source(whole.model_copy(update=settings)).rejected]

    assert faults() == ["a-01", "a-03", "c-01", "blank-01", "empty"]
    assert faults(max_documents=2) == ["a-01", "a-03", "empty"]
    assert faults(kinds=["summary"]) == ["a-01", "c-01", "blank-01", "empty"]
    assert faults(max_questions_per_document=1) == ["a-01", "c-01", "blank-01", "empty"]


def test_a_selection_that_leaves_no_question_is_refused_at_once(tmp_path: Path) -> None:
    asked = [{"question": "Q?", "answers": ["A"], "kind": kind} for kind in ("summary", "Summary", "summary")]
    whole = write(tmp_path, {"doc_id": "a", "context": "Text.", "questions": asked})
    with pytest.raises(UserError, match="no question is left; kinds found: summary 2, other 1"):
        read_source(whole.model_copy(update={"kinds": ["single_detail"]}))
    with pytest.raises(UserError, match="no question is left; kinds found: none"):
        read_source(write(tmp_path, {"doc_id": "a", "context": "Text.", "questions": []}))


@pytest.mark.parametrize("command", ["build", "questions"])
@pytest.mark.parametrize("place", ["out", "", "deep/er/out"])
def test_an_output_among_the_documents_is_refused(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Ann lives here.")
    (tmp_path / "link").symlink_to(folder)
    output = tmp_path / "link" / place / ("asked.jsonl" if command == "questions" else "")
    assert main([command, str(folder), "--model", str(tiny_model_dir), "-o", str(output)]) == 2
    assert "-o is inside the source's folder" in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["a.txt"]


def test_tables_in_hidden_folders_are_no_part_of_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index.json").write_text("{}")
    (tmp_path / "a.txt").write_text("Ann lives here.")
    source = read_source(SourceSettings(path=str(tmp_path)), needs_questions=False)
    assert [document.doc_id for document in source.documents] == ["a"]


@pytest.mark.parametrize("splits", [["train"], ["train", "test"]])
def test_a_hub_name_split_subset_and_columns_reach_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    asked: list[tuple[str, ...]] = []

    def load(path: str, name: str, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"passage": "T", "ask": "Q", "gold": ["A"], "unused": 1}])

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: splits)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    settings = SourceSettings(
        path="org/name",
        subset="small",
        split="test" if len(splits) > 1 else None,
        columns={"context": "passage", "question": "ask", "answers": "gold"},
    )
    [document] = read_source(settings).documents
    assert (document.text, document.questions[0].answers, document.where) == (
        "T",
        ["A"],
        f"org/name[{splits[-1]}]:row 1",
    )
    assert asked == [("org/name", "small", splits[-1])]
    assert "org/name: read as hub" in capsys.readouterr().err


def test_hub_rows_of_another_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"instruction": ALPACA["paper"], "input": "", "output": "Yes.", "file": "f"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    [document] = read_source(SourceSettings(path=str(tmp_path / "saved"))).documents
    assert (document.text, document.questions[0].question, document.questions[0].answers) == ("D", "Q?", ["Yes."])
