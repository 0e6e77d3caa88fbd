"""A scripted model that writes questions, for the tests of ``logodata questions``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import logodata.judge.asked_judge
import logodata.questions.writer
from logodata.cli import main
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer

TEXT = " ".join(
    f"On day {n} the keeper Ruth Amsel carried {n * 3} lanterns up to the tower, while the miller of Vell slept. "
    for n in range(1, 25)
)
SMALL = ["chunking.chunk_tokens=128", "max_new_tokens=64", "questions_per_document=4"]


def good_reply(number: int) -> str:
    return f"Question: What lanterns were carried by keeper {number}?\nAnswer: Lanterns were carried up to the tower."


class ScriptedWriter:
    """Writes ``replies`` by the id of the request, else a good question, with ``evidence`` where chunks are numbered.
    It cannot answer any question, and grades each with 7.5."""

    name = "scripted 1"

    def __init__(
        self, model_dir: Path, replies: dict[str, str], fails_after: int | None = None, evidence: str = "1, 3"
    ) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))
        self._replies, self._fails_after, self._evidence = replies, fails_after, evidence
        self.asked: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            if self._fails_after is not None and len(self.asked) >= self._fails_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            reply = self._replies.get(request.id) or self._usual(request)
            ids = self._tokenizer.encode(reply, add_special_tokens=False)
            yield GenerationResult(request.id, tuple(ids), "length" if reply.endswith("and so on") else "stop")

    def prompt(self, request_id: str) -> str:
        """The text of the prompt that was asked under this id."""
        [request] = [request for request in self.asked if request.id == request_id]
        return str(self._tokenizer.decode(request.prompt_ids))

    def _usual(self, request: GenerationRequest) -> str:
        draft, _, check = request.id.partition("/")
        if check:
            return "Score: 7.5" if check == "grade" else "I cannot know."
        is_numbered = "Chunk 1:" in self._tokenizer.decode(request.prompt_ids)
        return good_reply(int(draft[-2:])) + (f"\nEvidence: {self._evidence}" if is_numbered else "")


def topics(members: Sequence[Sequence[int]], num: int, spread: float = 0.1) -> NDArray[np.float32]:
    """Unit vectors in which the rows of each group are near one another. Rows of no group are at right angles to all
    others."""
    rng = np.random.default_rng(3)
    vectors = np.eye(num, 64 + num, k=64)
    for axis, group in enumerate(members):
        vectors[list(group)] = np.eye(64 + num)[axis]
        vectors[list(group), :64] += spread * rng.normal(size=(len(group), 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class TopicEmbedder:
    """Embeds the chunks of a document by their places: every second one is about the same."""

    def __init__(self, *_: Any) -> None:
        self.calls.append("opened")

    calls: list[str] = []  # noqa: RUF012 of the class, and emptied by the fixture

    def encode_whole(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(texts[0])
        return topics([range(0, len(texts), 2), range(1, len(texts), 2)], len(texts))


def run(
    monkeypatch: pytest.MonkeyPatch, engine: ScriptedWriter, corpus: Path, output: Path, model: Path, *more: str
) -> int:
    for module in (logodata.questions.writer, logodata.judge.asked_judge):
        monkeypatch.setattr(module, "open_engine", lambda *_: engine)
    return main(["questions", str(corpus), "-o", str(output), "--model", str(model), *SMALL, *more])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
