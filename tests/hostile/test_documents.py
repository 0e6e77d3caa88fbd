"""Documents of strangers: they read no file, reach no network, import nothing, and cost themselves alone."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from logodata.sources.converters import Unreadable, process
from logodata.sources.converters.book import book_text
from logodata.sources.converters.word import word_text
from tests.documents import make_docx, make_epub, make_pdf, save, word_with

pytest.importorskip("pypdfium2")
pytest.importorskip("mammoth")


def test_no_entity_reads_a_file(tmp_path: Path) -> None:
    secret = save(tmp_path, "secret.txt", b"the secret")
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{secret.as_uri()}">]>'
    text = "<w:t>T&e;</w:t>"
    document = (
        f'{entity}<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        f"<w:body><w:p><w:r>{text}</w:r></w:p></w:body></w:document>"
    )
    word = word_text(save(tmp_path, "a.docx", word_with(document)), None)
    book = book_text(save(tmp_path, "a.epub", make_epub({"a": f"{entity}<p>T&e;</p>"})), None)
    assert "secret" not in word.text + book.text
    assert word.text == "T"


def test_a_document_that_takes_too_long_or_too_much_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path, "good.pdf", make_pdf(["T"]))
    assert process.convert(good, None).text == "T"
    slow, large = save(tmp_path, "slow.html", b"<p>a</p><i>" * 2**17), save(tmp_path, "large.html", b"T" * 2**27)
    monkeypatch.setattr(process, "MOST_SECONDS", 0.05)
    with pytest.raises(Unreadable, match=r"slow\.html: takes more than 0\.05 s to read"):
        process.convert(slow, None)
    monkeypatch.undo()
    assert process.convert(good, None).text == "T"
    if sys.platform == "linux":
        process.stop()
        monkeypatch.setattr(process, "MOST_BYTES", 2**29)
        assert process.convert(good, None).text == "T"
        with pytest.raises(Unreadable, match=r"needs more than 0\.5 GiB of memory"):
            process.convert(large, None)
        process.stop()
        monkeypatch.undo()
        assert process.convert(good, None).text == "T"


def test_modules_beside_documents_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "resource", "logodata", "mammoth"):
        save(tmp_path, f"{name}.py", f"open({str(tmp_path / 'imported')!r}, 'w')".encode())
    monkeypatch.chdir(tmp_path)
    process.stop()
    assert process.convert(save(tmp_path, "a.docx", make_docx(["T"])), None).text == "T"
    assert not (tmp_path / "imported").exists()


def test_no_document_reaches_the_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        at = f"http://127.0.0.1:{server.getsockname()[1]}"
        asked = []

        def listen() -> None:
            while not done.is_set():
                try:
                    asked.append(server.accept())
                except TimeoutError:
                    continue

        done = threading.Event()
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            page = (
                f'<!DOCTYPE html SYSTEM "{at}/x.dtd"><link rel=stylesheet href="{at}/a.css"><p>T<img src="{at}/a.png">'
                f'<iframe src="{at}/"></iframe><script src="{at}/a.js"></script>'
            )
            document = (
                f'<!DOCTYPE w SYSTEM "{at}/x.dtd"><w:document xmlns:w="http://schemas.openxmlformats.org/'
                f'wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>T</w:t></w:r></w:p></w:body></w:document>'
            )
            for name, data in (
                ("a.html", page.encode()),
                ("a.epub", make_epub({"a": page})),
                ("a.docx", word_with(document)),
                ("a.pdf", make_pdf(["T"]).replace(b"/Type/Catalog", b"/Type/Catalog/URI<</Base(%s)>>" % at.encode())),
            ):
                assert process.convert(save(tmp_path, name, data), None).text == "T", name
        finally:
            done.set()
            thread.join()
        assert not asked


def test_a_document_is_converted_once_and_again_if_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = process._ask
    monkeypatch.setattr(process, "_ask", lambda file, encoding: asked.append(file) or ask(file, encoding))
    good, bad = save(tmp_path, "a.html", b"<p>One"), save(tmp_path, "b.pdf", b"no")
    for _ in range(3):
        assert process.convert(good, None).text == "One"
        with pytest.raises(Unreadable, match=r"b\.pdf: not a PDF file"):
            process.convert(bad, None)
    assert asked == [good, bad]
    save(tmp_path, "a.html", b"<p>Two of it")
    assert process.convert(good, None).text == "Two of it"
    monkeypatch.setattr(process, "MOST_KEPT_BYTES", 0)
    save(tmp_path, "a.html", b"<p>Three of them")
    for _ in range(2):
        assert process.convert(good, None).text == "Three of them"
    assert asked[3:] == [good] * 2
