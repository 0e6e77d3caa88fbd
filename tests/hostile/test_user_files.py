"""Texts as editors and systems write them: marks, other encodings, ends of lines; folders with what systems leave in
them. A file means the same however it was saved, or is refused by name, byte and line."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logodata.build.responses
from logodata.cli import main as logodata_main
from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.json_files import parse_json
from logodata.common.recipes.reading import load_recipe
from logodata.common.user_files import decode_utf8, read_text, visible_files
from logodata.dataset.samples import read_manifest, read_samples
from logodata.models.facts import model_fingerprint
from logodata.models.loading import load_tokenizer
from logodata.recipe.settings import BuildRecipe
from logodata.sources import read_source, source_fingerprint
from logodata.sources.fields import SourceSettings
from logoeval.recipe.settings import EvalRecipe
from logoeval.run import evaluate
from logoeval.tasks.longbench.data import read_rows
from logoeval.tasks.longbench.score_files import read_predictions
from logoeval.tasks.short.harness import folder_fingerprint
from logoeval.tasks.texts import read_documents
from tests.logodata.build.test_build import ScriptedEngine, run_build, write_documents

MARK = b"\xef\xbb\xbf"
TEXT = "Café one.\nLine two.\n\nA new paragraph.\n"
ROW = {"_id": "1", "dataset": "qasper", "input": "Q?", "context": "A\u2028b\u0085 café", "answers": ["A"], "length": 3}
PREDICTION = {"pred": "A\u2028 café", "answers": ["A"], "all_classes": None, "length": 3}


def texts_of(file: Path) -> Any:
    return read_documents(file)


def document_of(file: Path) -> Any:
    return [(document.doc_id, document.text) for document in read_source(asked(file)).documents]


def asked(file: Path) -> SourceSettings:
    """The source of a text file, with a question beside it."""
    (file.parent / "asked.json").write_text(json.dumps({"doc_id": "file", "question": "Q?", "answers": ["A"]}))
    return SourceSettings(path=str(file), questions=str(file.parent / "asked.json"))


def rows_of(file: Path) -> Any:
    rows = [(row.id, row.context, row.answers) for row in read_rows(file, None, False)["qasper"]]
    read_rows.cache_clear()
    return rows


def predictions_of(file: Path) -> Any:
    named = file.with_name("qasper.jsonl")
    shutil.copy(file, named)
    return [prediction.response for prediction in read_predictions(named, e=False)[0]["qasper"]]


def source_of(file: Path) -> Any:
    return [(found.text, [q.question for q in found.questions]) for found in read_source(_jsonl(file)).documents]


def questions_of(file: Path) -> Any:
    documents = file.with_name("documents.jsonl")
    documents.write_text(json.dumps({"doc_id": "d", "context": "T"}))
    settings = SourceSettings(path=str(documents), questions=str(file))
    return [question.question for found in read_source(settings).documents for question in found.questions]


def _jsonl(file: Path) -> SourceSettings:
    return SourceSettings(path=str(file), format="jsonl")


def recipe_of(file: Path) -> Any:
    return load_recipe(BuildRecipe, "build", file)


def template_of(file: Path) -> Any:
    return load_tokenizer(str(_model(file.parent)), file).chat_template


def own_template_of(file: Path) -> Any:
    """In the model's own folder, where transformers reads it."""
    model = _model(file.parent)
    shutil.copy(file, model / "chat_template.jinja")
    return load_tokenizer(str(model)).chat_template


def _model(folder: Path) -> Path:
    from tests.conftest import make_tokenizer

    make_tokenizer().save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    return folder / "model"


DOCUMENT = {"doc_id": "d", "context": "A\u2028b\u0085 café", "questions": [{"question": "Q é?", "answers": ["A"]}]}
QUESTION = {"doc_id": "d", "question": "Q\u2028 é?", "answers": ["A"]}
RECIPE = "# é\nbuild:\n  model: m\n  source:\n    path: documents.jsonl\n"
TEMPLATE = "{# é #}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _lines(row: dict[str, Any]) -> str:
    """Two JSON lines, with signs in them that some readers take for ends of lines."""
    twice = [row, {**row, **({"_id": "2"} if "_id" in row else {})}]
    if "doc_id" in row:
        twice[1] = {**row, "doc_id": "e"} if "context" in row else {**row, "question": "Another?"}
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in twice)


READERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "text of ppl and haystacks": (texts_of, "file.txt", TEXT),
    "document": (document_of, "file.txt", TEXT),
    "LongBench": (rows_of, "file.jsonl", _lines(ROW)),
    "predictions": (predictions_of, "file.jsonl", _lines(PREDICTION)),
    "documents in JSON lines": (source_of, "file.jsonl", _lines(DOCUMENT)),
    "documents as a JSON list": (source_of, "file.json", json.dumps([DOCUMENT], indent=2, ensure_ascii=False)),
    "an indented document": (source_of, "file.json", json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n"),
    "indented documents": (
        source_of,
        "file.json",
        "\n".join(json.dumps({**DOCUMENT, "doc_id": name}, indent=1, ensure_ascii=False) for name in "ab"),
    ),
    "questions": (questions_of, "file.json", _lines(QUESTION)),
    "recipe": (recipe_of, "file.yaml", RECIPE),
    "chat template": (template_of, "file.jinja", TEMPLATE),
    "chat template of the model": (own_template_of, "file.jinja", TEMPLATE),
}
SAVED: dict[str, Callable[[str], bytes]] = {
    "with a mark": lambda text: MARK + text.encode(),
    "with two marks": lambda text: MARK + MARK + text.encode(),
    "Windows": lambda text: MARK + text.replace("\n", "\r\n").encode(),
    "old Macs": lambda text: text.replace("\n", "\r").encode(),
}
OTHERS = {"utf-16": "it is UTF-16", "utf-16-le": "it is UTF-16", "utf-32": "it is UTF-32", "latin-1": "byte"}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", READERS)
def test_a_file_means_the_same_however_it_was_saved(tmp_path: Path, name: str, saved: str) -> None:
    read, file, text = READERS[name]
    path = tmp_path / file
    path.write_bytes(text.encode())
    expected = read(path)
    assert expected
    path.write_bytes(SAVED[saved](text))
    assert read(path) == expected


@pytest.mark.parametrize("encoding", OTHERS)
@pytest.mark.parametrize("name", [name for name in READERS if name != "chat template of the model"])
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str) -> None:
    read, file, text = READERS[name]
    (tmp_path / file).write_bytes(text.replace("\u2028", "").encode(encoding))
    place = r"(file\.\w+|qasper\.jsonl)(:\d+)?"
    if name == "document" and encoding in ("utf-16", "utf-32"):  # their marks say it
        assert read(tmp_path / file) == [("file", text)]
        return
    with pytest.raises(UserError, match=rf"{place}: (not JSON: )?not UTF-8(: {OTHERS[encoding]}|, in this line)"):
        read(tmp_path / file)


def test_the_byte_and_the_line_are_told(tmp_path: Path) -> None:
    assert decode_utf8(b"\xef\xbb\xbf") == ""
    (tmp_path / "a.txt").write_bytes(b"one\ntwo caf\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8: byte 11, line 2 \(save it as UTF-8"):
        read_text(tmp_path / "a.txt", most_bytes=100, mend="")
    with pytest.raises(ValueError, match=r"^not UTF-8: byte 2$"):
        parse_json(b'"a\xe9"')
    # A sign of its own inside a text stays.
    assert decode_utf8("a\ufeffb".encode()) == "a\ufeffb"


def test_logs_of_ours_that_an_editor_saved_go_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    AppendLog(path).append({"id": "a", "text": "A\u2028b"}, {"id": "b", "text": "c"})
    path.write_bytes(MARK + path.read_bytes().replace(b"\n", b"\r\n"))
    log = AppendLog(path)
    log.append({"id": "c", "text": "d"})
    assert {name: record["text"] for name, record in AppendLog(path).items()} == {"a": "A\u2028b", "b": "c", "c": "d"}


def test_a_wrapped_or_cut_object_is_told(tmp_path: Path) -> None:
    for text, said in (
        (json.dumps({"data": [DOCUMENT]}, indent=1), r"file\.json:1: no field 'context.*found: data"),
        (json.dumps(DOCUMENT, indent=1)[:-2], r"file\.json:1: the JSON object has no end"),
        (json.dumps(DOCUMENT, indent=1) + "\nx", r"file\.json:13: not valid JSON"),
        ('{"context": "a",\n{"context": "b"}\n', r"file\.json:1: not valid JSON"),
        ('{"context": "a",', r"file\.json:1: not valid JSON: .* at column"),
    ):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(UserError, match=said):
            source_of(tmp_path / "file.json")


def test_a_chat_template_is_one_however_it_was_saved(tmp_path: Path, tiny_model_dir: Path) -> None:
    """What binds an evaluation is the template's text, not the bytes of its file."""
    file, out = tmp_path / "chat.jinja", tmp_path / "out"
    text = str(load_tokenizer(str(tiny_model_dir)).chat_template)
    (tmp_path / "a.txt").write_text("The mill stands by the bridge. " * 40)
    for content in (text.encode(), MARK + text.encode(), MARK + text.replace("\n", "\r\n").encode()):
        file.write_bytes(content)
        ppl: dict[str, Any] = {"text": str(tmp_path / "a.txt"), "lengths": [64], "num_documents": 1}
        recipe = EvalRecipe.model_validate({"model": str(tiny_model_dir), "chat_template": file, "ppl": ppl})
        assert evaluate(recipe, ["ppl"], out).tasks.keys() == {"ppl"}


# -- folders -----------------------------------------------------------------------------------------------------------


def leave(folder: Path, *names: str) -> None:
    """What macOS and Windows leave in a folder; ``names`` get their ``._`` twins, which are no text."""
    for name in names:
        (folder / f"._{name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1\xff")
    (folder / "__MACOSX").mkdir()
    for name in names:
        (folder / "__MACOSX" / name).write_bytes(b"\0\5\26\7\xff")


def folder_of_longbench(folder: Path) -> Any:
    (folder / "qasper.jsonl").write_text(_lines(ROW))
    yield "qasper.jsonl"
    yield rows_of(folder)


def folder_of_predictions(folder: Path) -> Any:
    (folder / "qasper.jsonl").write_text(_lines(PREDICTION))
    yield "qasper.jsonl"
    yield [prediction.response for prediction in read_predictions(folder, e=False)[0]["qasper"]]


def folder_of_texts(folder: Path) -> Any:
    (folder / "a.txt").write_text("first")
    (folder / "B.TXT").write_text("second")
    yield "a.txt"
    yield read_documents(folder)


def folder_of_documents(folder: Path) -> Any:
    (folder / "file.txt").write_text(TEXT)
    settings = SourceSettings(path=str(folder), questions=str(folder.parent / "asked.json"))
    (folder.parent / "asked.json").write_text(json.dumps({"doc_id": "file", "question": "Q?", "answers": ["A"]}))
    yield "file.txt"
    yield [found.text for found in read_source(settings).documents], source_fingerprint(settings)


def folder_of_data(folder: Path) -> Any:
    (folder / "rows.jsonl").write_text(_lines(DOCUMENT))
    settings = SourceSettings(path=str(folder))
    yield "rows.jsonl"
    yield [found.doc_id for found in read_source(settings).documents], source_fingerprint(settings)


def folder_of_weights(folder: Path) -> Any:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    yield "model.safetensors"
    model_fingerprint.cache_clear()
    yield model_fingerprint(str(folder))


def folder_of_tasks(folder: Path) -> Any:
    (folder / "own.yaml").write_text("task: own")
    yield "own.yaml"
    yield folder_fingerprint(folder) if not list(folder.rglob("__MACOSX/*")) else _without_macosx(folder)


def _without_macosx(folder: Path) -> Any:
    shutil.rmtree(folder / "__MACOSX")  # lm-eval reads what is in there
    return folder_fingerprint(folder)


@pytest.mark.parametrize(
    "kind",
    [
        *(folder_of_longbench, folder_of_predictions, folder_of_texts, folder_of_documents, folder_of_data),
        *(folder_of_weights, folder_of_tasks),
    ],
)
def test_what_systems_leave_in_folders_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Any]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    name, expected = kind(tmp_path / "folder")
    leave(tmp_path / "folder", name)
    assert tuple(kind(tmp_path / "folder")) == (name, expected)


def test_a_hidden_folder_is_read_if_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "texts"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    assert [file.name for file in visible_files(folder)] == ["a.txt"]
    assert read_documents(folder) == (("a.txt", "first"),)


def test_an_archive_made_on_a_mac(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", _lines(ROW))
        for name in ("__MACOSX/data/._qasper.jsonl", "data/._qasper.jsonl", "__MACOSX/data/qasper.jsonl"):
            archive.writestr(name, b"\0\5\26\7\xff")
    assert [row[0] for row in rows_of(tmp_path / "data.zip")] == ["1", "2"]


# -- a build, and what reads it ----------------------------------------------------------------------------------------


def test_a_build_carries_its_template_and_ignores_strangers(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made with a relative template and a relative model, read from another folder, among files of macOS."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    shutil.copytree(tiny_model_dir, here / "model")
    text = (here / "model" / "chat_template.jinja").read_text()
    (here / "model" / "chat_template.jinja").unlink()
    (here / "chat.jinja").write_bytes(MARK + text.encode())
    write_documents(here)
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: ScriptedEngine(tiny_model_dir))
    monkeypatch.chdir(here)
    assert run_build(Path("my.jsonl"), Path("model"), Path("data"), "chat_template=chat.jinja") == 0
    assert run_build(Path("my.jsonl"), tiny_model_dir, Path("plain")) == 0
    samples = read_samples(Path("data"))
    assert [sample.prompt_ids for sample in samples] == [sample.prompt_ids for sample in read_samples(Path("plain"))]
    assert read_manifest(Path("data")).chat_template == text
    assert read_manifest(Path("plain")).chat_template is None
    leave(here / "data" / "data", "train-00000-of-00001.parquet")
    monkeypatch.chdir(there)
    data, model = str(here / "data"), str(here / "model")
    assert [sample.id for sample in read_samples(here / "data")] == [sample.id for sample in samples]
    assert logodata_main(["inspect", data]) == 0
    capsys.readouterr()
    export = ["export", data, "--format", "openrlhf", "-o", "out.jsonl"]
    assert logodata_main(export) == 2
    assert "model: no such model folder" in capsys.readouterr().err
    assert logodata_main([*export, "--model", model]) == 0, capsys.readouterr().err
    assert len(Path("out.jsonl").read_text().splitlines()) == 6
    changed = json.loads((here / "model" / "tokenizer.json").read_text())
    changed["model"]["vocab"]["zz"] = len(changed["model"]["vocab"])
    (here / "model" / "tokenizer.json").write_text(json.dumps(changed))
    assert logodata_main([*export, "--model", model]) == 2
    assert "the data hold token ids of another tokenizer (give the model of the build" in capsys.readouterr().err
