"""Answers that are sampled: which questions they keep, and which of them are dis-preferred."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import logodata.build.responses
import logodata.judge.asked_judge
from logodata.cli import main
from logodata.contract import SolveStats
from logodata.dataset.files import read_stats
from logodata.dataset.samples import read_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.judge.grader import Grader
from logodata.models.loading import load_tokenizer

RIGHT = {"harbour": 0, "tower": 1, "mill": 2, "well": 3, "gate": 4}
"""How many of four tries are right."""


class Engine:
    """Answers a question about a place as often right as :data:`RIGHT` says, and from irrelevant chunks wrong."""

    name = "scripted 1"

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))
        self.asked: list[str] = []
        self.prompts: dict[str, tuple[int, ...]] = {}

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            self.asked.append(request.id)
            self.prompts[request.id] = request.prompt_ids
            place, last = request.id.split("/")[0][:-3], request.id.rpartition("/")[2]
            if last.endswith("verdict"):
                # The judge takes back the last try, and nothing else.
                prompt = self._tokenizer.decode(list(request.prompt_ids))
                text = "Verdict: wrong" if "sand" in prompt or "try 3" in prompt else "Verdict: correct"
            elif last == "training":
                text = "It holds no sand." if RIGHT[place] < 4 else f"The thing{place} again."
            elif last.startswith("best_of_n"):
                n = int(last.rpartition("-")[2])
                text = f"The thing{place} of {n}." if n != 4 - RIGHT[place] else f"It holds sand {n}."
            elif last.startswith("training"):
                assert request.sampling.temperature > 0
                n = int(last.rpartition("-")[2])
                text = f"The thing{place}, says try {n}." if n >= 4 - RIGHT[place] else f"It holds sand {n}."
            else:
                text = f"The thing{place} is there." if last.startswith("model") else f"It holds {last} sand."
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
            yield GenerationResult(request.id, ids, "stop")


@pytest.fixture
def build(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    weather = [f"On day {day} nothing was written down but wind of kind {day * 7}. " for day in range(30)]
    rows = []
    for place in RIGHT:
        text = "".join([*weather[:12], f"The {place} of Vell holds thing{place}. ", *weather[12:]])
        question = {"question": f"What does the {place} of Vell hold?", "answers": [f"thing{place}"]}
        rows.append({"doc_id": place, "context": text, "questions": [question]})
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(output: Path, *arguments: str, code: int = 0) -> Engine:
        engine = Engine(tiny_model_dir)
        for module in (logodata.build.responses, logodata.judge.asked_judge):
            monkeypatch.setattr(module, "open_engine", lambda *_: engine)
        settings = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
        settings += ["contexts.critical_top=2", "generation.max_new_tokens=16", *arguments]
        assert main(["build", str(file), *settings, "--model", str(tiny_model_dir), "-o", str(output)]) == code
        return engine

    return run


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_questions_outside_the_band_are_not_asked(build: Callable[..., Engine], tmp_path: Path) -> None:
    engine = build(tmp_path / "out", "solve.tries=4", "solve.keep=[1, 3]")
    samples = read_samples(tmp_path / "out")
    assert [sample.doc_id for sample in samples] == ["tower", "mill", "well"]
    reasons = {row["doc_id"]: row["reason"] for row in rows(tmp_path / "out", "rejected.jsonl")}
    assert reasons == {"harbour": "solved_too_rarely", "gate": "solved_too_often"}
    # Of the others only the tries were asked, from the context that a sample is trained on.
    asked = [request for request in engine.asked if request.startswith("gate")]
    assert asked == [f"gate-01/training-{n}" for n in range(4)]
    for sample in samples:
        assert engine.prompts[f"{sample.id}/training-0"] == tuple(sample.prompt_ids)
    stats = read_stats(tmp_path / "out")
    assert stats.solve == SolveStats(tries=4, histogram=[1, 1, 1, 1, 1])
    # Tries are written, each with its verdict, and count for nothing else.
    decisions = rows(tmp_path / "out", "decisions.jsonl")
    tries = [row for row in decisions if row["role"] == "try"]
    counts = {place: sum(row["verdict"] == "right" for row in tries if row["id"] == f"{place}-01") for place in RIGHT}
    assert counts == RIGHT
    assert (stats.purity, stats.preferred_judged["right"], len(decisions) - len(tries)) == (1, 3, 3 + 3 * 2)
    assert "right 1 to 3 times of 4" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_kept_is_what_a_build_without_tries_keeps(build: Callable[..., Engine], tmp_path: Path) -> None:
    build(tmp_path / "all")
    build(tmp_path / "some", "solve.tries=4", "solve.keep=[2, 4]")
    everything = {sample.id: sample for sample in read_samples(tmp_path / "all")}
    some = read_samples(tmp_path / "some")
    assert len(some) == 3
    assert all(everything[sample.id] == sample for sample in some)
    assert read_stats(tmp_path / "all").solve is None


def test_a_model_judge_has_the_last_word_on_a_try(build: Callable[..., Engine], tmp_path: Path) -> None:
    build(tmp_path / "out", "solve.tries=4", "solve.keep=[1, 3]", "judge.model.rejudge_share=0")
    # It takes back one right try of each question that has one.
    assert read_stats(tmp_path / "out").solve == SolveStats(tries=4, histogram=[2, 1, 1, 1, 0])
    assert [sample.doc_id for sample in read_samples(tmp_path / "out")] == ["mill", "well", "gate"]


def test_tries_are_the_answers_that_are_graded(
    build: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grader, "grade", lambda *_: None)  # nothing has a grade
    arguments = ["generation.preferred=best_versus_worst", "generation.num_candidates=6", "solve.tries=4"]
    engine = build(tmp_path / "out", *arguments, "solve.keep=[1, 3]", "judge.grades.least_graded=2", code=2)
    asked = [request for request in engine.asked if request.startswith("mill")]
    assert sorted(asked) == [f"mill-01/training-{n}" for n in range(6)]
    reasons = [row["reason"] for row in rows(tmp_path / "out", "rejected.jsonl")]
    assert reasons == ["solved_too_rarely", *["too_few_grades"] * 3, "solved_too_often"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["solve.keep=[3, 2]"], "keep=[3, 2] is no range of 0 to tries=8"),
        (["solve.tries=4", "solve.keep=[2, 5]"], "keep=[2, 5] is no range of 0 to tries=4"),
        (["solve.tries=4", "solve.keep=[1, 3]", "judge.enabled=false"], "it needs judge.enabled=true"),
    ],
)
def test_settings_that_mean_nothing(
    build: Callable[..., Engine],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    said: str,
) -> None:
    build(tmp_path / "out", *overrides, code=2)
    assert said in capsys.readouterr().err


def test_a_preview_counts_tries(
    build: Callable[..., Engine], tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
    arguments += ["contexts.critical_top=2", "solve.tries=4", "solve.keep=[1, 3]", "--model", str(tiny_model_dir)]
    assert main(["preview", str(tmp_path / "my.jsonl"), *arguments, "--json"]) == 0
    work = json.loads(capsys.readouterr().out)["work"]
    assert (work["try_prompts"], work["preferred_prompts"], work["dispreferred_prompts_at_most"]) == (20, 5, 10)
    assert main(["preview", str(tmp_path / "my.jsonl"), *arguments]) == 0
    assert "20 to see what is solved" in capsys.readouterr().out


def test_the_answer_to_the_whole_context_is_dispreferred(build: Callable[..., Engine], tmp_path: Path) -> None:
    engine = build(tmp_path / "out", "generation.rejected=training")
    samples = read_samples(tmp_path / "out")
    assert [sample.doc_id for sample in samples] == ["harbour", "tower", "mill", "well"]
    for sample in samples:
        assert [(it.strategy, it.text) for it in sample.rejected] == [("training", "It holds no sand.")]
        assert engine.prompts[f"{sample.id}/training"] == tuple(sample.prompt_ids)
        assert engine.prompts[f"{sample.id}/model-0"] != tuple(sample.prompt_ids)
    assert [row["reason"] for row in rows(tmp_path / "out", "rejected.jsonl")] == ["rejected_right"]
    assert "greedy answer from the whole context" in (tmp_path / "out" / "README.md").read_text()


def test_a_wrong_answer_to_the_critical_chunks_is_dispreferred(build: Callable[..., Engine], tmp_path: Path) -> None:
    arguments = ["generation.preferred=best_of_n", "generation.num_candidates=4", "generation.rejected=critical_wrong"]
    engine = build(tmp_path / "out", *arguments)
    found = {
        sample.doc_id: (sample.chosen.text, [it.text for it in sample.rejected])
        for sample in read_samples(tmp_path / "out")
    }
    assert found == {
        "tower": ("The thingtower of 0.", ["It holds sand 3."]),
        "mill": ("The thingmill of 0.", ["It holds sand 2."]),
        "well": ("The thingwell of 0.", ["It holds sand 1."]),
        "gate": ("The thinggate of 1.", ["It holds sand 0."]),
    }
    # All four candidates of the first are right.
    [row] = rows(tmp_path / "out", "rejected.jsonl")
    assert (row["doc_id"], row["reason"]) == ("harbour", "rejected_right")
    assert all("best_of_n" in request for request in engine.asked)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["generation.rejected=critical_wrong"], "takes a wrong candidate of preferred='best_of_n'"),
        (
            [
                *("generation.rejected=critical_wrong", "generation.preferred=best_of_n"),
                *("generation.num_candidates=4", "judge.enabled=false"),
            ],
            "it needs judge.enabled=true",
        ),
        (
            ["generation.rejected=training", "generation.preferred=best_versus_worst", "generation.num_candidates=5"],
            "has no meaning for preferred='best_versus_worst'",
        ),
    ],
)
def test_sources_that_do_not_go_together(
    build: Callable[..., Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    build(tmp_path / "out", *overrides, code=2)
    assert said in capsys.readouterr().err
