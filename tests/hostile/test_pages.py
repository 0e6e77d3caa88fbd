"""Documents, answers, names and results with HTML and script in them stay text, on every page and card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main as logodata
from logodata.common.files import read_json, write_json
from logodata.contract import (
    ContextChunk,
    DecisionRow,
    PreferenceSample,
    Question,
    QuestionOutcome,
    RejectedQuestion,
    Response,
    Role,
)
from logodata.dataset.files import write_data_set
from logodata.judge.judged_response import Decision
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings
from logoeval.cli import main as logoeval
from tests.data_sets import manifest_of
from tests.hostile.browser import EVIL, check_page, runs_script
from tests.logoeval.synthetic import write_runs


def _response(strategy: str, share: float) -> Response:
    return Response(
        strategy=strategy,
        text=f"{EVIL} said {strategy}",
        token_ids=[5, 2],
        ended=True,
        word_share=share,
        token_f1=share,
        verdict="right" if share > 0.5 else "wrong",
    )


def _sample(number: int) -> PreferenceSample:
    chunk = {"start": 0, "end": 5, "token_start": 0, "token_end": 1, "score": 1.0, "text": EVIL}
    return PreferenceSample(
        id=f"q{number}{EVIL}",
        doc_id=EVIL,
        question_id=f"q{number}{EVIL}",
        kind="other",
        question=EVIL,
        answers=[EVIL],
        prompt_ids=[1, 4, 2],
        chunks=[ContextChunk(doc_id=EVIL, index=n, critical=n == 0, **chunk) for n in range(2)],
        chosen=_response("guided", 1.0),
        rejected=[_response("irrelevant", 0.0), _response("mixed-0.5", 0.0)],
        answer_in_critical=True,
    )


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the build writes it, but that every text in it is a stranger's."""
    folder = tmp_path_factory.mktemp("data-set")
    lost = RejectedQuestion(
        id=f"r{EVIL}",
        doc_id=EVIL,
        where=f"{EVIL}:7",
        source=EVIL,
        question=EVIL,
        kind="other",
        answers=[EVIL],
        reason="preferred_wrong",
        detail=EVIL,
        stage="judge",
        preferred=[EVIL],
    )
    said = _response(EVIL, 1.0).model_copy(update={"text": EVIL})

    def decisions(question_id: str, *roles: Role, kept: bool = True) -> list[DecisionRow]:
        question = Question(id=question_id, question=EVIL)
        return [Decision(question, role, 0, said, None).row(EVIL, kept=kept) for role in roles]

    samples = [_sample(number) for number in range(2)]
    outcomes = [
        QuestionOutcome(id=one.id, decisions=decisions(one.id, "preferred", "rejected", "rejected"), sample=one)
        for one in samples
    ]
    outcomes.append(QuestionOutcome(id=lost.id, decisions=decisions(lost.id, "preferred", kept=False), rejected=lost))
    recipe = BuildRecipe(model=EVIL, source=SourceSettings(path=EVIL))
    manifest = manifest_of(
        model=EVIL,
        engine=EVIL,
        source={"path": EVIL, "sha256": "123"},
        judge_model=EVIL,
        judge_model_fingerprint="abc",
        judge_engine=EVIL,
        recipe=recipe.model_dump(mode="json"),
    )
    write_data_set(folder, outcomes, manifest, recipe)
    return folder


def test_the_page_of_samples(data_set: Path, tmp_path: Path) -> None:
    page = tmp_path / "samples.html"
    assert logodata(["inspect", str(data_set), "--html", str(page)]) == 0
    check_page(page.read_text(encoding="utf-8"), told=20)


def test_the_card(data_set: Path) -> None:
    """In Markdown an element, a link and the end of a cell need a sign that is taken from them."""
    card = (data_set / "README.md").read_text(encoding="utf-8")
    head, _, body = card.partition("---\n\n")
    assert "PWNED" not in head, "the header is YAML"
    assert body.count("PWNED") >= 5 * EVIL.count("PWNED")
    outside_code = "".join(part for number, part in enumerate(body.split("`")) if number % 2 == 0)
    assert "PWNED" in outside_code
    assert not any(f"{before}<{name}" in outside_code for before in (" ", ">", '"') for name in ("script", "img", "a "))
    assert outside_code.count("<") == outside_code.count("\\<")


@pytest.fixture(scope="module")
def report(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs whose results are a stranger's, with data and training."""

    root = tmp_path_factory.mktemp("report")

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        free = ("label", "explanation", "notes", "engine", "device", "torch", "model", "adapter", "data", "haystack")
        return f"{value}{EVIL}" if isinstance(value, str) and key in free else value

    folders = write_runs(root, ["base", "after"])
    for folder in folders:
        results = read_json(folder / "results.json")
        for result in results["tasks"].values():
            result["notes"].append("a note")
            result["settings"]["engine"] = "e"
        write_json(folder / "results.json", spoil(results))
    run = root / "run"
    run.mkdir()
    write_json(
        run / "recipe.resolved.json",
        # Where numbers or names of objectives are wanted, another text is refused.
        {"objective": {"name": "logo"}, "tuning": EVIL, "lora": {"rank": 8}, "samples_per_step": 2, EVIL: EVIL}
        | {"optimizer": {"lr": 1.0}},
    )
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "margin": 0.1}\n{"step": 2, "loss": 1.0, "margin": 0}\n'
    )
    page = root / "report.html"
    label = EVIL.replace("/", "")
    arguments = [str(folders[0]), f"{label}={folders[1]}", "--data", str(data_set), "--run", str(run), "-o", str(page)]
    assert logoeval(["compare", *arguments]) == 0
    return page


def test_the_report(report: Path) -> None:
    check_page(report.read_text(encoding="utf-8"), told=40)
    text = report.with_suffix(".md").read_text(encoding="utf-8")
    assert text.count("PWNED") > 100
    for name in ("<script", "<img", "<iframe", "<svg", "<a "):
        assert text.count(name) == text.count(f"\\{name}"), name
    assert json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_nothing_runs_in_chromium(report: Path, data_set: Path, tmp_path: Path) -> None:
    naive = tmp_path / "naive.html"
    naive.write_text(f"<!doctype html><html><head><title>t</title></head><body>{EVIL}</body></html>")
    assert runs_script(naive, tmp_path / "profile"), "so that this test can fail"
    samples = tmp_path / "samples.html"
    assert logodata(["inspect", str(data_set), "--html", str(samples)]) == 0
    for page in (samples, report):
        assert not runs_script(page, tmp_path / "profile"), page.name
