"""Names in archives, manifests and folders of strangers lead nowhere else, and ids are no file names."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main as logodata
from logodata.common.errors import UserError
from logodata.common.run_dir import write_json
from logodata.common.sealed import damage
from logodata.contract import read_samples
from logoeval.longbench.data import read_rows
from logotrain import checkpoint
from tests.logodata.stub_server import StubServer, make_answer, write_documents
from tests.logodata.test_server_faults import run_build

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
        assert damage(folder).endswith(("secret is not as it was written", "files.json is no list of files"))


@pytest.mark.parametrize("name", ["step-²", "step-", "step--1", "step-1e3", "step-٣"])
def test_folders_that_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert checkpoint._newest_first(tmp_path) in ([], [3])


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
    write_json(folder / "manifest.json", {"samples": 1, "recipe": {}})
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
