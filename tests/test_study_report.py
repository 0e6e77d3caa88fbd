"""What the study makes of its measurements, on measurements made up here: every number against numpy."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.files import write_json
from logoeval.intervals import summarise
from logoeval.records import Curve, CurvePoint, CurveValue, Metric, Provenance, Results, SampleRow, TaskResult
from logoeval.records import write_results as write_results_there
from logoeval.tasks.qa import METRICS as QA_METRICS
from study.__main__ import main, prepare
from study.archive import pack, unpack
from study.claims import CLAIMS, LARGE_CLAIMS, REPLICATED, TOGETHER, Claim, judge
from study.jobs import Job, Study
from study.outcome import BOTH_F1, F1, FRESH_F1, MARGIN, RECALL, Outcomes, chosen_rates, outcome_measure, perplexity
from study.report import write_report
from study.rows import BASE, LOGO, LOGO_LONG, SFT
from study.scale import CPU, LARGE, Scale
from study.schedule import Journal, Taken
from study.tables import rates_table
from tests.data_sets import stats_of
from tests.logoeval.conftest import write_build
from tests.test_study import write_fairytaleqa

NUM_QUESTIONS, LENGTHS = 30, (512, 1024, 2048, 4096)
LEVEL = {BASE: 0.1, SFT: 0.3, LOGO: 0.5}
"""Word F1 of some rows; the others have 0.2."""


def write_results(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_results_there(folder, results)


def _metric(key: str, kind: str) -> Metric:
    return Metric.model_validate({"key": key, "label": key, "explanation": key, "kind": kind, "better": "higher"})


def _task(task: str, metrics: list[Metric], samples: list[SampleRow], **settings: object) -> TaskResult:
    provenance = Provenance(
        logo_align="0",
        python="3",
        torch="2",
        transformers="5",
        engine="fake",
        device="cpu",
        model="m",
        model_fingerprint="m",
        adapter=None,
        adapter_fingerprint=None,
        tokenizer_fingerprint="t",
        date="2026-11-27",
        seconds=1.0,
    )
    return TaskResult.model_validate(
        {
            "task": task,
            "settings": settings,
            "provenance": provenance,
            "metrics": metrics,
            "summary": summarise(metrics, samples),
            "samples": samples,
        }
    )


def _sample(number: int, scores: dict[str, float], **facts: object) -> SampleRow:
    return SampleRow(id=f"q{number}", cluster=f"d{number // 3}", prompt_hash="h", scores=scores, facts=facts)


def _write_measurements(folder: Path, level: float, seed: int, *, needles: bool) -> None:
    rng, noise = np.random.default_rng(0), np.random.default_rng(seed + 1)
    difficulty = rng.normal(0, 0.1, NUM_QUESTIONS)
    answers, questions = AppendLog(folder / "predictions" / "qa.jsonl"), []
    answers.path.parent.mkdir(parents=True)
    for number in range(NUM_QUESTIONS):
        score = level + difficulty[number] + noise.normal(0, 0.02)
        scores = {"token_f1": score, "word_share": score, "ended": 1.0, "answer_tokens": 8.0}
        questions.append(_sample(number, scores, kind="single_detail"))
        said = "the bridge" if number < NUM_QUESTIONS * level else "the mill where it stood" if number % 2 else "no"
        answers.append({"id": f"q{number}", "question": "Where stood it?", "answers": ["the bridge"], "response": said})
    points = [_metric(f"ppl@{length}", "perplexity") for length in LENGTHS]
    texts = [_sample(number, {f"ppl@{length}": 3.0 - level / 100 for length in LENGTHS}) for number in (0, 3, 6)]
    margins = [_sample(number, {"margin": level - 0.5, "chosen": -1.0}) for number in range(NUM_QUESTIONS)]
    tasks = {
        "qa": _task("qa", QA_METRICS, questions),
        "pairs": _task("pairs", [_metric("margin", "nats"), _metric("chosen", "nats")], margins),
        "ppl": _task("ppl", points, texts, lengths=list(LENGTHS)),
    }
    if needles:
        found = [_sample(number, {"recall": number % 2}, length=LENGTHS[1 + number % 3]) for number in range(12)]
        tasks["niah"] = _task("niah", [_metric("recall", "share")], found)
    write_results(folder, Results.model_validate({"tasks": tasks}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: object) -> dict[str, Path]:
    """Folders as all commands of a study leave them, by scale."""
    root = tmp_path_factory.mktemp("studies")
    return {scale.name: made(scale, root / scale.name, tiny_tokenizer).folder for scale in (CPU, LARGE)}


@pytest.fixture
def study(tmp_path: Path, finished: dict[str, Path]) -> Study:
    return Study(CPU, shutil.copytree(finished["cpu"], tmp_path / "evidence"))


@pytest.fixture
def large(tmp_path: Path, finished: dict[str, Path]) -> Study:
    return Study(LARGE, shutil.copytree(finished["large"], tmp_path / "evidence"))


def made(scale: Scale, folder: Path, tiny_tokenizer: object) -> Study:
    study = Study(scale, folder)
    Journal(study.folder).add(Job("eval/base", "logoeval", ()), ok=True, taken=Taken(1.0, 1.0, 1.0))
    for tuned, rate in [(scale.row(BASE), None), *study.tried()]:
        score = 0.5 if rate == sorted(scale.rates)[1] or tuned.name == SFT else 0.4
        samples = [_sample(number, {"token_f1": score}) for number in range(4)]
        task = _task("qa", [_metric("token_f1", "share")], samples)
        write_results(study.validated(tuned, rate), Results.model_validate({"tasks": {"qa": task}}))
    for one in scale.rows:
        for seed in study.seeds(one):
            _write_measurements(study.measured(one, seed), LEVEL.get(one.name, 0.2), seed, needles=one.main)
            if one.replicated:
                _write_measurements(study.asked(one, seed), LEVEL.get(one.name, 0.2) + 0.3, seed, needles=False)
    keys = {"niah": ("recall", "retrieval_forced"), "qa": ("token_f1",)}[scale.curve_task]
    for name in scale.curves:
        values = [
            CurveValue(
                metric=key, value=0.5, low=0.4, high=0.6, change=0.0, change_low=None, change_high=None, num_samples=4
            )
            for key in keys
        ]
        metrics = [_metric(key, "share") for key in keys]
        points = [CurvePoint(step=step, adapter_fingerprint=None, values=values) for step in (0, 8, 16)]
        curve = Curve(task=scale.curve_task, checkpoints="c", settings={}, metrics=metrics, points=points)
        write_results(study.curve(name), Results(curve=curve))
    for name in study.builds():
        if name == "heldout-pairs":
            write_build(study.data(name), tiny_tokenizer)
        else:
            study.data(name).mkdir(parents=True)
            write_json(study.data(name) / "stats.json", stats_of(questions=6, kept=5, answer_in_critical=0.9).to_json())
    return study


def test_rates_are_the_best_on_validation_and_of_equal_ones_the_lowest(study: Study) -> None:
    rates = chosen_rates(study)
    assert rates == {"sft-full": 5e-4, SFT: 2e-4, "simpo": 5e-4, LOGO: 5e-4}


def test_a_rate_at_which_the_model_collapsed_is_not_chosen(large: Study) -> None:
    shutil.rmtree(large.validated(LARGE.row(LOGO), 5e-4))  # the best one in `made`
    assert LOGO not in chosen_rates(large)
    lost = [large.run(LARGE.row(LOGO), 0, 5e-4), large.run(LARGE.row("solopo"), 2, 5e-4)]
    collapsed = [run.relative_to(large.folder).as_posix() for run in lost]
    rates = chosen_rates(large, collapsed)
    assert rates[LOGO] == 1.25e-4
    shutil.rmtree(large.measured(LARGE.row("solopo"), 2))
    outcomes = Outcomes(large, rates, collapsed)
    assert "| + LOGO (M=2, λ=0.1) | - | **40.0** | collapsed | 40.0 | - |" in rates_table(outcomes).markdown()
    assert outcomes.missing == []
    assert outcomes.collapsed_seeds(LARGE.row("solopo")) == (2,)
    # Before a method has its rate, a pilot that collapsed says nothing of its row.
    unchosen = Outcomes(large, {name: rate for name, rate in rates.items() if name != LOGO}, collapsed)
    assert unchosen.collapsed_seeds(LARGE.row(LOGO)) == ()


def test_seeds_are_paired_by_name_and_a_row_that_collapsed_confirms_nothing(study: Study, tmp_path: Path) -> None:
    rates, lost = chosen_rates(study), study.run(CPU.row(LOGO), 1, 5e-4).relative_to(study.folder).as_posix()
    whole = Outcomes(study, rates)
    expected = [whole.changes_by_seed(CPU.row(LOGO), CPU.row(SFT), F1)[seed] for seed in (0, 2)]
    claim = Claim("x", LOGO, BASE, F1, +1)
    assert judge(claim, whole).verdict == "confirmed"
    shutil.rmtree(study.measured(CPU.row(LOGO), 1))
    outcomes = Outcomes(study, rates, [lost])
    assert outcomes.seeds(CPU.row(LOGO)) == outcomes.shared_seeds(CPU.row(LOGO), CPU.row(SFT)) == (0, 2)
    assert outcomes.changes_by_seed(CPU.row(LOGO), CPU.row(SFT), F1) == pytest.approx(expected)
    assert outcomes.missing == []
    assert judge(claim, outcomes).verdict == "not confirmed"
    journal = Journal(study.folder)
    journal.add(Job(lost, "logotrain", ()), ok=False, taken=Taken(1.0, 1.0, 1.0), collapsed=True)
    write_report(study, rates, journal, tmp_path / "report")
    said = (tmp_path / "report" / "README.md").read_text()
    assert "**Collapsed**, and so in no number: + LOGO (M=2, λ=0.1) (seed 1)." in said


def test_an_archive_that_is_cut_leaves_nothing_that_counts(study: Study, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar.xz"
    pack(study, whole)
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    again = Study(CPU, tmp_path / "again")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(cut, again)
    assert not [path for path in again.folder.glob("*") if path.name != ".measurements"]
    unpack(whole, again)
    names = [path.relative_to(study.folder) for path in study.folder.rglob("*.json*") if "data" not in path.parts]
    held = {path.relative_to(again.folder) for path in again.folder.rglob("*.json*")}
    assert held == set(names)
    assert Journal(again.folder).number_done() == Journal(study.folder).number_done()
    assert not (again.folder / ".measurements").exists()


def test_numbers_are_means_over_samples_and_seeds(study: Study) -> None:
    outcomes = Outcomes(study, chosen_rates(study))
    per_seed = [
        [sample.scores["token_f1"] for sample in results.tasks["qa"].samples]
        for results in outcomes.results(CPU.row(LOGO))
    ]
    assert len(per_seed) == 3
    level = outcomes.level(CPU.row(LOGO), F1)
    assert level.value == pytest.approx(np.mean(per_seed))
    assert level.num_clusters == NUM_QUESTIONS // 3
    assert outcomes.by_seed(CPU.row(LOGO), F1) == pytest.approx(np.mean(per_seed, axis=1))
    base = [sample.scores["token_f1"] for sample in outcomes.results(CPU.row(BASE))[0].tasks["qa"].samples]
    change = outcomes.change(CPU.row(LOGO), CPU.row(BASE), F1)
    assert change.value == pytest.approx(np.mean(per_seed) - np.mean(base))
    assert change.interval is not None
    assert change.interval[0] > 0.3  # paired: the questions' own difficulty cancels
    seeds = outcomes.changes_by_seed(CPU.row(LOGO), CPU.row(SFT), F1)
    assert seeds == pytest.approx(np.subtract(outcomes.by_seed(CPU.row(LOGO), F1), outcomes.by_seed(CPU.row(SFT), F1)))
    assert outcomes.level(CPU.row(BASE), perplexity(4096)).value == pytest.approx(np.exp(3.0 - 0.001))
    assert outcomes.level(CPU.row(LOGO), outcome_measure("right")).value == pytest.approx(0.5)
    assert outcomes.level(CPU.row(LOGO), outcome_measure("hallucination")).value == pytest.approx(0.25, abs=0.05)
    fresh = outcomes.change(CPU.row(LOGO), CPU.row(BASE), FRESH_F1)
    assert fresh.value == pytest.approx(0.4, abs=0.02)
    both, held_out = (outcomes.change(CPU.row(LOGO), CPU.row(BASE), measure) for measure in (BOTH_F1, F1))
    assert both.value == pytest.approx((fresh.value + held_out.value) / 2)
    assert (both.num_samples, both.num_clusters) == (2 * NUM_QUESTIONS, NUM_QUESTIONS // 3)
    assert outcomes.level(CPU.row(LOGO), FRESH_F1).value == pytest.approx(level.value + 0.3)
    assert outcomes.has(CPU.row(LOGO_LONG), FRESH_F1)
    assert not outcomes.has(CPU.row(SFT), FRESH_F1)
    assert outcomes.has(CPU.row(LOGO), RECALL)
    assert not outcomes.has(CPU.row("logo-m3"), RECALL)


def test_rows_trained_with_other_seeds_are_compared_over_those_they_share(study: Study) -> None:
    outcomes = Outcomes(study, chosen_rates(study))
    one, three = outcomes.by_seed(CPU.row("logo-m3"), F1), outcomes.by_seed(CPU.row(LOGO), F1)
    assert (len(one), len(three)) == (1, 3)
    assert outcomes.change(CPU.row("logo-m3"), CPU.row(LOGO), F1).value == pytest.approx(one[0] - three[0])
    assert outcomes.change(CPU.row(LOGO), CPU.row(BASE), F1).value == pytest.approx(
        np.mean(three) - outcomes.by_seed(CPU.row(BASE), F1)[0]
    )
    assert outcomes.changes_by_seed(CPU.row(LOGO), CPU.row("logo-m3"), F1) == pytest.approx([three[0] - one[0]])
    base = outcomes.by_seed(CPU.row(BASE), perplexity(4096))[0]
    assert outcomes.changes_by_seed(CPU.row(LOGO), CPU.row(BASE), perplexity(4096)) == pytest.approx(
        [value - base for value in outcomes.by_seed(CPU.row(LOGO), perplexity(4096))]
    )


@pytest.mark.parametrize(
    ("sign", "bound", "verdict"),
    [
        (+1, 0.0, "confirmed"),
        (-1, 0.0, "refuted"),
        (+1, 0.45, "refuted"),
        (-1, 0.6, "confirmed"),
        (+1, 0.4, "not confirmed"),
    ],
)
def test_a_claim_is_judged_by_its_rule(study: Study, sign: int, bound: float, verdict: str) -> None:
    """LOGO is 0.4 over the base model, give or take 0.01."""
    finding = judge(Claim("x", LOGO, BASE, F1, sign, bound), Outcomes(study, chosen_rates(study)))
    assert finding.verdict == verdict
    assert len(finding.by_seed) == 3


def test_three_documents_decide_no_claim(study: Study) -> None:
    finding = judge(Claim("x", LOGO, BASE, perplexity(4096), -1), Outcomes(study, chosen_rates(study)))
    assert finding.change.interval is not None
    assert finding.change.interval[1] < 0
    assert finding.verdict == "too few to tell"


def test_rows_measured_on_other_prompts_are_not_compared(study: Study, tmp_path: Path) -> None:
    folder = study.measured(CPU.row("logo-m3"), 0)
    path = folder / "results.json"
    path.write_text(
        path.read_text()
        .replace('"prompt_hash":"h"', '"prompt_hash":"i"', 1)
        .replace('"prompt_hash": "h"', '"prompt_hash": "i"', 1)
    )
    with pytest.raises(UserError, match="sample 'q0' has different prompts"):
        write_report(study, chosen_rates(study), Journal(study.folder), tmp_path / "report")


def test_the_report_holds_every_row_claim_figure_and_command(study: Study, tmp_path: Path) -> None:
    rates, journal, folder = chosen_rates(study), Journal(study.folder), tmp_path / "report"
    folder.mkdir()
    (folder / "remarks.md").write_text("Read by hand: nothing yet.")
    write_report(study, rates, journal, folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "Read by hand: nothing yet." in page
    for one in CPU.rows:
        assert one.label in page
    for claim in (*CLAIMS, *REPLICATED, *TOGETHER):
        assert claim.text in page
    for name in ("needles", "perplexity", "tradeoff", "margins", "training", "errors", "rates"):
        assert f"](figures-cpu/{name}.png)" in page
        assert (folder / "figures-cpu" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert f"logotrain run recipes/study/cpu.yaml --data {study.data('train')}" in page
    record = json.loads((folder / "results-cpu.json").read_text(encoding="utf-8"))
    assert len(record["claims"]) == len(CLAIMS) + len(REPLICATED) + len(TOGETHER)
    assert record["rows"][LOGO]["fresh_questions"]["token_f1"]["value"] == pytest.approx(0.8, abs=0.06)
    assert record["rows"][LOGO]["measures"]["token_f1"]["value"] == pytest.approx(0.5, abs=0.06)
    assert MARGIN.key in record["rows"]["logo-m3"]["measures"]
    assert "Written by `make evidence SCALE=cpu` on" in page
    assert "trial" not in page
    write_report(replace(study, extra=CPU.tenth), rates, journal, folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "It says nothing of the methods." in page
    assert "Written by `make evidence SCALE=cpu EVIDENCE_ARGS=--tenth` on" in page


def test_the_report_is_the_same_from_the_same_measurements(study: Study, tmp_path: Path) -> None:
    def made(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        write_report(study, chosen_rates(study), Journal(study.folder), folder)
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}

    first = made("a")
    assert first == made("b")
    assert len(first) == 9


def test_a_scale_without_settings_and_fresh_questions_has_a_report_of_its_rows(large: Study, tmp_path: Path) -> None:
    rates, folder = chosen_rates(large), tmp_path / "report"
    write_report(large, rates, Journal(large.folder), folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    for one in LARGE.rows:
        assert one.label in page
    for claim in LARGE_CLAIMS:
        assert claim.text in page
    assert "## Settings of LOGO" not in page
    assert "fresh questions?" not in page
    assert (folder / "figures-large" / "training.png").exists()
    for name in LARGE.curves:
        assert f"--checkpoints {large.run(LARGE.row(name), 0, rates[name]) / 'checkpoints'}" in page
    record = json.loads((folder / "results-large.json").read_text(encoding="utf-8"))
    assert record["rows"]["ours"]["seeds"] == [0, 1, 2]
    assert "Not finished" not in page


def test_a_report_is_made_again_from_the_measurements_beside_it(large: Study, tmp_path: Path) -> None:
    """They hold no text of the corpus. It comes from the user's copy."""
    corpus = write_fairytaleqa(tmp_path / "corpus", 240)
    prepare(large, corpus)
    documents = [json.loads(line) for line in large.documents("heldout").read_text().splitlines()]
    asked = [question for document in documents for question in document["questions"]]
    for path in (*large.folder.glob("*/*/results.json"), *large.folder.glob("*/*/predictions/qa.jsonl")):
        path.write_text(re.sub(r'"q(\d+)"', lambda found: f'"{asked[int(found[1])]["id"]}"', path.read_text()))
    for path in large.folder.glob("*/*/predictions/qa.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [
            {**row, **{key: one[key] for key in ("question", "answers")}} for row, one in zip(rows, asked, strict=False)
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_report(large, chosen_rates(large), Journal(large.folder), tmp_path / "report")

    kept = tmp_path / "report" / "measurements-large.tar.xz"
    with tarfile.open(kept) as archive:
        archive.extractall(tmp_path / "held", filter="data")
    held = {str(path.relative_to(tmp_path / "held")): path.read_text() for path in (tmp_path / "held").rglob("*.json*")}
    assert {"eval/logo-seed2/predictions/qa.jsonl", "curves/logo/results.json", "jobs.jsonl"} <= set(held)
    assert not [name for name, text in held.items() if asked[0]["question"] in text]

    arguments = ["large", "--cache", "none", "--measured", str(kept), "--so-far", "--output", str(tmp_path / "again")]
    arguments += ["--fairytaleqa", str(corpus), "--report", str(tmp_path / "second")]
    assert main(arguments) == 0
    pages = [(tmp_path / name / "README.md").read_text().split("## Data")[0] for name in ("report", "second")]
    assert pages[0] == pages[1]
    assert kept.read_bytes() == (tmp_path / "second" / kept.name).read_bytes()
    assert main(arguments) == 2  # the folder holds measurements now
    arguments[4:6] = ["--output", str(tmp_path / "third")]
    arguments[2] = str(corpus / "data-by-train-split")
    assert main(arguments) == 2


def test_a_report_of_what_is_measured_so_far_names_the_rest(large: Study, tmp_path: Path) -> None:
    missing = {SFT: (1,), "dpo": (0, 1, 2), LOGO: (2,), "ours": (0, 1, 2)}
    for name, seeds in missing.items():
        for seed in seeds:
            shutil.rmtree(large.measured(LARGE.row(name), seed))
    shutil.rmtree(large.validated(LARGE.row("solopo"), LARGE.rates[0]))
    shutil.rmtree(large.curve(SFT))
    shutil.rmtree(large.data("train-kinds"))
    folder = tmp_path / "report"
    arguments = ["large", "--output", str(large.folder), "--so-far", "--report", str(folder)]
    assert main(arguments) == 0
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "**Not finished.**" in page
    left = {name: ", ".join(map(str, seeds)) for name, seeds in missing.items()}
    assert "; ".join(f"{LARGE.row(name).label} (seed {seeds})" for name, seeds in left.items()) in page
    record = json.loads((folder / "results-large.json").read_text(encoding="utf-8"))
    about = [claim.text for claim in LARGE_CLAIMS if not {claim.row, claim.other} & {"dpo", "ours"}]
    assert [claim["claim"] for claim in record["claims"]] == about
    assert record["rows"][LOGO]["seeds"] == [0, 1]
    assert record["rows"][SFT]["seeds"] == [0, 2]
    assert "solopo" not in record["rates"]["chosen"]
    shutil.rmtree(large.measured(LARGE.row(BASE), 0))
    assert main(arguments) == 2
