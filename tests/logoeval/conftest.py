"""A fake engine, a small data set of held-out pairs, and results made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from logodata.common.files import write_json
from logodata.contract import ContextChunk, DecisionRow, PreferenceSample, QuestionOutcome, RejectedQuestion, Response
from logodata.dataset.samples import write_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.facts import tokenizer_fingerprint
from logodata.prompts import encode_text
from logoeval.intervals import summarise
from logoeval.records import Metric, Provenance, Results, SampleRow, TaskResult, write_results
from tests.data_sets import new_statistics, recipe_json, write_manifest

RESPONSES = [
    "It was in the old mill.",
    "The text does not say.",
    "A bridge",
    "Nobody knows, but the miller saw <b>it</b>.",
]


class FakeEngine:
    """Answers by a function of the prompt, in reverse order; interrupted after ``limit`` answers."""

    name = "fake 1"

    def __init__(self, answer: Callable[[GenerationRequest], GenerationResult], limit: int | None = None) -> None:
        self.answer, self.limit, self.answered = answer, limit, 0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in reversed(requests):
            if self.answered == self.limit:
                raise KeyboardInterrupt
            self.answered += 1
            yield self.answer(request)


@pytest.fixture(scope="session")
def fake_answer(tiny_tokenizer: Any) -> Callable[[GenerationRequest], GenerationResult]:
    def answer(request: GenerationRequest) -> GenerationResult:
        text = RESPONSES[sum(request.prompt_ids) % len(RESPONSES)]
        return GenerationResult(
            request.id, tuple(encode_text(tiny_tokenizer, text)), "stop" if "." in text else "length"
        )

    return answer


def write_build(folder: Path, tokenizer: Any, *, count: int = 6, text: str = "The bridge stood in the mill. ") -> Path:
    """Write a data set of ``count`` samples, two questions a document; documents are named after the folder."""
    name = folder.name

    def response(strategy: str, words: str, ended: bool) -> Response:
        ids = encode_text(tokenizer, words) + ([2] if ended else [])
        return Response(strategy=strategy, text=words, token_ids=ids, ended=ended, word_share=1.0, token_f1=0.5)

    samples = []
    for number in range(count):
        body = encode_text(tokenizer, f"{text}Number {number}.")
        half = 1 + len(body) // 2
        chunks = [
            ContextChunk(
                doc_id=f"{name}-doc-{number // 2}",
                index=index,
                start=0,
                end=len(text),
                token_start=start,
                token_end=end,
                score=2.0 - index,
                critical=index == 0,
                text=text,
            )
            for index, (start, end) in enumerate([(1, half), (half, 1 + len(body))])
        ]
        samples.append(
            PreferenceSample(
                id=f"q{number}",
                doc_id=f"{name}-doc-{number // 2}",
                question_id=f"q{number}",
                kind="single_detail",
                question="Where was <em>it</em>?",
                answers=["the bridge"],
                prompt_ids=[1, *body, 2],
                chunks=chunks,
                chosen=response("guided", f"It was bridge {number}.", True),
                rejected=[
                    response("irrelevant", "The text does not say", False),
                    response("mixed-0.5", "A <i>mill</i>.", True),
                ],
                answer_in_critical=True,
            )
        )
    (folder / "data").mkdir(parents=True)
    write_samples(folder / "data" / "train-00000-of-00001.parquet", samples)
    statistics = new_statistics()
    for sample in samples:
        row = {"id": sample.id, "source": "stories.jsonl", "role": "preferred", "rule": None, "kept": True}
        row |= {**sample.chosen.model_dump(exclude={"token_ids"}), "verdict": "right"}
        row |= {"model_verdict": None, "second_model_verdict": None}
        statistics.add(QuestionOutcome(id=sample.id, decisions=[DecisionRow(**row)], sample=sample))
    lost = {"id": "lost", "doc_id": "d", "where": "stories.jsonl:1", "source": "stories.jsonl", "question": "Where?"}
    lost |= {"kind": "other", "reason": "preferred_wrong", "stage": "judge"}
    statistics.add(QuestionOutcome(id="lost", decisions=[], rejected=RejectedQuestion(**lost)))
    write_json(folder / "stats.json", statistics.result().to_json())
    write_manifest(
        folder,
        model="tiny",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        source={"path": "stories.jsonl", "sha256": "123"},
        recipe=recipe_json(generation={"preferred": "guided"}),
    )
    return folder


@pytest.fixture
def make_build(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """:func:`write_build` into a folder of the test."""
    return lambda name="heldout", **changes: write_build(tmp_path / name, tiny_tokenizer, **changes)


METRIC = Metric(key="score", label="Score", explanation="How good it is.", kind="share", better="higher")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of results of one made-up niah-like task; keywords change what ``compare`` looks at."""

    def make(name: str, scores: Sequence[float], **changes: Any) -> Path:
        samples = [
            SampleRow(
                id=f"s{number}",
                cluster=f"s{number}",
                prompt_hash=changes.get("prompt_hash", "h"),
                scores={"score": score},
            )
            for number, score in enumerate(scores)
        ]
        provenance = Provenance(
            logo_align="0",
            python="3",
            torch="2",
            transformers="5",
            engine=changes.get("engine", "fake 1"),
            device="cpu",
            model="tiny",
            model_fingerprint="abc",
            adapter=changes.get("adapter"),
            adapter_fingerprint=changes.get("adapter"),
            tokenizer_fingerprint=changes.get("tokenizer", "t"),
            date="2026-11-23T00:00:00+00:00",
            seconds=1.0,
        )
        result = TaskResult(
            task=changes.get("task", "ppl"),
            settings={"seed": changes.get("seed", 0)},
            provenance=provenance,
            metrics=[METRIC],
            summary=summarise([METRIC], samples),
            samples=samples,
        )
        folder = tmp_path / name
        folder.mkdir()
        write_results(folder, Results(tasks={result.task: result}))
        return folder

    return make
