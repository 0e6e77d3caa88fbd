"""An engine behind a log is asked for what is missing only, is opened only then, and loses no response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from logodata.common.console import Tracker
from logodata.engines import GenerationRequest, GenerationResult, Sampling
from logodata.engines.response_log import CachedEngine, ResponseLog

REQUESTS = [GenerationRequest(f"r{number}", (number, 1), Sampling(4, (0,))) for number in range(4)]


class Engine:
    name = "scripted 1"

    def __init__(self, fails_after: int = 100) -> None:
        self.asked: list[str] = []
        self._fails_after = fails_after

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            if len(self.asked) == self._fails_after:
                raise KeyboardInterrupt
            self.asked.append(request.id)
            yield GenerationResult(request.id, (*request.prompt_ids, 7), "stop")


def engine_behind(path: Path | None, engine: Engine | None) -> CachedEngine:
    """``engine`` None: opening one is an error."""

    def opener() -> Engine:
        assert engine is not None
        return engine

    return CachedEngine(ResponseLog(path, "model"), opener)


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    path, tracker = tmp_path / "responses.jsonl", Tracker("", 1)
    first = Engine(fails_after=2)
    interrupted = engine_behind(path, first)
    with pytest.raises(KeyboardInterrupt):
        interrupted.generate(REQUESTS, tracker, "replies")
    assert interrupted.name == "scripted 1"
    assert tracker.figures["replies"].startswith("2 at ")

    rest = Engine()
    continued = engine_behind(path, rest)
    continued.generate(REQUESTS, tracker, "replies")
    assert first.asked + rest.asked == [request.id for request in REQUESTS]
    assert [continued.answer(request)[0].token_ids for request in REQUESTS] == [(n, 1, 7) for n in range(4)]

    finished = engine_behind(path, None)
    finished.generate(REQUESTS, tracker, "replies")
    assert finished.name is None
    assert finished.answer(REQUESTS[3]) == continued.answer(REQUESTS[3])


def test_an_engine_that_was_opened_for_others_generated_nothing() -> None:
    engine = engine_behind(None, Engine())
    assert engine.open() is engine.open()
    assert engine.name is None


def test_what_is_in_memory_only_can_be_forgotten() -> None:
    engine = engine_behind(None, Engine())
    engine.generate(REQUESTS[:1], Tracker("", 1), "replies")
    assert engine.answer(REQUESTS[0])[1] == "live"
    engine.forget()
    with pytest.raises(RuntimeError, match="no response to request r0"):
        engine.answer(REQUESTS[0])
