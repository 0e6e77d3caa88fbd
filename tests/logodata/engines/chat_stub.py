"""A chat server of either shape on a loopback connection. It answers as told and keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def openai_answer(text: str | None = "Fine.", *, reason: str = "stop", **message: Any) -> dict[str, Any]:
    """An answer of ``/v1/chat/completions``, as OpenAI's API reference shows it."""
    said = {"role": "assistant", "content": text, "refusal": None, "annotations": [], **message}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reason}
    usage = {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**head, "choices": [choice], "usage": usage}


def anthropic_answer(*blocks: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    """An answer of ``/v1/messages``, as Anthropic's API reference shows it."""
    usage = {"input_tokens": 12, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 10}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    content = list(blocks or [{"type": "text", "text": "Fine."}])
    return {**head, "content": content, "stop_reason": reason, "stop_sequence": None, "usage": usage}


@dataclass
class ChatStub:
    """``script`` holds the next answers, one each: a JSON value, or a status with a text. ``answer`` gives the others
    for a message."""

    url: str = ""
    answer: Callable[[str], Any] = lambda _: openai_answer()
    script: list[Any] = field(default_factory=list)
    sent: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    models: int = 200


@contextmanager
def chat_stub() -> Iterator[ChatStub]:
    """Run a server."""
    stub = ChatStub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(stub.models, {"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.sent.append((self.path, body, dict(self.headers)))
            said = stub.script.pop(0) if stub.script else stub.answer(body["messages"][0]["content"])
            self._send(*(said if isinstance(said, tuple) else (200, said)))

        def _send(self, status: int, value: Any) -> None:
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
