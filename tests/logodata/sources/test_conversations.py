"""Rows as other data sets have them: each gives the document, its questions and their answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.sources import SourceSettings, read_source, source_fingerprint
from logodata.sources.conversations import from_conversation, split_message

LONG = "Ann lives in the mill. " + "Nobody wrote anything else down on that day. " * 12
DOCUMENT = LONG.strip()
SYSTEM = {"role": "system", "content": DOCUMENT}
ASKED = [("Who?", ["Ann"]), ("Where?", ["in the mill"])]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def parts(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


TWO = [user("Who?"), assistant("Ann"), user("Where?"), assistant("in the mill")]

SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, list[str]]]]] = {
    # OpenAI's messages, ShareGPT's conversations
    "system turn": ({"messages": [SYSTEM, *TWO]}, ASKED),
    "system turn, one question": ({"messages": [SYSTEM, *TWO[:2]]}, ASKED[:1]),
    "system column": ({"system": DOCUMENT, "conversations": TWO}, ASKED),
    "tagged system turn": (
        {"messages": [{"role": "system", "content": f"You are helpful.\n<document>\n{DOCUMENT}\n</document>"}, *TWO]},
        ASKED,
    ),
    "first turn, then questions": ({"messages": [user(f"{DOCUMENT}"), assistant("I have read it."), *TWO]}, ASKED),
    "first turn of paragraphs, then questions": (
        {"messages": [user(f"{DOCUMENT}\n\n{DOCUMENT}"), assistant("I have read it."), *TWO]},
        ASKED,
    ),
    "after a greeting": ({"messages": [user("Hi"), assistant("Hello!"), user(f"{DOCUMENT}\n\nWho?"), *TWO[1:]]}, ASKED),
    "with a short system turn": (
        {"messages": [{"role": "system", "content": "You are helpful."}, user(f"{DOCUMENT}\n\nWho?"), *TWO[1:]]},
        ASKED,
    ),
    "question on the last line": ({"messages": [user(f"{DOCUMENT}\nWho?"), *TWO[1:]]}, ASKED),
    "in parts": ({"messages": [parts(f"{DOCUMENT}\n\nWho?"), *TWO[1:]]}, ASKED),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": DOCUMENT},
                {"from": "human", "value": "Who?"},
                {"from": "gpt", "value": "Ann"},
            ]
        },
        ASKED[:1],
    ),
    "chinese": (
        {"messages": [user("他住在磨坊里。" * 60), assistant("好"), user("谁?"), assistant("他")]},
        [("谁?", ["他"])],
    ),
    "a short last paragraph is the question": (
        {"messages": [user(f"{DOCUMENT}\n\nThe name of her, in a word."), *TWO[1:]]},
        [("The name of her, in a word.", ["Ann"]), ASKED[1]],
    ),
    "with a context column": ({"context": DOCUMENT, "messages": TWO}, ASKED),
    "labelled": (
        {"messages": [user(f"Read this.\n\nContext:\n{DOCUMENT}\n\nQuestion: Who?\nAnswer:"), *TWO[1:]]},
        ASKED,
    ),
    "labelled, question first": ({"messages": [user(f"Question: Who?\n\nPassage: {DOCUMENT}"), *TWO[1:]]}, ASKED),
    "tagged": ({"messages": [user(f"<document>\n{DOCUMENT}\n</document>\n\nWho?"), *TWO[1:]]}, ASKED),
    # prompt and completion
    "prompt": ({"prompt": f"{DOCUMENT}\n\nWho?", "completion": "Ann"}, ASKED[:1]),
    "prompt and response": ({"prompt": f"Document: {DOCUMENT}\nQuestion: Who?", "response": "Ann"}, ASKED[:1]),
    "preferences": ({"prompt": f"{DOCUMENT}\n\nWho?", "chosen": "Ann", "rejected": "Bo"}, ASKED[:1]),
    "prompt of turns": ({"prompt": [SYSTEM, TWO[0]], "completion": [TWO[1]]}, ASKED[:1]),
    # instructions
    "alpaca": ({"instruction": "Who?", "input": DOCUMENT, "output": "Ann"}, ASKED[:1]),
    "dolly": ({"instruction": "Who?", "context": DOCUMENT, "response": "Ann", "category": "closed_qa"}, ASKED[:1]),
    # columns
    "document, query": ({"document": DOCUMENT, "query": "Who?", "answer": "Ann"}, ASKED[:1]),
    "article, capitals": ({"Article": DOCUMENT, "Question": "Who?", "Answer": "Ann"}, ASKED[:1]),
    "passage": ({"passage": DOCUMENT, "question": "Who?", "answers": ["Ann", "Anna"]}, [("Who?", ["Ann", "Anna"])]),
    "babilong": ({"input": DOCUMENT, "question": "Who?", "target": "Ann"}, ASKED[:1]),
    "an empty alias": ({"context": DOCUMENT, "input": "", "instruction": "Who?", "output": "Ann"}, ASKED[:1]),
    "squad": (
        {"context": DOCUMENT, "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}},
        ASKED[:1],
    ),
    "squad's file": (
        {
            "version": "1",
            "data": [
                {
                    "title": "T",
                    "paragraphs": [
                        {
                            "context": DOCUMENT,
                            "qas": [
                                {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
                                {"id": "2", "question": "Where?", "answers": [{"text": "in the mill"}]},
                            ],
                        }
                    ],
                }
            ],
        },
        ASKED,
    ),
    "narrativeqa": (
        {
            "document": {"id": "d", "kind": "story", "summary": {"text": "S"}, "text": DOCUMENT},
            "question": {"text": "Who?", "tokens": ["Who"]},
            "answers": [{"text": "Ann", "tokens": ["Ann"]}],
        },
        ASKED[:1],
    ),
    "quality": (
        {
            "article_id": "1",
            "article": DOCUMENT,
            "questions": [
                {"question": "Who?", "options": ["Bo", "Ann"], "gold_label": 2},
                {"question": "Where?", "options": ["in the mill", "here"], "gold_label": 1},
            ],
        },
        ASKED,
    ),
    "quality of the hub": ({"article": DOCUMENT, "question": "Who?", "options": ["Bo", "Ann"], "answer": 1}, ASKED[:1]),
    "race": ({"article": DOCUMENT, "question": "Who?", "options": ["Bo", "Ann"], "answer": "B"}, ASKED[:1]),
    "longbench v2": (
        {"context": DOCUMENT, "question": "Who?", "choice_A": "Bo", "choice_B": "Ann", "choice_C": "C", "choice_D": "D"}
        | {"answer": "B"},
        ASKED[:1],
    ),
    "coqa": (
        {"story": DOCUMENT, "questions": ["Who?", "Where?"], "answers": {"input_text": ["Ann", "in the mill"]}},
        ASKED,
    ),
    "l-eval": ({"input": DOCUMENT, "instructions": ["Who?", "Where?"], "outputs": ["Ann", "in the mill"]}, ASKED),
    "pairs": ({"text": DOCUMENT, "qa_pairs": [{"Q": "Who?", "A": "Ann"}, {"Q": "Where?", "A": "in the mill"}]}, ASKED),
}


def read(folder: Path, row: dict[str, Any], **settings: Any) -> tuple[str, list[tuple[str, list[str]]]]:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    source = read_source(SourceSettings(path=str(file), **settings))
    assert not source.rejected
    [document] = source.documents
    return document.text, [(question.question, question.answers) for question in document.questions]


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_shape_gives_document_questions_and_answers(tmp_path: Path, name: str) -> None:
    row, asked = SHAPES[name]
    text, found = read(tmp_path, row)
    assert found == asked
    expected = f"{DOCUMENT}\n\n{DOCUMENT}" if "of paragraphs" in name else DOCUMENT
    assert text == ("他住在磨坊里。" * 60 if name == "chinese" else expected)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "in parts"])
def test_every_shape_survives_parquet(tmp_path: Path, name: str) -> None:
    """What is no column that anybody asks for is not read: none of these may be such a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, asked = SHAPES[name]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [document] = read_source(SourceSettings(path=str(tmp_path / "rows.parquet"))).documents
    assert [(question.question, question.answers) for question in document.questions] == asked


def test_labels_within_a_document_belong_to_it() -> None:
    inside = "Question: old?\nAnswer: x\nContext: y"
    for message in (f"Context: a\n{inside}\n\nQuestion: Who?", f"Question: Who?\nContext: a\n{inside}"):
        assert split_message(message) == (f"a\n{inside}", "Who?", "", True)


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ({"context": {"title": ["T", "U"], "sentences": [["One.", " Two."], ["Three."]]}}, "T\nOne. Two.\n\nU\nThree."),
        ({"context": [["T", ["One.", " Two."]], ["U", ["Three."]]]}, "T\nOne. Two.\n\nU\nThree."),
        (
            {"paragraphs": [{"title": "T", "paragraph_text": "One."}, {"title": "U", "paragraph_text": "Two."}]},
            "T\nOne.\n\nU\nTwo.",
        ),
        ({"documents": ["One.", "Two."]}, "One.\n\nTwo."),
        ({"contexts": ["One.", "Two."]}, "One.\n\nTwo."),
    ],
)
def test_documents_in_parts(tmp_path: Path, context: dict[str, Any], text: str) -> None:
    assert read(tmp_path, {**context, "question": "Who?", "answer": "Ann"}) == (text, ASKED[:1])


@pytest.mark.parametrize(
    "turns",
    [
        TWO,
        [{"role": "system", "content": "You are a helpful assistant. " * 3}, *TWO],
        # Long instructions beside a long question: neither is told to be the document.
        [{"role": "system", "content": "You answer in one word. " * 12}, user("Who " + "and who else " * 20 + "?")],
    ],
)
def test_where_no_document_can_be_told_the_form_is_shown(
    tmp_path: Path, turns: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n")
    source = read_source(SourceSettings(path=str(file)))
    assert {row.reason for row in source.rejected} == {"empty_document"}
    said = capsys.readouterr().err
    assert f"no document is found for {len(source.rejected)} questions of its conversations" in said
    assert '{"role": "system", "content": DOCUMENT}' in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "T", "questions": ["Q?", "R?"], "answers": ["A"]}, "2 questions and 1 answers"),
        ({"context": "T", "question": "Q?", "options": ["a", "b"], "answer": 2}, "answer 2 is not one of 2 options"),
        (
            {"context": "T", "question": "Q?", "options": ["a", "b"], "answer": "E"},
            "answer 'E' is not one of 2 options",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a turn holds image_url, not text"),
        ({"messages": [{"role": "tool", "content": "T"}]}, "a turn's role is 'tool'"),
        ({"data": [{"paragraphs": [{"context": "T", "qas": []}]}, {"title": "T"}]}, "no list of paragraphs"),
        ({"data": [{"paragraphs": [{"context": "T", "qas": []}, None]}]}, "no list of paragraphs"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, row)
    assert "rows.jsonl:1" in str(caught.value)


def test_it_is_said_which_columns_were_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path, SHAPES["article, capitals"][0])
    assert "context from 'Article'; question from 'Question'; answers from 'Answer'" in capsys.readouterr().err
    read(tmp_path, {"context": DOCUMENT, "article": "Another.", "question": "Who?", "answers": ["Ann"]})
    assert "read as jsonl, context from 'context', not 'article'\n" in capsys.readouterr().err
    read(tmp_path, {"passage": DOCUMENT, "question": "Who?", "answers": ["Ann"]}, columns={"context": "passage"})
    assert "read as jsonl, context from 'passage'\n" in capsys.readouterr().err
    read(tmp_path, {"context": DOCUMENT, "question": "Who?", "answers": ["Ann"]})
    assert "read as jsonl\n" in capsys.readouterr().err
    read(tmp_path, SHAPES["babilong"][0])
    assert "context from 'input'; answers from 'target'" in capsys.readouterr().err


TABLE = [
    {"doc_id": "a", "context": 'He said "hi", twice;\nthen\tleft.\n\nEnd', "question": "Who?", "answers": "Ann"},
    {"doc_id": "b", "context": '[1] Bo\'s "note"', "question": "Who, then?", "answers": "Bo; Ann"},
]


def as_rows(settings: SourceSettings) -> list[tuple[str, str, list[tuple[str, list[str]]]]]:
    documents = read_source(settings).documents
    return [(d.doc_id, d.text, [(q.question, q.answers) for q in d.questions]) for d in documents]


def write_table(file: Path, delimiter: str, *, encoding: str = "utf-8", before: str = "", ends: str = "\r\n") -> None:
    with open(file, "w", newline="", encoding=encoding) as handle:
        handle.write(before)
        writer = csv.DictWriter(handle, list(TABLE[0]), delimiter=delimiter, lineterminator=ends)
        writer.writeheader()
        writer.writerows(TABLE)


@pytest.mark.parametrize(
    ("name", "delimiter", "options"),
    [
        ("rows.csv", ",", {}),
        ("rows.csv", ";", {"ends": "\n"}),
        ("rows.csv", "\t", {}),
        ("rows.csv", "|", {}),
        ("rows.tsv", "\t", {}),
        ("rows.CSV", ",", {"encoding": "utf-8-sig"}),
        ("rows.csv", ";", {"before": "sep=;\r\n"}),
    ],
)
def test_tables_give_what_json_lines_give(tmp_path: Path, name: str, delimiter: str, options: dict[str, str]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    write_table(tmp_path / name, delimiter, **options)
    expected = as_rows(SourceSettings(path=str(tmp_path / "rows.jsonl")))
    assert expected[0][1] == TABLE[0]["context"]
    assert as_rows(SourceSettings(path=str(tmp_path / name))) == expected


def test_a_table_of_questions_and_a_folder_of_tables(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for row in TABLE:
        with open(folder / f"{row['doc_id']}.csv", "w", newline="") as handle:
            csv.writer(handle).writerows([list(row), list(row.values())])
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({k: row[k] for k in ("doc_id", "context")}) + "\n" for row in TABLE)
    )
    with open(tmp_path / "qa.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(
            [["doc_id", "Question", "Answer"], *([r["doc_id"], r["question"], r["answers"]] for r in TABLE)]
        )
    write_table(tmp_path / "rows.csv", ",")
    expected = as_rows(SourceSettings(path=str(tmp_path / "rows.csv")))
    assert as_rows(SourceSettings(path=str(folder))) == expected
    assert as_rows(SourceSettings(path=str(tmp_path / "docs.jsonl"), questions=str(tmp_path / "qa.csv"))) == expected


def test_tables_with_names_of_splits_are_splits(tmp_path: Path) -> None:
    for name, row in zip(("train", "test"), TABLE, strict=False):
        with open(tmp_path / f"{name}.csv", "w", newline="") as handle:
            csv.writer(handle).writerows([list(row), list(row.values())])
    path = str(tmp_path)
    with pytest.raises(UserError, match=r"holds several splits: test, train \(set source\.split=NAME\)"):
        read_source(SourceSettings(path=path))
    with pytest.raises(UserError, match=r"no split 'dev' \(set source\.split=NAME, one of test, train\)"):
        read_source(SourceSettings(path=path, split="dev"))
    [document] = read_source(SourceSettings(path=path, split="train")).documents
    assert document.text == TABLE[0]["context"]
    (tmp_path / "more").mkdir()
    (tmp_path / "test.csv").rename(tmp_path / "more" / "train.csv")
    assert len(read_source(SourceSettings(path=path)).documents) == 2  # one split, in two files
    (tmp_path / "more" / "train.csv").rename(tmp_path / "test.csv")
    settings = [SourceSettings(path=path, split=name) for name in ("train", "test")]
    assert len(set(map(source_fingerprint, settings))) == 2


def test_a_parquet_table_has_the_columns_that_a_csv_table_has(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"Doc_ID": "x", " Context ": "Ann lives here.", "Question": "Who?", "Answers": "Ann", "Question_ID": "q7"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [document] = read_source(SourceSettings(path=str(tmp_path / "rows.parquet"))).documents
    assert (document.doc_id, document.text, document.questions[0].id) == ("x", "Ann lives here.", "q7")


def test_cells_that_pandas_writes(tmp_path: Path) -> None:
    """An index without a name, lists as Python spells them, empty cells; what spells a number stays text."""
    (tmp_path / "rows.csv").write_text(
        ",context,question,answers,kind\n"
        '0,NA,Who?,"[\'Ann\', ""Bo\'s""]",\n'
        "1,T,When?,1815,other\n"
        '2,T,Which?,"[""x""]",other\n'
        "3,T,What?,[1815],other\n"
        ",,,,\n"
    )
    found = as_rows(SourceSettings(path=str(tmp_path / "rows.csv")))
    assert [(text, asked) for _, text, asked in found] == [
        ("NA", [("Who?", ["Ann", "Bo's"])]),
        ("T", [("When?", ["1815"]), ("Which?", ["x"]), ("What?", ["[1815]"])]),
    ]


def test_turns_that_pandas_writes(tmp_path: Path) -> None:
    """TRL's columns, as they stand in a table."""
    document = "Sand. " * 100
    turns = [{"role": "system", "content": document}, {"role": "user", "content": "What?"}]
    with open(tmp_path / "rows.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows([["prompt", "completion"], [str(turns), "Sand."]])
    ((_, text, asked),) = as_rows(SourceSettings(path=str(tmp_path / "rows.csv")))
    assert (text, asked) == (document.strip(), [("What?", ["Sand."])])


def test_columns_of_questions_on_text_files_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "alice.txt").write_text("Sand.")
    (tmp_path / "q.csv").write_text("\ufeffFile;The Question;Answer\nalice.txt;What?;Sand.\n", encoding="utf-8")
    columns = {"doc_id": "File", "question": "The Question"}
    settings = SourceSettings(path=str(tmp_path / "books"), questions=str(tmp_path / "q.csv"), columns=columns)
    assert as_rows(settings) == [("alice", "Sand.", [("What?", ["Sand."])])]
    with pytest.raises(UserError, match=r"q\.csv.*no .*'Fil'"):
        as_rows(settings.model_copy(update={"columns": {"doc_id": "Fil", "question": "The Question"}}))
    with pytest.raises(UserError, match=r"source\.columns has no meaning for text"):
        as_rows(settings.model_copy(update={"questions": None}))


def test_a_question_may_stand_before_the_document() -> None:
    document = "One.\n\n" + "Sand. " * 100 + "\n\nAnd so it was."
    asked = {"messages": [{"role": "user", "content": f"What is it?\n\n{document}"}]}
    found = from_conversation(asked, "here")
    assert (found["context"], found["questions"][0]["question"]) == (document, "What is it?")
    later = {"messages": [{"role": "user", "content": f"Who is there?\n\n{document}\n\nWhat is it?"}]}
    assert from_conversation(later, "here")["questions"][0]["question"] == "What is it?"


def test_columns_with_spaces_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Full Text,The Question,Gold answer\nT,Who?,Ann\n")
    columns = {"context": "Full Text", "question": "The Question", "answers": "Gold answer"}
    [(_, text, asked)] = as_rows(SourceSettings(path=str(tmp_path / "rows.csv"), columns=columns))
    assert (text, asked) == ("T", [("Who?", ["Ann"])])


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("T,Who?,Ann\nU,Who?,Bo\n", "rows.csv:1", "is the header row missing?"),
        ("x" * 9000 + ",Who?,Ann\n", "rows.csv:1", "is the header row missing?"),
        ('context,question,answers\n"T\nT",Who?,Ann\nU,Who, then?,Bo\n', "rows.csv:4", "4 cells, the header has 3"),
        ("context,question,answers\nT,Who?\n", "rows.csv:2", "2 cells, the header has 3"),
        (
            'context,question,answers\nT,Who?,Ann\n"U,Who?,Bo\n',
            "rows.csv:3",
            "not valid CSV in the row that begins here",
        ),
        ('context,question,answers\n"T"T,Who?,Ann\n', "rows.csv:2", "not valid CSV in the row that begins here"),
        ("context,question,question\nT,Who?,Ann\n", "rows.csv:1", "two columns are called 'question'"),
        ("context,question\nT,Who?\n\xe9,Who?\n", "rows.csv:3", "not UTF-8"),
        ("text,answers\nT,A\n", "rows.csv:2", "no field 'question/input'"),
        ("", "rows.csv", "is the header row missing?"),
        ("context,question,answers\n", "rows.csv", "holds no document"),
    ],
)
def test_faults_of_tables_are_one_line_that_names_the_row(tmp_path: Path, text: str, place: str, message: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        read_source(SourceSettings(path=str(file)))
    said = str(caught.value)
    assert place in said
    assert "\n" not in said
    assert len(said) < 500
    assert caught.value.mend


def test_cells_of_any_size_are_read_up_to_the_limit_of_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("context,question,answers\n" + '"' + "word\n" * 100_000 + '",Who?,Ann\n')
    [(_, text, _)] = as_rows(SourceSettings(path=str(file)))
    assert text == "word\n" * 100_000
    monkeypatch.setattr("logodata.common.json_files.MAX_JSON_BYTES", 200_000)
    with pytest.raises(UserError, match=r"rows.csv:2: a cell of more than"):
        read_source(SourceSettings(path=str(file)))


FOREIGN = {
    "a.txt": (b"%PDF-1.7\n...", "a PDF file", "give it the ending .pdf"),
    "b.txt": (b"\n<!-- x -->\n<HTML lang=en>", "an HTML page", "give it the ending .html"),
    "d.doc": (b"\xd0\xcf\x11\xe0...", "a Word document", "soffice"),
    "d.xlsx": (b"PK\x03\x04...", "a workbook", "convert-to csv"),
    "f.zip": (b"PK\x03\x04...", r"is compressed \(zip\)", "unpack"),
    "g.txt": (b"\x1f\x8b\x08...", r"is compressed \(gzip\)", "unpack"),
    "h.rtf": (b"{\\rtf1 x}", "an RTF document", "pandoc"),
    "i.xml": (b"<?xml version='1.0'?><TEI/>", "an XML file", "without tags"),
    "j.png": (b"\x89PNG\r\n\x1a\n", "a binary file", "plain text"),
}


@pytest.mark.parametrize("form", ["text", "auto"])
@pytest.mark.parametrize("name", list(FOREIGN))
def test_what_is_no_text_is_not_read_as_text(tmp_path: Path, name: str, form: Any) -> None:
    data, kind, mend = FOREIGN[name]
    file = tmp_path / name
    file.write_bytes(data)
    for path in (file, tmp_path) if name.endswith(".txt") else (file,):
        with pytest.raises(UserError, match=kind) as caught:
            read_source(SourceSettings(path=str(path), format=form), needs_questions=False)
        assert mend in caught.value.mend


@pytest.mark.parametrize("name", ["a.html", "c.pdf", "d.docx", "e.epub"])
def test_what_is_converted_is_not_read_as_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes({".pdf": b"%PDF-1.7\n", ".html": b"<html>"}.get(Path(name).suffix, b"PK\x03\x04..."))
    with pytest.raises(UserError, match=r"not plain text \(leave source\.format out\)"):
        read_source(SourceSettings(path=str(tmp_path / name), format="text"), needs_questions=False)


def test_a_folder_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.odt", "c.xlsx", "deep/d.XLSX", "._a.txt", ".hidden", "LICENSE", "e"):
        (folder / name).write_text("Ann lives here.")
    source = read_source(SourceSettings(path=str(folder)), needs_questions=False)
    assert [document.doc_id for document in source.documents] == ["a"]
    said = capsys.readouterr().err
    assert "left out 4 of 5 files (.xlsx 2, .odt 1, no ending 1), only .txt and .md files are read" in said
    assert "pandoc" in said
    assert "soffice" in said


def test_a_folder_of_tables_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    row = {"context": "T", "question": "Who?", "answers": ["Ann"]}
    for number, folder in enumerate((tmp_path / "json", tmp_path / "csv")):
        folder.mkdir()
        (folder / "README.md").write_text("About it.")
        (folder / "paper.rtf").write_bytes(b"{\\rtf1 x}")
        if number == 0:
            (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
            (folder / "more.parquet").write_bytes(b"PAR1")
        else:
            (folder / "a.csv").write_text("context,question,answers\nT,Who?,Ann\n")
        assert len(read_source(SourceSettings(path=str(folder))).documents) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "left out 2 of 3 files (.parquet 1, .rtf 1), only .jsonl files are read" in said
    assert "left out 1 of 2 files (.rtf 1), only .csv and .tsv files are read" in said


def test_a_folder_of_others_only_says_what_turns_them_into_text(tmp_path: Path) -> None:
    (tmp_path / "a.odt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds no documents \(files: .odt 1\)") as caught:
        read_source(SourceSettings(path=str(tmp_path)), needs_questions=False)
    assert "pandoc" in caught.value.mend


def test_questions_name_a_text_file_with_or_without_its_ending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "texts" / name).write_text(f"Ann lives in {name}.")
    (tmp_path / "qa.csv").write_text(
        "doc_id,question,answer\na.txt,Who?,Ann\na,Where?,here\nb.md,Who?,Ann\nc.txt,Who?,Bo\n"
    )
    source = read_source(SourceSettings(path=str(tmp_path / "texts"), questions=str(tmp_path / "qa.csv")))
    assert [(d.doc_id, [q.question for q in d.questions]) for d in source.documents] == [
        ("a", ["Who?", "Where?"]),
        ("b", ["Who?"]),
    ]
    assert [row.reason for row in source.rejected] == ["unknown_document"]
    said = capsys.readouterr().err
    assert "1 questions are on documents that the source does not hold, such as 'c.txt'; it holds 'a', 'b', ..." in said


def test_pages_in_rows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"context": text, "question": "Who?", "answers": ["Ann"]} for text in ("<html><p>Ann", "a <p> b", "Ann")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_source(SourceSettings(path=str(file)))
    assert "1 of 3 documents are HTML pages: the model will read their tags" in capsys.readouterr().err
