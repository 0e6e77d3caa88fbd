"""Uploading a data set: what goes up, under which names, and what is refused; against a hub on loopback too."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from logodata.cli import main
from logodata.common.files import write_json
from logodata.common.printable import markdown_cell, markdown_code
from logodata.dataset.statistics import source_group
from tests.data_sets import manifest_of

HOME = "/home/someone"
SERVER = "http://10.1.2.3:8000/v1"


def manifest(model: str, source: str, questions: str, cache: str, server: str) -> dict[str, Any]:
    recipe = {
        "model": model,
        "chat_template": None,
        "source": {"path": source, "questions": questions},
        "generation": {"cache": cache},
        "engine": {"base_urls": [server]},
    }
    return manifest_of(model=model, source={"path": source, "sha256": "123"}, recipe=recipe, samples=2).to_json()


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A folder as a finished build leaves it."""
    folder = tmp_path / "build"
    for name in ("data", "work"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 not really")
    (folder / "work" / "responses.jsonl").write_text("{}\n")
    (folder / ".lock").touch()
    (folder / "README.md").write_text(f"# Data from `{HOME}/texts`\n\n- **Model**: `{HOME}/models/mine`\n")
    names = (f"{HOME}/models/mine", f"{HOME}/texts", "~/asked.jsonl", f"{HOME}/texts/cache.jsonl", SERVER)
    write_json(folder / "manifest.json", manifest(*names))
    write_json(folder / "stats.json", {"kept": 2, "by_source": {f"{HOME}/texts/a.txt": 2}})
    rows = [
        {
            "id": "a",
            "where": f"{HOME}/texts/a.txt",
            "source": f"{HOME}/texts[train]",
            "question": f"What is in {HOME}/texts?",
        },
        {"id": "b", "where": f"{Path('~/asked.jsonl').expanduser()}:3", "question": "W\u2028o?"},
    ]
    rows[0]["source"] = f"{HOME}/texts[train]"
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


class FakeHub:
    """Stands for ``HfApi``: keeps the calls, and the files as they were when they went up."""

    endpoint = "https://hub"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.private = False

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repository": repository, **options}))

    def repo_info(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(private=self.private)

    def create_branch(self, _: str, **options: Any) -> None:
        self.calls.append(("create_branch", options))

    def upload_folder(self, **options: Any) -> None:
        folder = Path(options["folder_path"])
        self.calls.append(("upload_folder", options))
        self.files = {name: (folder / name).read_bytes() for name in options["allow_patterns"]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return fake


def test_what_goes_up(build: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(build), "org/name"]) == 0
    assert capsys.readouterr().out == "https://hub/datasets/org/name\n"
    data = "data/train-00000-of-00001.parquet"
    assert set(hub.files) == {data, "README.md", "manifest.json", "stats.json", "rejected.jsonl"}
    assert hub.files[data] == b"PAR1 not really"
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    assert hub.calls[0][1] == {"repository": "org/name", "repo_type": "dataset", "private": None, "exist_ok": True}
    assert hub.calls[1][1]["delete_patterns"] == "data/*.parquet"
    assert hub.calls[1][1]["repo_type"] == "dataset"


def test_names_of_this_machine_stay_here(build: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in build.rglob("*") if file.is_file()}
    assert main(["push", str(build), "org/name"]) == 0
    names = ("mine", "texts", "asked.jsonl", "cache.jsonl", "http://server-1/v1")
    assert json.loads(hub.files["manifest.json"]) == manifest(*names)
    assert hub.files["README.md"].decode() == "# Data from `texts`\n\n- **Model**: `mine`\n"
    assert json.loads(hub.files["stats.json"])["by_source"] == {"texts/a.txt": 2}
    rows = [json.loads(line) for line in hub.files["rejected.jsonl"].decode().split("\n")[:-1]]
    assert [row["where"] for row in rows] == ["texts/a.txt", "asked.jsonl:3"]
    assert rows[0]["source"] == "texts[train]"
    assert [row["question"] for row in rows] == [f"What is in {HOME}/texts?", "W\u2028o?"], "texts are left alone"
    said = capsys.readouterr().err
    assert f"{HOME}/texts as texts" in said
    assert said.count("\n") == 1
    assert {file: file.read_bytes() for file in build.rglob("*") if file.is_file()} == before


def test_neither_the_judges_servers_nor_the_folder_of_a_text_go_up(build: Path, hub: FakeHub) -> None:
    """The card escapes signs of Markdown in a path; of one text file its questions count under the folder."""
    folder, judge = "/home/some_one/secret`s|plans", "http://judge.corp.internal:8000/v1"
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["source"]["path"] = manifest["recipe"]["source"]["path"] = f"{folder}/notes.txt"
    manifest["recipe"]["judge"] = {"model": {"name": "J", "engine": {"base_urls": [SERVER, judge]}}}
    write_json(build / "manifest.json", manifest)
    write_json(build / "stats.json", {"kept": 2, "by_source": {source_group(f"{folder}/notes.txt"): 2}})
    card = f"# Data from {markdown_code(f'{folder}/notes.txt')}\n\n| {markdown_cell(f'source: {folder}/')} | 2 |\n"
    (build / "README.md").write_text(card)
    assert main(["push", str(build), "org/name"]) == 0
    recipe = json.loads(hub.files["manifest.json"])["recipe"]
    assert recipe["source"]["path"] == "notes.txt"
    assert recipe["engine"]["base_urls"] == ["http://server-1/v1"]
    assert recipe["judge"]["model"]["engine"]["base_urls"] == ["http://server-1/v1", "http://server-2/v1"]
    assert json.loads(hub.files["stats.json"])["by_source"] == {"./": 2}
    assert hub.files["README.md"].decode() == "# Data from ``notes.txt``\n\n| source: ./ | 2 |\n"


@pytest.mark.parametrize("folder", ["..", "../clients/acme"])
def test_a_path_that_leads_up_stays_here(build: Path, hub: FakeHub, folder: str) -> None:
    """Relative to where the build was started it says as much of the machine; three points in a text are none."""
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["source"]["path"] = manifest["recipe"]["source"]["path"] = f"{folder}/notes.txt"
    write_json(build / "manifest.json", manifest)
    write_json(build / "stats.json", {"kept": 2, "by_source": {source_group(f"{folder}/notes.txt"): 2}})
    (build / "README.md").write_text(f"# Data from {markdown_code(f'{folder}/notes.txt')} ...\n")
    assert main(["push", str(build), "org/name"]) == 0
    assert json.loads(hub.files["manifest.json"])["recipe"]["source"]["path"] == "notes.txt"
    assert hub.files["README.md"].decode() == "# Data from `notes.txt` ...\n"
    assert list(json.loads(hub.files["stats.json"])["by_source"]) == ["./" if folder != ".." else "../"]


def test_decisions_go_up_and_a_branch_is_made(build: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (build / "decisions.jsonl").write_text(json.dumps({"id": "a"}) + "\n")
    assert main(["push", str(build), "org/name", "--revision", "v2"]) == 0
    assert capsys.readouterr().out == "https://hub/datasets/org/name/tree/v2\n"
    assert ("create_branch", {"repo_type": "dataset", "branch": "v2", "exist_ok": True}) in hub.calls
    assert hub.calls[-1][1]["revision"] == "v2"
    assert "decisions.jsonl" in hub.files


def test_private_is_not_silently_public(build: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(build), "org/name", "--private"]) == 2
    assert "org/name: is public already" in capsys.readouterr().err
    assert not hub.files
    hub.private = True
    assert main(["push", str(build), "org/name", "--private"]) == 0
    assert hub.calls[-2][1]["private"] is True


def test_refused(
    build: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, repository: str = "org/name") -> str:
        assert main(["push", str(folder), repository]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert not hub.files
        return error

    assert "no such folder" in refused(build / "none")
    assert "is no name of a data set (write ORG/NAME" in refused(build, "name")
    write_json(build / "shard.json", {"number": 2, "total": 8, "places": {}})
    assert "is shard 2/8 of a build (join the shards first" in refused(build)
    (build / "shard.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "get_token", lambda: None)
        assert "nobody is logged in to the hub (run: hf auth login, or set HF_TOKEN)" in refused(build)
    (build / "manifest.json").unlink()
    assert "holds no finished build" in refused(build)


def test_offline(build: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The real client, as the tests run: HF_HUB_OFFLINE is set."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    assert main(["push", str(build), "org/name"]) == 2
    assert "the hub is switched off (HF_HUB_OFFLINE) (unset HF_HUB_OFFLINE)" in capsys.readouterr().err


class StubHub:
    """A hub on loopback that takes whole files in commits; ``status`` is what it says to a new repository."""

    def __init__(self) -> None:
        self.status = 200
        self.commits: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = [] if "/tree/" in self.path else {"id": "org/name", "private": False, "sha": "0" * 40}
                self.reply(found, stub.status)

            def do_POST(self) -> None:
                stub.keys.add(self.headers.get("Authorization"))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/api/repos/create":
                    self.reply({"url": f"{stub.url}/datasets/org/name", "error": "no room"}, stub.status)
                elif "/preupload/" in self.path:
                    paths = [file["path"] for file in json.loads(body)["files"]]
                    self.reply({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
                elif "/commit/" not in self.path:
                    self.reply({"errors": [], "warnings": []})  # the card's header is valid
                else:
                    stub.commits += [json.loads(line) for line in body.splitlines()]
                    self.reply({"commitUrl": f"{stub.url}/datasets/org/name/commit/{'1' * 40}", "commitOid": "1" * 40})

            def reply(self, value: Any, status: int = 200) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    hub = StubHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "token")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.mark.parametrize("xet", [True, False])
def test_the_real_client_uploads_links_as_files(
    build: Path, stub: StubHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], xet: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)
    assert main(["push", str(build), "org/name"]) == 0
    assert capsys.readouterr().out == f"{stub.url}/datasets/org/name\n"
    files = {
        entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
        for entry in stub.commits
        if entry["key"] == "file"
    }
    assert files["data/train-00000-of-00001.parquet"] == b"PAR1 not really"
    assert set(files) == {*(f"{name}.json" for name in ("manifest", "stats")), "README.md", "rejected.jsonl",
                          "data/train-00000-of-00001.parquet"}  # fmt: skip
    assert HOME not in files["manifest.json"].decode()
    assert stub.commits[0]["value"]["summary"] == "LOGO preference data, 2 samples"
    assert stub.keys == {"Bearer token"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the token is not valid: run hf auth login"),
        (403, "the token needs the right to write there"),
        (507, "org/name: the hub refuses: no room (run the same command again)"),
    ],
)
def test_a_hub_that_refuses(
    build: Path, stub: StubHub, capsys: pytest.CaptureFixture[str], status: int, message: str
) -> None:
    stub.status = status
    assert main(["push", str(build), "org/name"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert len(error) == 2  # with the line on names
    assert not stub.commits


def test_a_name_that_the_hub_does_not_take(build: Path, stub: StubHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(build), "org/na me"]) == 2
    assert "(write ORG/NAME)" in capsys.readouterr().err
    assert not stub.keys


def test_a_hub_that_is_not_there(build: Path, stub: StubHub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.server.shutdown()
    stub.server.server_close()
    assert main(["push", str(build), "org/name"]) == 2
    assert "cannot reach the hub" in capsys.readouterr().err
