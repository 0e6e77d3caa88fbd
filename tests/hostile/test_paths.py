"""Names in archives, manifests and folders of strangers lead nowhere else, and ids are no file names."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from logodata.build import responses
from logodata.cli import main as logodata
from logodata.common.errors import UserError
from logodata.common.files import damage, write_json
from logodata.dataset.samples import read_samples
from logodata.sources import read_source, source_fingerprint
from logodata.sources.fields import SourceSettings
from logoeval.cli import main as logoeval
from logoeval.tasks.longbench.data import read_rows
from logotrain.checkpoints import saving
from tests.data_sets import write_manifest
from tests.logodata.build.test_build import SMALL, ScriptedEngine
from tests.logodata.build.test_build import write_documents as write_facts
from tests.logodata.engines.stub_server import StubServer, make_answer, write_documents
from tests.logodata.engines.test_server_faults import run_build

ROW = {"input": "Q", "context": "T", "answers": ["A"]}


def tree(folder: Path) -> dict[str, bytes]:
    """Everything under a folder; a link by where it leads."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("name", ["../../qasper.jsonl", "/tmp/qasper.jsonl", "~/qasper.jsonl", "a/../../qasper.jsonl"])
def test_entries_of_an_archive_are_read_where_they_are(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    (tmp_path / "qasper.jsonl").write_text("not this file")
    with zipfile.ZipFile(inner / "data.zip", "w") as made:
        made.writestr(name, json.dumps(ROW) + "\n")
        made.writestr(".lock", "")
    before = tree(tmp_path)
    assert [row.context for row in read_rows(inner / "data.zip", None, False)["qasper"]] == ["T"]
    assert tree(tmp_path) == before


def test_a_link_in_an_archive_is_its_text(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as made:
        link = zipfile.ZipInfo("qasper.jsonl")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"data\.zip:qasper\.jsonl:1: not JSON"):
        read_rows(tmp_path / "data.zip", None, False)


def test_ids_of_documents_and_questions_are_no_file_names(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole build and its page: what is in the data set's folder has the names it always has."""
    file = write_documents(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["doc_id"] = f"../../../escaped-{number}\x00/etc"
        row["questions"][0]["id"] = f"/tmp/escaped-{number}/../q"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "a" / "b" / "out"
    server = StubServer()
    try:
        server.cards, server.answer = [{"id": "m"}], make_answer(tiny_model_dir)
        assert run_build(file, tiny_model_dir, server, out) == 0, capsys.readouterr().err
    finally:
        server.close()
    assert any("escaped" in sample.id for sample in read_samples(out))
    assert logodata(["inspect", str(out), "--html", str(out.parent / "page.html")]) == 0
    assert not any("escaped" in name for name in tree(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "my.jsonl"}


def test_what_files_json_lists_is_compared_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-1"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    listed: Any = {"../../secret": {"bytes": 6, "sha256": digest}}
    for content in (listed, {str(tmp_path / "secret"): listed["../../secret"]}, [], None, "x"):
        write_json(folder / "files.json", content)
        assert damage(folder).endswith(("secret is not as it was written", "files.json is not a list of files"))


@pytest.mark.parametrize("name", ["step-²", "step-", "step--1", "step-1e3", "step-٣"])
def test_folders_that_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert saving._newest_first(tmp_path) in ([], [3])


def test_folders_and_files_whose_names_are_not_utf8(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read and written; where text names them, their bytes are spelled."""
    odd, model = tmp_path / os.fsdecode(b"caf\xe9"), str(tiny_model_dir)
    odd.mkdir()
    monkeypatch.setattr(responses, "open_engine", lambda *_: ScriptedEngine(tiny_model_dir))
    documents = write_facts(tmp_path)
    options = [*SMALL, "--model", model]
    build = ["build", str(documents), *options]
    (odd / "qasper.jsonl").write_text(json.dumps(ROW))
    (odd / "predictions").mkdir()
    (odd / "predictions" / "qasper.jsonl").write_text(json.dumps({"pred": "A", "answers": ["A"], "length": 1}))
    commands = [
        (logodata, [*build, "-o", str(odd / "data")]),
        (logodata, [*build, "-o", str(odd / "data")]),
        *((logodata, [*build, "--shard", f"{n}/2", "-o", str(odd / f"part-{n}")]) for n in (1, 2)),
        (logodata, ["merge", str(odd / "part-1"), str(odd / "part-2"), "-o", str(odd / "merged")]),
        (logodata, ["inspect", str(odd / "data")]),
        (logodata, ["inspect", str(odd / "data"), "--html", str(odd / "page.html")]),
        (logodata, ["stats", str(odd / "data"), str(odd / "merged")]),
        (logodata, ["stats", str(odd / "data"), "--json"]),
        (logodata, ["export", str(odd / "data"), "--format", "trl", "-o", str(odd / "x.jsonl")]),
        (logodata, ["export", str(odd / "data"), "--format", "llama-factory", "-o", str(odd / "factory")]),
        (logoeval, ["score", str(odd / "predictions"), "-o", str(odd / "scores.json")]),
        *(
            (logoeval, ["longbench", "--data", str(odd / "qasper.jsonl"), "--model", model, "-o", str(odd / name)])
            for name in "ab"
        ),
        (logoeval, ["compare", str(odd / "a"), str(odd / "b"), "-o", str(odd / "report.html")]),
        (logoeval, ["errors", str(odd / "a"), "-o", str(odd / "errors.json")]),
    ]
    for main, arguments in commands:
        assert main(arguments) == 0, capsys.readouterr().err
        assert all(letter not in capsys.readouterr().out for letter in ("\udce9", "\ufffd"))
    written = [file for file in odd.rglob("*") if file.suffix in (".json", ".jsonl", ".html", ".md", ".yaml")]
    assert len(written) > 20
    for file in written:
        assert "udce9" not in file.read_bytes().decode("utf-8")
    assert r"caf\xe9/predictions" in json.loads((odd / "scores.json").read_text())["sources"]["predictions"]


def test_texts_whose_names_are_not_utf8(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("The mill stands by the bridge. " * 40)
    (tmp_path / "asked.json").write_text(json.dumps({"doc_id": r"caf\xe9", "question": "Q?", "answers": ["A"]}))
    settings = SourceSettings(path=str(folder), questions=str(tmp_path / "asked.json"))
    source = read_source(settings)
    assert [document.doc_id for document in source.documents] == [r"caf\xe9"]
    assert not source.rejected
    assert source_fingerprint(settings)
    ppl = [f"ppl.text={folder}", "ppl.lengths=[64]", "ppl.num_documents=1", "--model", str(tiny_model_dir)]
    assert logoeval(["ppl", *ppl, "-o", str(tmp_path / "out")]) == 0
    [sample] = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["ppl"]["samples"]
    assert sample["id"] == r"caf\xe9.txt"


@pytest.mark.parametrize(
    "given", [["{odd}/x.jsonl"], ["x.jsonl", "source.questions={odd}/q.jsonl"], ["x.jsonl", "--model", "{odd}/model"]]
)
def test_a_recipe_holds_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    words = [word.replace("{odd}", os.fsdecode(b"caf\xe9")) for word in given]
    assert logodata(["build", *words, *([] if "--model" in words else ["--model", "m"]), "-o", str(tmp_path)]) == 2
    assert "is not UTF-8 (rename the file or folder)" in capsys.readouterr().err


@pytest.mark.parametrize("linked", ["data/train-00000-of-00001.parquet", "README.md", "stats.json", "rejected.jsonl"])
def test_an_upload_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], linked: str
) -> None:
    """A data set of a stranger's, uploaded again, must not take a file of ours along."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name in ("README.md", "stats.json", "rejected.jsonl", "data/train-00000-of-00001.parquet"):
        (folder / name).write_text("{}\n")
    write_manifest(folder)
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / linked).unlink()
    (folder / linked).symlink_to(secret)
    assert logodata(["push", str(folder), "org/name"]) == 2
    assert f"{folder / linked}: is a link out of the data set's folder" in capsys.readouterr().err


class _Api:
    endpoint = "https://hub"

    def create_repo(self, *_: object, **__: object) -> None:
        pass

    def upload_folder(self, **_: object) -> None:
        raise AssertionError("a link went up")


@pytest.mark.parametrize(
    "words",
    [
        "build ~nobody99/x.yaml --dry-run",
        "build ~nobody99/x.jsonl --model embedded -o out",
        "build x.jsonl --model ~nobody99/x -o out",
        "questions ~nobody99/x.txt --model embedded -o q.jsonl",
    ],
)
def test_a_home_that_does_not_exist_is_a_folder_that_does_not(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text("{}")
    assert logodata(words.split()) == 2
    assert "~nobody99/x" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
