"""Builds that generate nothing: questions with their contexts, which are asked and not trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import logodata.build.responses
import logoeval.cli
import logotrain.cli
from logodata.cli import main
from logodata.dataset.files import read_stats
from logodata.dataset.samples import read_build_manifest, read_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer
from tests.conftest import CHATML
from tests.logodata.build.test_build import FACTS, SMALL, ScriptedEngine, run_build, write_documents


@pytest.fixture
def questions(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that would fail if it opened an engine."""
    with monkeypatch.context() as patch:
        patch.setattr(logodata.build.responses, "open_engine", lambda *_: pytest.fail("nothing is generated"))
        assert run_build(write_documents(tmp_path), tiny_model_dir, tmp_path / "asked", "--questions-only") == 0
    return tmp_path / "asked"


def test_every_question_is_kept_with_its_context_and_its_reference(questions: Path, tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model_dir))
    samples = read_samples(questions)
    assert [sample.id for sample in samples] == [f"{place}-01" for place in FACTS]
    for sample, thing in zip(samples, FACTS.values(), strict=True):
        assert sample.rejected == []
        assert (sample.chosen.text, sample.chosen.strategy, sample.answers) == (thing, "reference", [thing])
        assert sample.question in tokenizer.decode(sample.prompt_ids)
        assert len(sample.chunks) == 4
    stats = read_stats(questions)
    assert (stats.kept, stats.dispreferred_per_sample, stats.dispreferred_tokens) == (3, 0, None)
    assert read_build_manifest(questions, "engine").engine == "none: nothing was generated"
    card = (questions / "README.md").read_text(encoding="utf-8")
    assert "A row is one prompt with a preferred response and no other." in card
    assert "Error patterns" not in card


def test_the_prompts_are_those_of_a_build_that_generates(
    questions: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(tiny_model_dir)
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: engine)
    assert run_build(tmp_path / "my.jsonl", tiny_model_dir, tmp_path / "pairs") == 0
    assert engine.asked
    assert [sample.prompt_ids for sample in read_samples(questions)] == [
        sample.prompt_ids for sample in read_samples(tmp_path / "pairs")
    ]


def test_questions_with_poor_answers_are_kept_too(
    questions: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the judge, a build still drops pairs of equal and of empty answers."""
    ids = tuple(load_tokenizer(str(tiny_model_dir)).encode("It is sand.", add_special_tokens=False))

    class Monotonous(ScriptedEngine):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
            return (GenerationResult(request.id, ids, "stop") for request in requests)

    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: Monotonous(tiny_model_dir))
    assert run_build(tmp_path / "my.jsonl", tiny_model_dir, tmp_path / "unjudged", "judge.enabled=false") == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "unjudged" / "rejected.jsonl").open()]
    assert reasons == ["identical_responses"] * 3
    assert len(read_samples(questions)) == 3


@pytest.mark.parametrize(
    "settings",
    [
        "  generation: {preferred: best_versus_worst, num_candidates: 10}\n  judge: {grades: {}}",
        "  solve: {tries: 2, keep: [1, 1]}",
        "  generation: {preferred: best_of_n, num_candidates: 2, rejected: critical_wrong}",
    ],
)
def test_a_recipe_that_says_how_pairs_are_made_gives_questions_too(
    tmp_path: Path, tiny_model_dir: Path, settings: str
) -> None:
    source = f"  source: {{path: {write_documents(tmp_path)}}}"
    (tmp_path / "my.yaml").write_text(f"model: {tiny_model_dir}\nbuild:\n{source}\n{settings}\n")
    build = ["build", str(tmp_path / "my.yaml"), *SMALL, "--questions-only", "-o", str(tmp_path / "out")]
    assert main(build) == 0
    assert [sample.rejected for sample in read_samples(tmp_path / "out")] == [[], [], []]


def test_the_preview_says_that_nothing_is_generated(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = write_documents(tmp_path)
    line = ["preview", str(documents), *SMALL, "--model", str(tiny_model_dir), "--questions-only"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "prompts        none: nothing is generated" in said
    assert "cost" not in said


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (main, ["export", "DATA", "--format", "trl", "-o", "OUT/pairs.jsonl"]),
        (main, ["export", "DATA", "--format", "openrlhf", "-o", "OUT/pairs.jsonl"]),
        (main, ["stats", "DATA", "--log-probs"]),
        (logotrain.cli.main, ["run", "--model", "MODEL", "--data", "DATA", "-o", "OUT/run"]),
        (logoeval.cli.main, ["pairs", "--model", "MODEL", "--data", "DATA", "-o", "OUT/eval"]),
    ],
)
def test_what_needs_pairs_says_that_there_are_none(
    questions: Path,
    tmp_path: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    program: Callable[[list[str]], int],
    words: list[str],
) -> None:
    places = {"DATA": str(questions), "OUT": str(tmp_path), "MODEL": str(tiny_model_dir)}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert program(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: {questions}: sample \w+-01 has no dis-preferred response \(", last)


def test_they_are_asked_and_can_be_trained_on_without_a_preference(
    questions: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    given = ["--model", str(tiny_model_dir), "--data", str(questions)]
    assert logoeval.cli.main(["qa", *given, "qa.max_new_tokens=4", "-o", str(tmp_path / "eval")]) == 0
    answers = (tmp_path / "eval" / "predictions" / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 3
    sft = ["objective.name=sft", "max_steps=1", "samples_per_step=3", "collapse.num_prompts=0"]
    assert logotrain.cli.main(["run", *given, *sft, "-o", str(tmp_path / "run")]) == 0
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] > 0
    assert "rejected_ended" not in line


def test_base_cannot_write_responses_that_nobody_asks_for(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["generation.rejected=none", "generation.rejected_by=base"]
    assert run_build(write_documents(tmp_path), tiny_model_dir, tmp_path / "out", *overrides) == 2
    assert "rejected_by='base' has no meaning for rejected='none': leave it out" in capsys.readouterr().err


def test_a_template_that_opens_the_reasoning_may_be_asked(tmp_path: Path, tiny_model_dir: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}"))
    thinking = [f"chat_template={template}", "thinking_end=</think>", "thinking_tokens=8"]
    documents = write_documents(tmp_path)
    assert run_build(documents, tiny_model_dir, tmp_path / "asked", "--questions-only", *thinking) == 0
    assert len(read_samples(tmp_path / "asked")) == 3
    judged = ["generation.preferred=reference", *thinking]
    assert run_build(documents, tiny_model_dir, tmp_path / "pairs", *judged) == 2


def test_long_references_load_no_embeddings(tmp_path: Path, tiny_model_dir: Path) -> None:
    words = " ".join(f"word{number}" for number in range(30))
    documents = tmp_path / "long.jsonl"
    documents.write_text(write_documents(tmp_path).read_text().replace("seven lanterns", words))
    settings = ["--questions-only", "judge.embedding_model=org/nowhere"]
    assert run_build(documents, tiny_model_dir, tmp_path / "asked", *settings) == 0


def test_rounds_are_not_trained_on_questions(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = ["rounds", "embedded", "-o", str(tmp_path / "rounds"), "--held-out"]
    for words, said in (
        (["embedded:eval", "build.generation.rejected=none"], "rounds are trained on pairs"),
        ([str(questions)], "has no dis-preferred response"),
    ):
        assert logoeval.cli.main([*rounds, *words]) == 2
        assert said in capsys.readouterr().err
