"""An OpenAI-compatible server on a loopback connection that misbehaves as told, and documents for builds with it."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from logodata.models.loading import load_tokenizer

STOP = 2
KEY = "sekret"
BAD = f"bad key {KEY}\nsecond line"

HTTP_FAULTS: dict[str, tuple[int, dict[str, str]]] = {
    **{str(status): (status, {}) for status in (301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503)},
    "429 soon": (429, {"Retry-After": "0.02"}),
    "429 on a date": (429, {"Retry-After": "Fri, 01 Jan 2016 00:00:00 GMT"}),
    "429 nonsense": (429, {"Retry-After": "\xb2 minutes"}),
    "503 soon": (503, {"Retry-After": "0.02"}),
}
BODIES: dict[str, bytes] = {
    "half JSON": b'{"choices": [{"text',
    "HTML": f"<html>\n<title>502 {KEY}</title>".encode(),
    "nothing": b"",
    "not UTF-8": b'{"choices": "\xff\xfe"}',
    "deep JSON": b"[" * 100_000,
    "an error": json.dumps({"error": {"message": f"no {KEY}"}}).encode(),
    "a list": b"[]",
    "null": b"null",
    "no choices": b'{"choices": []}',
    "choices null": b'{"choices": null}',
    "choice null": b'{"choices": [null]}',
}
CHOICES: dict[str, dict[str, Any]] = {
    "text only": {"token_ids": ...},
    "ids null": {"token_ids": None},
    "ids a string": {"token_ids": "4 5"},
    "string ids": {"token_ids": ["4", STOP]},
    "negative ids": {"token_ids": [-1, STOP]},
    "fractional ids": {"token_ids": [4.0, STOP]},
    "null ids": {"token_ids": [None, STOP]},
    "true ids": {"token_ids": [True, STOP]},
    "too many ids": {"token_ids": [4] * 9 + [STOP]},
    "cut by the server": {"token_ids": [4, 5], "finish_reason": "length"},
    "no stop": {"token_ids": [4, 5]},
    "no ids at all": {"token_ids": []},
    "content filter": {"finish_reason": "content_filter"},
    "no reason": {"finish_reason": None},
    "reason a list": {"finish_reason": ["stop"]},
    "abort": {"finish_reason": "abort"},
}


class StubServer:
    """Completes a prompt with its last token + 1 and the stop token; ``script`` spoils the next answers, one each, and
    ``always`` the others. ``dies_after`` so many good answers it hangs up on everybody and refuses connections.
    """

    def __init__(self, port: int = 0) -> None:
        self.script: list[str] = []
        self.always = "good"
        self.models = "good"
        self.dies_after: int | None = None
        self.delay_s = 0.0
        self.gate = threading.Event()  # "held" answers wait for it
        self.cards: list[dict[str, Any]] = [{"id": "m", "owned_by": "test", "max_model_len": 50}]
        self.bodies: list[dict[str, Any]] = []
        self.answered: Counter[tuple[int, ...]] = Counter()
        self.keys: set[str | None] = set()
        self.answer: Callable[[list[int]], list[int]] = lambda prompt: [prompt[-1] + 1, STOP]
        self._lock = threading.Lock()
        self._is_dead = False
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                stub.keys.add(self.headers.get("Authorization"))
                found = {"/v1/models": {"data": stub.cards}, "/version": {"version": "9.9"}}.get(self.path)
                stub.reply(self, stub.models, json.dumps(found).encode())

            def do_POST(self) -> None:
                stub.keys.add(self.headers.get("Authorization"))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    if stub.dies_after is not None and stub.answered.total() >= stub.dies_after:
                        stub.die()
                    stub.bodies.append(body)
                    fault = stub.script.pop(0) if stub.script else stub.always
                    if stub._is_dead:
                        fault = "reset"
                    if fault == "good":
                        stub.answered[tuple(body["prompt"])] += 1
                time.sleep(stub.delay_s)
                if fault == "held":
                    stub.gate.wait(30)
                choice = {"text": "x", "finish_reason": "stop", "token_ids": stub.answer(body["prompt"])}
                choice |= CHOICES.get(fault, {})
                choices = [{name: value for name, value in choice.items() if value is not ...}]
                choices *= 2 if fault == "two choices" else 1
                stub.reply(self, fault, json.dumps({"choices": choices}).encode())

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # by default 5, and the sixth would be told to come back in a second

            def handle_error(self, *_: object) -> None:
                """A client that went away is none."""

        self._http = Listener(("127.0.0.1", port), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def reply(self, handler: BaseHTTPRequestHandler, fault: str, good: bytes) -> None:
        """Send ``good``, spoilt by ``fault``."""
        status, headers = HTTP_FAULTS.get(fault, (200, {}))
        body = BAD.encode() if status != 200 else BODIES.get(fault, good)
        length = len(body)
        if fault == "reset":
            self._reset(handler)
        if fault in ("hang up", "reset"):
            return
        if fault in ("half the body", "reset halfway"):
            body = body[: length // 2]
        if fault == "broken gzip":
            headers, body = {"Content-Encoding": "gzip"}, b"no gzip"
            length = len(body)
        handler.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        if fault == "reset halfway":
            self._reset(handler)

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        """End the connection with RST, not FIN."""
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(handler.connection.detach())

    def die(self) -> None:
        """Refuse connections, and hang up on who is connected."""
        if not self._is_dead:
            self._is_dead = True
            self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def free_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


FACTS = {"harbour": "seven lanterns", "tower": "a brass owl", "mill": "green millet", "weir": "an iron bell"}


def write_documents(folder: Path) -> Path:
    rows = []
    for place, thing in FACTS.items():
        days = [f"On day {n} nothing was written down but wind and weather of kind {n * 7}. " for n in range(30)]
        days.insert(12, f"The {place} of Vell holds {thing}. ")
        question = {"question": f"What does the {place} of Vell hold?", "answers": [thing]}
        rows.append({"doc_id": place, "context": "".join(days), "questions": [question]})
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_answer(model_dir: Path) -> Callable[[list[int]], list[int]]:
    """The first prompt about a question is the preferred response's and gets the right answer, also when it is sent
    again; the others get wrong ones."""
    tokenizer = load_tokenizer(str(model_dir))
    preferred: dict[str, list[int]] = {}

    def answer(prompt: list[int]) -> list[int]:
        text = tokenizer.decode(prompt)
        place = next(place for place in FACTS if f"What does the {place} of Vell hold?" in text)
        is_preferred = preferred.setdefault(place, prompt) == prompt
        said = f"It holds {FACTS[place]}." if is_preferred else f"It holds sand of kind {len(text)}."
        return [*tokenizer.encode(said, add_special_tokens=False), STOP]

    return answer
