"""Haystack texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logoeval.tasks.texts import pydoc_documents, read_documents, split_sentences


def test_pydoc_is_prose() -> None:
    documents = pydoc_documents()
    text = "\n\n".join(body for _, body in documents)
    assert len(text) > 100_000
    paragraphs = text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert not any(line.startswith((" ", ">>>", "***")) or "::=" in line for line in text.splitlines())


def test_sentences_keep_every_word() -> None:
    text = "Mr. Smith came. He said: “Go!” Then J. Doe left?\n\nA heading\n\nIt cost 3.50 dollars. The end"
    sentences = split_sentences(text)
    assert sentences == [
        "Mr. Smith came.",
        "He said: “Go!”",
        "Then J. Doe left?",
        "A heading",
        "It cost 3.50 dollars.",
        "The end",
    ]
    assert " ".join(sentences).split() == text.split()


def test_chinese_sentences() -> None:
    assert split_sentences("他来了。她走了！结束") == ["他来了。", "她走了！", "结束"]


def test_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    assert read_documents(tmp_path) == (("a.txt", "first"), ("b.txt", "second"))


def test_what_a_folder_of_texts_leaves_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.md", "c.pdf", "deep/d.txt", ".hidden.txt.swp"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").write_text(" \n")
    for _ in range(2):
        assert read_documents(tmp_path) == (("a.txt", "text"),)
    said = capsys.readouterr().err
    assert (
        said.count("left out 3 of 5 files (.md 1, .pdf 1, .txt 1), only .txt files, without subfolders, are read") == 1
    )
    assert said.count("left out 1 of 2 files, which are empty: empty.txt") == 1
    assert "pdftotext" in said


@pytest.mark.parametrize(("name", "data"), [("a.txt", b"<!DOCTYPE html><p>x"), ("a.pdf", b"%PDF-1.4")])
def test_pages_and_pdf_files_are_no_texts(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="not plain text"):
        read_documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.py"])
def test_other_files_are_no_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "One."}')
    with pytest.raises(UserError, match="file is not plain text"):
        read_documents(tmp_path / name)


def test_missing_or_broken_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.txt file"):
        read_documents(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt"):
        read_documents(tmp_path)
