"""A key is sent to the server that it is for, and stands nowhere else: whatever that server says, in whatever form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from logodata.cli import main as logodata
from logoeval.cli import main as logoeval
from tests.data_sets import write_manifest
from tests.logodata.engines.stub_server import STOP, make_answer, write_documents

KEY = "sk-CANARY-0123456789abcdef"


class Echo:
    """A server that repeats the key wherever it can.

    By ``mode``, ``models`` fails at once, ``completions`` and ``finish`` when asked for a response, ``redirect`` sends
    on to another server, ``good`` works.
    """

    def __init__(self, mode: str, other: str = "") -> None:
        self.mode, self.keys = mode, list[str | None]()
        self.answer: Callable[[list[int]], list[int]] = lambda prompt: [prompt[-1], STOP]
        echo = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                echo.keys.append(self.headers.get("Authorization"))
                said = self.headers.get("Authorization") or ""
                card = {"id": "m", "owned_by": "vllm", "max_model_len": 4096, "note": said, "parent": said}
                if echo.mode == "models":
                    self.reply(401, json.dumps({"error": {"message": f"bad key {said}\nno {KEY}"}}))
                elif echo.mode == "redirect":
                    self.reply(307, "", {"Location": f"{other}{self.path}?api_key={KEY}"})
                elif self.path == "/version":
                    self.reply(200, json.dumps({"version": f"0.1+{KEY}"}))
                else:
                    self.reply(200, json.dumps({"data": [card]}), {"X-Echo": said})

            def do_POST(self) -> None:
                said = self.headers.get("Authorization") or ""
                echo.keys.append(said)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if echo.mode == "completions":
                    page = f"<html><title>{said}</title><a href='/?api_key={KEY}'>{KEY}</a></html>"
                    self.reply(500, page, {"Content-Type": "text/html", "WWW-Authenticate": said})
                elif echo.mode == "finish":
                    choice = {"text": KEY, "token_ids": [4], "finish_reason": said}
                    self.reply(200, json.dumps({"choices": [choice]}))
                else:
                    choice = {"text": KEY, "token_ids": echo.answer(body["prompt"]), "finish_reason": "stop"}
                    self.reply(200, json.dumps({"id": KEY, "system_fingerprint": said, "choices": [choice]}))

            def reply(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body.encode())), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def new_echo() -> Iterator[Callable[..., Echo]]:
    servers: list[Echo] = []

    def start(*arguments: str) -> Echo:
        servers.append(Echo(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", KEY)


def holders(folder: Path, *texts: str) -> list[str]:
    """Where the key stands."""
    found = [str(path) for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    return found + [text for text in texts if KEY in text]


def engine(url: str) -> list[str]:
    return ["engine.kind=openai", f"engine.base_urls=[{url}]", "engine.served_model=m", "engine.api_key_env=CANARY"]


def build(model: Path, output: Path, url: str, *more: str) -> int:
    small = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
    small += ["contexts.critical_top=2", "generation.max_new_tokens=40", "engine.max_retries=0", "engine.concurrency=1"]
    documents = write_documents(output.parent)
    return logodata(["build", str(documents), "--model", str(model), "-o", str(output), *small, *engine(url), *more])


@pytest.mark.parametrize("mode", ["models", "completions", "finish", "redirect", "good"])
def test_a_build_with_a_server_that_repeats_the_key(
    tiny_model_dir: Path,
    tmp_path: Path,
    new_echo: Callable[..., Echo],
    capsys: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    other = new_echo("good")
    server = new_echo(mode, other.url)
    server.answer = make_answer(tiny_model_dir)
    output = tmp_path / "out"
    assert build(tiny_model_dir, output, server.url, "--json") == (0 if mode == "good" else 2)
    said = capsys.readouterr()
    assert set(server.keys) == {f"Bearer {KEY}"}, "it was sent"
    assert other.keys == [], "no other server heard of it"
    assert holders(tmp_path, said.out, said.err) == []
    if mode == "good":
        assert json.loads((output / "manifest.json").read_text())["engine"] == "openai (vllm 0.1+***)"
        assert logodata(["inspect", str(output), "--html", str(tmp_path / "page.html")]) == 0
        assert logodata(["stats", str(output), "--json"]) == 0
        said = capsys.readouterr()
        assert holders(tmp_path, said.out, said.err) == []
    else:
        assert "***" in said.err or mode == "redirect"


@pytest.mark.parametrize("mode", ["models", "completions", "good"])
def test_an_evaluation_with_such_a_server(
    tiny_model_dir: Path,
    tmp_path: Path,
    new_echo: Callable[..., Echo],
    capsys: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    server = new_echo(mode)
    small = ["niah.lengths=[800]", "niah.num_samples=1", "niah.haystacks=[noise]", "niah.max_new_tokens=4"]
    output = tmp_path / "out"
    arguments = ["niah", "--model", str(tiny_model_dir), "-o", str(output), *small, *engine(server.url)]
    assert logoeval([*arguments, "engine.max_retries=0"]) == (0 if mode == "good" else 2)
    said = capsys.readouterr()
    assert f"Bearer {KEY}" in server.keys
    assert holders(tmp_path, said.out, said.err) == []


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{KEY}@127.0.0.1:9",
        f"http://{KEY}@127.0.0.1:9",
        f"http://127.0.0.1:9/v1?api_key={KEY}",
        f"http://h#{KEY}",
        f"ftp://me:{KEY}@h",
        f"http://me:{KEY}",
    ],
)
def test_a_key_in_an_address_is_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    """In a recipe file: on a command line it stands in the shell's history anyway."""
    (tmp_path / "r.yaml").write_text(f"build: {{engine: {{kind: openai, base_urls: ['{address}']}}}}")
    output, documents = tmp_path / "out", write_documents(tmp_path)
    command = ["build", str(tmp_path / "r.yaml"), "--model", str(tiny_model_dir), f"source.path={documents}"]
    assert logodata([*command, "-o", str(output)]) == 2
    said = capsys.readouterr()
    assert re.search(r"base_urls: (an address may hold no password and no query|number 1 is|the port of)", said.err)
    assert KEY not in said.out + said.err
    assert holders(output) == []


@pytest.mark.parametrize("written", [KEY, "deadbeef0123"])
def test_a_key_in_place_of_its_name_is_not_repeated(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    (tmp_path / "r.yaml").write_text(
        "build: {contexts: {critical_threshold: null, critical_top: 2}, "
        f"engine: {{kind: openai, base_urls: ['http://127.0.0.1:9'], api_key_env: {written}}}}}"
    )
    documents = write_documents(tmp_path)
    command = ["build", str(tmp_path / "r.yaml"), "--model", str(tiny_model_dir), f"source.path={documents}"]
    assert logodata([*command, "chunking.chunk_tokens=48", "contexts.num_chunks=4", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "api_key_env" in said.err
    assert written not in said.out + said.err


def test_the_hub_that_repeats_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name in ("README.md", "stats.json", "data/train-00000-of-00001.parquet"):
        (folder / name).write_text("{}\n")
    write_manifest(folder)

    class Api:
        endpoint = "https://hub"

        def create_repo(self, *_: object, **__: Any) -> None:
            response = httpx.Response(403, request=httpx.Request("POST", "https://hub/x"))
            raise HfHubHTTPError("no", response=response, server_message=f"Bearer {KEY} may not")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: KEY)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert logodata(["push", str(folder), "org/name"]) == 2
    said = capsys.readouterr().err
    assert "the hub refuses: Bearer *** may not" in said
    assert KEY not in said
