"""Documents of other formats: their text, what it lacks, and how bad ones end. Compressed tables, and tables in other
encodings."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logodata.build.responses
from logodata.cli import main
from logodata.common import json_files, packed_files
from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.dataset.samples import read_manifest, read_samples
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings, document_files, read_source, source_fingerprint
from logodata.sources.converters import process
from logodata.sources.converters.book import book_text
from logodata.sources.converters.page import page_text
from logodata.sources.converters.pdf import pdf_text
from logodata.sources.converters.word import word_text
from logodata.sources.converters.worker import convert_here
from tests.documents import PNG, make_docx, make_epub, make_pdf, make_zip, save, word_with

pytest.importorskip("pypdfium2")
pytest.importorskip("mammoth")

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><script>document.write("no")</script>
<h1>Lamps</h1><p>Seven <a href="x">lamps</a> &amp; a_b*c.<img src="http://127.0.0.1:9/a.png" alt="the quay"></p>
<ul><li>one</li><li>two</li></ul><table><tr><th>lamp</th><th>oil</th></tr><tr><td>red</td><td>5</td></tr></table>
<iframe src="http://127.0.0.1:9/"></iframe></body></html>"""


def test_the_text_of_a_pdf_file(tmp_path: Path) -> None:
    found = pdf_text(save(tmp_path, "a.pdf", make_pdf(["One (1).\nTwo.", None, "Three."])), None)
    assert found.text == "One (1).\nTwo.\n\nThree."
    assert found.lost == {"images": 1, "pages without text": 1}


def test_the_text_of_a_page(tmp_path: Path) -> None:
    found = page_text(save(tmp_path, "a.html", PAGE.encode()), None)
    assert found.text == (
        "# Lamps\n\nSeven lamps & a_b*c.the quay\n\n- one\n- two\n\n| lamp | oil |\n| --- | --- |\n| red | 5 |"
    )
    assert found.lost == {"menus": 1, "images": 1, "tables flattened": 1, "media": 1}


def test_a_page_may_leave_out_the_end_of_its_head(tmp_path: Path) -> None:
    page = "<html><head><title>T</title><meta charset=utf-8><style>p {}</style><body><p>Seven lamps.</p>"
    assert page_text(save(tmp_path, "a.html", page.encode()), None).text == "Seven lamps."


def test_the_text_of_a_word_document(tmp_path: Path) -> None:
    data = make_docx(["One <&>.", "Two."], table=[["lamp", "oil"], ["red", "5"]], header="Page", comment="Really?")
    found = word_text(save(tmp_path, "a.docx", data), None)
    assert found.text == "One <&>.\n\nTwo.\n\n| lamp | oil |\n| --- | --- |\n| red | 5 |"
    assert found.lost == {"headers and footers": 1, "comments": 1, "tables flattened": 1}


def test_the_text_of_a_book(tmp_path: Path) -> None:
    pages = {
        "b": "<?xml version='1.0'?><!DOCTYPE html><p>Second.</p>",
        "a": "<p>First.<img src='x'/></p>",
        "z": "<p>Not in the spine.</p>",
    }
    found = book_text(save(tmp_path, "a.epub", make_epub(pages, spine=["a", "b", "gone"])), None)
    assert found.text == "First.\n\nSecond."
    assert found.lost == {"images": 1, "missing chapters": 1}


PAGES = {
    "utf-8": ("<p>café</p>", "utf-8", ""),
    "declared": ('<meta charset="windows-1252"><p>café</p>', "cp1252", "cp1252"),
    "declared in the old way": (
        '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-2"><p>łódź</p>',
        "iso-8859-2",
        "iso8859-2",
    ),
    "Latin-1, which is Windows-1252": ('<meta charset="latin1"><p>5 €</p>', "cp1252", "cp1252"),
    "XML": ('<?xml version="1.0" encoding="shift_jis"?><html><p>日本</p></html>', "shift_jis", "shift_jis"),
    "marked": ("<p>café</p>", "utf-16", "UTF-16"),
    "declared and wrong": ('<meta charset="euc-kr"><p>café €</p>', "utf-8", ""),
    "declared and unknown": ('<meta charset="klingon"><p>café</p>', "utf-8", ""),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_encoding_of_a_page(tmp_path: Path, name: str) -> None:
    text, encoding, said = PAGES[name]
    found = page_text(save(tmp_path, "a.html", text.encode(encoding)), None)
    assert found.text == text.partition("<p>")[2].partition("</p>")[0]
    assert found.encoding == said


def test_a_page_that_says_no_encoding_takes_that_of_the_settings(tmp_path: Path) -> None:
    file = save(tmp_path, "a.html", "<p>café</p>".encode("cp1252"))
    with pytest.raises(UserError, match=r"not UTF-8: byte 6 \(set source\.encoding=NAME, such as cp1252"):
        page_text(file, None)
    assert page_text(file, "cp1252").text == "café"
    with pytest.raises(UserError, match="neither UTF-8 nor ascii"):
        page_text(file, "ascii")


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))
OUTSIDE = '<!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/passwd">]><w>&x;</w>'
GIB = 2**30


BAD: dict[str, tuple[str, bytes, str]] = {
    "PDF: encrypted": ("a.pdf", make_pdf(["T"], password=True), "is encrypted"),
    "PDF: a scan": ("a.pdf", make_pdf([None, None]), "no text on 2 pages, 2 images"),
    "PDF: broken": ("a.pdf", b"%PDF-1.7\n" + b"x" * 99, "cannot be read as a PDF file: Failed to load document"),
    "PDF: cut off": ("a.pdf", make_pdf(["T"])[:300], "cannot be read as a PDF file"),
    "PDF: a page of HTML": ("a.pdf", PAGE.encode(), "not a PDF file"),
    "PDF: empty": ("a.pdf", b"", "is empty"),
    "Word: a bomb": ("a.docx", make_docx(["T"], document=GIB), "unpacks to more than 256 MiB of text"),
    "Word: no zip": ("a.docx", b"Text.", "not a Word document, which is a zip archive"),
    "Word: encrypted": ("a.docx", b"\xd0\xcf\x11\xe0" + b"x" * 99, "is encrypted, or a file of old Word"),
    "Word: cut off": ("a.docx", make_docx(["T"])[:-30], "not a Word document"),
    "Word: a book": ("a.docx", make_epub({"a": "<p>T</p>"}), "cannot be read as a Word document"),
    "Word: no XML": ("a.docx", word_with("T"), "cannot be read as a Word document"),
    "Word: entities": (
        "a.docx",
        word_with(f"<!DOCTYPE w [{LAUGHS}]><w>&l11;</w>"),
        "cannot be read as a Word document",
    ),
    "Word: a file outside": ("a.docx", word_with(OUTSIDE), "Word document"),
    "Word: no text": ("a.docx", make_docx([]), "a Word document without text"),
    "EPUB: no chapters": ("a.epub", make_epub({}), "an EPUB book without chapters of text"),
    "EPUB: missing chapters": ("a.epub", make_epub({}, spine=["a"]), "an EPUB book without chapters of text"),
    "EPUB: encrypted": ("a.epub", make_epub({"a": "x"}, encrypted=["a"]), "is encrypted"),
    "EPUB: a zip of other files": ("a.epub", make_zip({"a.txt": "T"}), "cannot be read as an EPUB book"),
    "EPUB: entities": (
        "a.epub",
        make_zip({"META-INF/container.xml": f"<!DOCTYPE w [{LAUGHS}]><w>&l11;</w>"}),
        "cannot be read as an EPUB book",
    ),
    "EPUB: a bomb": ("a.epub", make_zip({"a.xhtml": "x"}, says={"a.xhtml": GIB}), "unpacks to more than 256 MiB"),
    "HTML: scripts alone": ("a.html", b"<html><script>write('x')</script></html>", "an HTML page without text"),
    "HTML: nested without end": ("a.html", b"<i>" * 10_000 + b"T", "is nested too deeply"),
    "HTML: another encoding": ("a.htm", "<p>café</p>".encode("cp1252"), "not UTF-8: byte 6"),
    "HTML: empty": ("a.xhtml", b"", "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_is_one_line_alone_and_a_reason_in_a_folder(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, data, what = BAD[name]
    place = save(tmp_path, f"docs/{file}", data)
    assert main(["questions", str(place), "--model", str(tiny_model_dir), "-o", str(tmp_path / "q.jsonl")]) == 2
    [line] = [it for it in capsys.readouterr().err.splitlines() if "error: " in it]
    assert line.startswith(f"logodata: error: {place}: ")
    assert what in line
    assert line.endswith(")"), "it says how to mend it"
    assert len(line) < 500
    assert not list(tmp_path.glob("q.*jsonl"))

    with pytest.raises(UserError, match=r"no document can be read, such as a: "):
        read_source(SourceSettings(path=str(place.parent)), needs_questions=False)
    save(tmp_path, "docs/good.txt", b"A text.")
    source = read_source(SourceSettings(path=str(place.parent)), needs_questions=False)
    assert [document.doc_id for document in source.documents] == ["good"]
    [lost] = source.rejected
    assert (lost.doc_id, lost.reason, lost.where) == ("a", "unreadable_document", str(place))
    assert what in str(lost.detail)
    assert "1 documents cannot be read, and are left out: a: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "file"), [("pypdfium2", "a.pdf"), ("markdownify", "a.html"), ("mammoth", "a.docx")]
)
def test_what_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, file: str
) -> None:
    monkeypatch.setattr("logodata.sources.converters.find_spec", lambda name: None if name == library else name)
    save(tmp_path, file, b"T")
    with pytest.raises(UserError, match=rf"{library} is not installed.* \(pip install '\.\[documents\]'"):
        read_source(SourceSettings(path=str(tmp_path)), needs_questions=False)


# -- a folder of files of several kinds --------------------------------------------------------------------------------

FILLER = [f"On day {day} nothing was written down but wind and weather of kind {day * 7}." for day in range(30)]
FACT = "The harbour of Vell holds seven lanterns."
TEXT = [*FILLER[:12], FACT, *FILLER[12:]]


def write_folder(folder: Path) -> Path:
    """A PDF file, a page, a Word document, and a table of questions on them and of a document of its own."""
    save(folder, "report.pdf", make_pdf(["\n".join(TEXT), None]))
    save(folder, "web/page.html", f"<html><body><nav>x</nav><p>{'</p><p>'.join(TEXT)}</p></body></html>".encode())
    save(folder, "memo.docx", make_docx(TEXT))
    rows = [
        ("File", "The question", "Answer"),
        *(
            (name, "What does the harbour of Vell hold?", "seven lanterns")
            for name in ("report.pdf", "web/page", "memo")
        ),
    ]
    save(folder, "asked.csv", "\ufeff".encode() + "".join(";".join(row) + "\r\n" for row in rows).encode())
    return folder


class Engine:
    """Finds the lanterns in critical chunks and sand in others."""

    name = "scripted 1"

    def __init__(self, model_dir: Path) -> None:
        from logodata.models.loading import load_tokenizer

        self._tokenizer = load_tokenizer(str(model_dir))

    def generate(self, requests: Any) -> Any:
        from logodata.engines import GenerationResult

        for request in requests:
            strategy = request.id.rpartition("/")[2]
            said = "It holds seven lanterns." if strategy == "model-0" else f"It holds {strategy} sand."
            yield GenerationResult(request.id, tuple(self._tokenizer.encode(said, add_special_tokens=False)), "stop")


SMALL = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_top=2", "generation.max_new_tokens=40"]


def test_a_folder_of_a_pdf_a_page_a_word_document_and_a_table_builds(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: Engine(tiny_model_dir))
    folder, output = write_folder(tmp_path / "docs"), tmp_path / "data"
    columns = ["source.columns.doc_id=File", "source.columns.question=The question", "source.columns.answers=Answer"]
    command = ["build", str(folder), *columns, *SMALL, "--model", str(tiny_model_dir), "-o", str(output)]
    assert main(command) == 0, capsys.readouterr().err
    said = capsys.readouterr().err.replace("\n", " ")
    assert "read as documents: .csv 1, .docx 1, .html 1, .pdf 1" in said
    assert "asked.csv: read as csv (separator ';')" in said
    assert "converted to text: .docx 1, .pdf 1, .html 1" in said
    assert "not in the text: images 1, pages without text 1, menus 1" in said
    samples = read_samples(output)
    assert [sample.doc_id for sample in samples] == ["memo", "report", "web/page"]
    assert all(any(chunk.critical and "harbour of Vell" in chunk.text for chunk in it.chunks) for it in samples)
    assert read_manifest(output).source.lost == {"images": 1, "pages without text": 1, "menus": 1}


def test_names_with_spaces_in_a_recipe(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "docs")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "build:\n  model: m\n  source:\n    path: docs\n    columns:\n"
        "      doc_id: File\n      question: The question\n      answers: Answer\n"
    )
    source = read_source(load_recipe(BuildRecipe, "build", recipe).source)
    assert [(d.doc_id, len(d.questions)) for d in source.documents] == [("memo", 1), ("report", 1), ("web/page", 1)]
    assert folder.is_dir()


def test_tables_of_documents_and_of_questions_beside_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, "a.md", b"Ann lives here.")
    save(tmp_path, "b.txt", b"Nobody lives there.")
    save(
        tmp_path,
        "rows.jsonl.gz",
        gzip.compress(b'{"doc_id": "c", "context": "Bo.", "question": "Who?", "answers": "Bo"}'),
    )
    save(tmp_path, "asked.tsv", b"doc_id\tquestion\tanswer\na.md\tWho?\tAnn\nc\tWhere?\tnowhere\n")
    save(tmp_path, "input.csv", b"input,question,answers\nCy lives on.,Who?,Cy\n")
    save(tmp_path, "README.md", b"About this folder.")
    source = read_source(SourceSettings(path=str(tmp_path)))
    found = {d.text: [(q.question, q.answers) for q in d.questions] for d in source.documents}
    assert found == {
        "Ann lives here.": [("Who?", ["Ann"])],
        "Nobody lives there.": [],
        "Bo.": [("Who?", ["Bo"]), ("Where?", ["nowhere"])],
        "Cy lives on.": [("Who?", ["Cy"])],
    }
    said = capsys.readouterr().err.replace("\n", " ")
    assert "rows.jsonl.gz: read as jsonl (gzip)" in said
    assert "1 of 4 documents hold no question" in said


def test_documents_with_names_like_a_readme_are_read_and_a_readme_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = ("README_zh.md", "LICENSE", "LICENSE-APACHE.txt", "README.old.md", "CHANGELOG-2024.md")
    for name in ("Notice of Termination.txt", "License Agreement 2024.txt", "report.md", *beside):
        save(tmp_path, name, f"The text of {name}.".encode())
    save(tmp_path, "license plates.csv", b"doc_id,question,answers\nreport,Whose?,r\n")
    source = read_source(SourceSettings(path=str(tmp_path)))
    assert {d.doc_id for d in source.documents} == {"Notice of Termination", "License Agreement 2024", "report"}
    said = capsys.readouterr().err.replace("\n", " ")
    named = "CHANGELOG-2024.md, LICENSE-APACHE.txt, README.old.md, README_zh.md"
    assert f"left out what describes the data, by its name: {named}" in said


def test_linked_folders_are_read_once_each(tmp_path: Path) -> None:
    save(tmp_path, "elsewhere/b.txt", b"Bo.")
    folder = tmp_path / "docs"
    save(folder, "a.txt", b"Ann.")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "a-link").symlink_to(folder / "real")  # which is there by its own name
    save(folder, "real/c.txt", b"Cy.")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    settings = SourceSettings(path=str(folder))
    documents = read_source(settings, needs_questions=False).documents
    assert {d.doc_id: d.text for d in documents} == {"a": "Ann.", "more/b": "Bo.", "real/c": "Cy."}
    before = source_fingerprint(settings)
    save(tmp_path, "elsewhere/b.txt", b"Bob.")
    assert source_fingerprint(settings) != before


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "a.txt", b"Ann.")
    save(tmp_path, "shut/b.txt", b"Bo.")
    scandir = os.scandir  # the tests may run as root, who may read everything

    def refuse(path: str) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"shut: cannot read: Permission denied \(allow it to be read"):
        read_source(SourceSettings(path=str(tmp_path)), needs_questions=False)


def test_a_question_on_another_file_is_not_put_on_one_of_the_same_stem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "report.txt", b"Ann.")
    save(tmp_path, "asked.csv", b"doc_id,question,answers\nreport.pdf,Who?,Bo\nreport.txt,Who?,Ann\nreport,Who?,Ann\n")
    source = read_source(SourceSettings(path=str(tmp_path)))
    assert [[q.answers for q in d.questions] for d in source.documents] == [[["Ann"], ["Ann"]]]
    assert [(row.doc_id, row.reason) for row in source.rejected] == [("report.pdf", "unknown_document")]
    assert "1 questions are on documents that the source does not hold, such as 'report.pdf'" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def test_files_that_differ_in_their_extension_keep_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("report.txt", "report.html", "sub/report.md", "other.txt"):
        save(tmp_path, name, f"The text of {name}.".encode())
    save(
        tmp_path,
        "asked.csv",
        b"doc_id,question,answers\nreport.txt,Whose?,txt\nreport,Whose?,both\nother.txt,Whose?,o\n",
    )
    source = read_source(SourceSettings(path=str(tmp_path)))
    assert {d.doc_id: d.text for d in source.documents} == {
        "report.txt": "The text of report.txt.",
        "report.html": "The text of report.html.",
        "sub/report": "The text of sub/report.md.",
        "other": "The text of other.txt.",
    }
    asked = {d.doc_id: len(d.questions) for d in source.documents if d.questions}
    assert asked == {"report.txt": 1, "other": 1}
    assert [row.reason for row in source.rejected] == ["unknown_document"]  # nothing says which report
    assert "questions are on documents that the source does not hold, such as 'report'" in capsys.readouterr().err

    save(tmp_path, "report.txt.md", b"One more.")
    with pytest.raises(UserError, match=r"doc_id 'report\.txt' is already that of report\.txt"):
        read_source(SourceSettings(path=str(tmp_path)))


def test_no_more_files_are_read_than_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        save(tmp_path, f"{n}.txt", b"" if n == 1 else f"The text of {n}.".encode())
    save(tmp_path, "asked.csv", b"doc_id,question,answers\n" + b"".join(b"%d,Who?,Ann\n" % n for n in range(5)))
    read: list[str] = []

    def read_document(file: Path, encoding: str | None) -> Any:
        read.append(file.name)
        return whole(file, encoding)

    whole = document_files.read_document
    monkeypatch.setattr(document_files, "read_document", read_document)
    source = read_source(SourceSettings(path=str(tmp_path), max_documents=2))
    assert read == ["0.txt", "1.txt", "2.txt"]
    assert [(d.doc_id, len(d.questions)) for d in source.documents] == [("0", 1), ("2", 1)]
    assert [row.doc_id for row in source.rejected] == ["1"]


def test_files_without_questions_say_who_writes_them(tmp_path: Path) -> None:
    save(tmp_path, "a.pdf", make_pdf(["T"]))
    with pytest.raises(UserError, match=r"these files hold no questions \(have them written: logodata questions"):
        read_source(SourceSettings(path=str(tmp_path)))


def test_the_fingerprint_of_converted_files_holds_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SourceSettings(path=str(save(tmp_path, "a.pdf", make_pdf(["T"]))))
    before = source_fingerprint(settings)
    assert source_fingerprint(settings) == before
    monkeypatch.setattr("logodata.sources.converters.version", lambda _: "0.0")
    assert source_fingerprint(settings) != before


# -- tables ------------------------------------------------------------------------------------------------------------

ROW = {"context": "Ann lives in a café.", "question": "Who?", "answers": "Ann"}


def zstd(data: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def csv_of(separator: str = ",") -> str:
    return separator.join(ROW) + "\n" + separator.join(ROW.values()) + "\n"


JSONL = (json.dumps(ROW, ensure_ascii=False) + "\n").encode()
READ: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "gzip": ("a.jsonl.gz", gzip.compress(JSONL), {}, "jsonl (gzip)"),
    "gzip in two members": ("a.jsonl.gz", gzip.compress(JSONL[:9]) + gzip.compress(JSONL[9:]), {}, "jsonl (gzip)"),
    "gzip without its ending": ("a.jsonl", gzip.compress(JSONL), {}, "jsonl (gzip)"),
    "gzip of a list": ("a.json.gz", gzip.compress(b"[" + JSONL + b"]"), {}, "jsonl (gzip)"),
    "zstd": ("a.jsonl.zst", zstd(JSONL), {}, "jsonl (zstd)"),
    "zstd of CSV": ("a.csv.zst", zstd(csv_of().encode()), {}, "csv (zstd, separator ',')"),
    "gzip of TSV": ("a.tsv.gz", gzip.compress(csv_of("\t").encode()), {}, "csv (gzip, separator tab)"),
    "semicolons": ("a.csv", csv_of(";").encode(), {}, "csv (separator ';')"),
    "UTF-16 of a spreadsheet": ("a.tsv", csv_of("\t").encode("utf-16"), {}, "csv (separator tab, UTF-16)"),
    "cp1252, as the user says": ("a.csv", csv_of().encode("cp1252"), {"encoding": "cp1252"}, "(separator ',', cp1252)"),
    "UTF-8, whatever the user says": ("a.csv", csv_of().encode(), {"encoding": "cp1252"}, "csv (separator ',')"),
    "UTF-16 without mark": ("a.csv", csv_of().encode("utf-16-le"), {"encoding": "utf-16-le"}, "utf-16-le)"),
}


@pytest.mark.parametrize("name", READ)
def test_what_was_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file, data, settings, said = READ[name]
    source = read_source(SourceSettings(path=str(save(tmp_path, file, data)), **settings))
    for _ in range(2):
        assert [(d.text, d.questions[0].answers) for d in source.documents] == [(ROW["context"], ["Ann"])]
    assert f"{file}: read as " in (err := capsys.readouterr().err)
    assert said in err


HEAD = b"context,question,answers\n"
REFUSED: dict[str, tuple[str, bytes, str, str]] = {
    "gzip cut off": ("a.jsonl.gz", gzip.compress(JSONL * 99)[:-9], "", "cannot be unpacked: Truncated"),
    "zstd cut off": ("a.jsonl.zst", zstd(JSONL * 99)[:-9], "", "cannot be unpacked: Truncated"),
    "gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), "", "holds no document"),
    "gzip and rubbish": ("a.jsonl.gz", gzip.compress(JSONL) + b"rubbish", "", "cannot be unpacked"),
    "gzip of a PDF file": ("a.jsonl.gz", gzip.compress(b"%PDF-1.7"), "", "a PDF file, not plain text"),
    "a bomb of one line": ("a.jsonl.gz", gzip.compress(b'{"context": "' + b" " * 2**20), ":1", "a line of more than"),
    "a bomb of many lines": (
        "a.jsonl.gz",
        gzip.compress(JSONL * 50_000),
        "",
        "unpacks to more than 200 times its size",
    ),
    "a line without end": ("a.jsonl", b'{"context": "' + b" " * 2**17, ":1", "a line of more than"),
    "a cell without end": ("a.csv", HEAD + b'"' + b"word\n" * 2**15, ":2", "a cell of more than"),
    "a NUL": ("a.csv", HEAD + b"T\0,Who?,Ann\n", ":2", "holds a NUL character"),
    "an open quote": ("a.csv", HEAD + b'"T,Who?,Ann\n', ":2", "not valid CSV in the row that begins here"),
    "an empty column": ("a.csv", HEAD + b",Who?,Ann\n", ":2", "found: context (empty), question, answers"),
    "another encoding": ("a.csv", csv_of().encode("cp1252"), ":2", "not UTF-8: byte 18 (set source.encoding=NAME"),
    "UTF-16 cut off": ("a.csv", csv_of().encode("utf-16")[:-1], "", "not UTF-16, in line 2 or after it"),
    "nothing": ("a.csv", b"", ":1", "is the header row missing?"),
    "a text with the ending of a table": ("a.csv", b"Ann lives here.\n\nBo does not.\n", ":1", "header row missing?"),
    "a PDF file with the ending of a text": ("a.txt", make_pdf(["T"]), "", "give it the ending .pdf"),
    "a picture with the ending of a page": ("a.html", PNG + b"\xff\xfe\xfd", "", "not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_table_or_ending_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file, data, place, what = REFUSED[name]
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 2**16)
    monkeypatch.setattr(packed_files, "FREE_BYTES", 2**20)
    with pytest.raises(UserError) as caught:
        read_source(SourceSettings(path=str(save(tmp_path, file, data))), needs_questions=False)
    said = str(caught.value)
    assert f"{file}{place}: " in said
    assert what in said
    assert said.endswith(")")
    assert "\n" not in said


def test_an_encoding_that_is_none_is_refused(tmp_path: Path) -> None:
    for name in ("klingon", "rot13"):
        with pytest.raises(ValueError, match="there is no such encoding of text"):
            SourceSettings(path="a.csv", encoding=name)


def test_all_converters_run_in_the_process_too(tmp_path: Path) -> None:
    files: dict[str, tuple[bytes, Callable[..., Any]]] = {
        "a.pdf": (make_pdf(["T"]), pdf_text),
        "a.html": (b"<p>T", page_text),
        "a.docx": (make_docx(["T"]), word_text),
        "a.epub": (make_epub({"a": "<p>T"}), book_text),
    }
    for name, (data, converter) in files.items():
        file = save(tmp_path, name, data)
        assert process.convert(file, None) == convert_here(file, None) == converter(file, None), name
