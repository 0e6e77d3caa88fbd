"""What the benchmarks of ``logodata build`` generate with: a stub server, a vLLM server, and vLLM in three ways.

Run as a program by the Python that has vLLM, it times :func:`time_ways` (``build.py`` does) or :func:`time_orders`
(``eval.py`` does).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, Sampling

SERVER_START_S = 420  # 45 s on an idle machine, two minutes and more on a busy one
STUB_TOKENS = 16
WAYS = {
    "ours": "one submission, sorted, prefix cache",
    "one_by_one_sorted_cached": "one request at a time, sorted, prefix cache",
    "two_at_a_time": "two requests at a time, random order, prefix cache emptied before each two",
    "one_by_one": "one request at a time, random order, prefix cache emptied before each",
}


class _Stub(BaseHTTPRequestHandler):
    """Answers with 16 tokens out of the prompt's middle, which are text of a document, and the stop token."""

    protocol_version = "HTTP/1.1"  # connections stay open, as with a real server
    model = ""
    answer_s = 0.0

    def do_GET(self) -> None:
        self._answer({"data": [{"id": self.model, "owned_by": "stub"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.answer_s)
        middle = len(body["prompt"]) // 2
        ids = [*body["prompt"][middle : middle + STUB_TOKENS], body["stop_token_ids"][0]]
        self._answer({"choices": [{"token_ids": ids, "finish_reason": "stop"}]})

    def _answer(self, value: Any) -> None:
        payload = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections opened at once; beyond the default of 5 a client waits for seconds
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none."""


@contextlib.contextmanager
def stub_server(model: str, answer_s: float = 0.0) -> Iterator[str]:
    """Base URL of a server on the loopback that serves ``model`` without having it, each answer after so many
    seconds."""
    handler = type("Stub", (_Stub,), {"model": model, "answer_s": answer_s, "disable_nagle_algorithm": True})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def vllm_server(python: str, model: str, log: Path) -> Iterator[str]:
    """Base URL of :func:`start_vllm`'s server."""
    server, url = start_vllm(python, model, log)
    try:
        yield url
    finally:
        end_group(server)


def start_vllm(python: str, model: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A vLLM server with the model's folder, float32, prefix cache, on a free port of the loopback, and its base URL.

    Args:
        python: an interpreter that has vLLM.
        model: folder.
        log: what the server prints goes to its end.

    Raises:
        UserError: it ends or is not ready after seven minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The `vllm` command of the CPU build fails; the module works.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--enable-prefix-caching"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
    }
    with open(log, "ab") as out:
        # A group of its own: the server's workers must go with it, and an interrupt of ours must not reach it first.
        server = subprocess.Popen(
            command, env={**environment, **os.environ}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + SERVER_START_S
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                state = "is not ready" if server.poll() is None else f"ended with {server.returncode}"
                raise UserError(f"the vLLM server {state}", where=str(log), mend="see there")
            time.sleep(0.5)
    except BaseException:
        end_group(server)
        raise
    return server, f"http://127.0.0.1:{port}/v1"


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children: asked first, then killed."""
    for way, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)


def requests_to_json(requests: Sequence[GenerationRequest]) -> list[dict[str, Any]]:
    """Greedy requests as JSON."""
    return [
        {
            "id": request.id,
            "prompt_ids": request.prompt_ids,
            "max_new_tokens": request.sampling.max_new_tokens,
            "stop_ids": request.sampling.stop_ids,
        }
        for request in requests
    ]


def _requests_from_json(rows: Sequence[dict[str, Any]]) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            row["id"], tuple(row["prompt_ids"]), Sampling(row["max_new_tokens"], tuple(row["stop_ids"]), 0.0)
        )
        for row in rows
    ]


def _count_cached(engine: Any) -> list[int]:
    """A list of one number, to which vLLM's prompt tokens from the prefix cache are added as requests finish."""
    core = engine._llm.llm_engine  # the benchmark's, not the project's business
    step, cached = core.step, [0]

    def counting() -> Any:
        outputs = step()
        cached[0] += sum(output.num_cached_tokens or 0 for output in outputs if output.finished)
        return outputs

    core.step = counting
    return cached


def time_orders(model: str, requests: Sequence[GenerationRequest], rounds: int) -> dict[str, Any]:
    """Seconds, cached prompt tokens and token ids of one submission in the order of the prompts' tokens, and in the
    order given, in one vLLM engine. They take turns; the prefix cache is emptied before each."""
    from logodata.engines import vllm_engine
    from logodata.engines.settings import EngineSettings

    engine = vllm_engine.VllmEngine(model, EngineSettings())
    cached = _count_cached(engine)
    orders = {"sorted": vllm_engine.cache_order, "random": list}
    list(engine.generate(requests[:2]))  # what is loaded on first use
    found: dict[str, Any] = {way: {"seconds": [], "cached_tokens": [], "token_ids": {}} for way in orders}
    for number in range(rounds):
        for way in list(orders)[:: -1 if number % 2 else 1]:
            vllm_engine.cache_order = orders[way]  # type: ignore[assignment]
            if not engine._llm.reset_prefix_cache():
                raise RuntimeError("vLLM did not empty its prefix cache")
            cached[0], started = 0, time.perf_counter()
            tokens = {result.id: list(result.token_ids) for result in engine.generate(requests)}
            found[way]["seconds"].append(time.perf_counter() - started)
            found[way]["cached_tokens"].append(cached[0])
            found[way]["token_ids"] |= tokens
            said = f"{found[way]['seconds'][-1]:.1f} s, {cached[0]} prompt tokens cached"
            print(f"round {number + 1}/{rounds}, {way}: {said}", file=sys.stderr, flush=True)
    name = engine.name
    engine.close()
    return {"engine": name, "ways": found}


def time_ways(model: str, documents: Sequence[Sequence[GenerationRequest]]) -> dict[str, Any]:
    """Each way's seconds, cached prompt tokens and token ids for each document's requests, in one vLLM engine.

    The ways take turns within a document, and each document begins with another one. The prefix cache is emptied
    before every way, so that none profits from the one before.
    """
    import torch

    from logodata.engines.settings import EngineSettings
    from logodata.engines.vllm_engine import VllmEngine

    engine = VllmEngine(model, EngineSettings())
    cached = _count_cached(engine)

    def run(way: str, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
        ordered = sorted(requests, key=lambda request: request.prompt_ids)
        if way == "ours":
            batches, emptied = [ordered], False
        elif way == "one_by_one_sorted_cached":
            batches, emptied = [[request] for request in ordered], False
        else:
            random.Random(0).shuffle(ordered)
            size = 2 if way == "two_at_a_time" else 1
            batches, emptied = [ordered[i : i + size] for i in range(0, len(ordered), size)], True
        tokens: dict[str, list[int]] = {}
        for number, batch in enumerate(batches):
            if (emptied or not number) and not engine._llm.reset_prefix_cache():
                raise RuntimeError("vLLM did not empty its prefix cache")
            tokens |= {result.id: list(result.token_ids) for result in engine.generate(batch)}
        return tokens

    run("ours", documents[0][:2])  # what is loaded on first use
    found: dict[str, Any] = {way: {"seconds": [], "cached_tokens": [], "token_ids": {}} for way in WAYS}
    for number, requests in enumerate(documents):
        names = list(WAYS)
        turn = number % len(names)
        for way in names[turn:] + names[:turn]:
            cached[0], started = 0, time.perf_counter()
            tokens = run(way, requests)
            found[way]["seconds"].append(time.perf_counter() - started)
            found[way]["cached_tokens"].append(cached[0])
            found[way]["token_ids"] |= tokens
            said = f"{found[way]['seconds'][-1]:.1f} s, {cached[0]} prompt tokens cached"
            print(f"document {number + 1}/{len(documents)}, {way}: {said}", file=sys.stderr, flush=True)
    name = engine.name
    engine.close()
    return {"engine": name, "threads": torch.get_num_threads(), "ways": found}


def main() -> None:
    """``serving.py ways MODEL REQUESTS.json RESULT.json`` or ``serving.py orders ROUNDS MODEL ...``."""
    part, *rounds, model, source, target = sys.argv[1:]
    rows = json.loads(Path(source).read_text())
    if part == "ways":
        result = time_ways(model, [_requests_from_json(requests) for requests in rows])
    else:
        result = time_orders(model, _requests_from_json(rows), int(rounds[0]))
    Path(target).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
