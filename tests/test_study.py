"""The study of docs/results: its commands are ones that the programs take, and it goes on where it stopped."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe
from logodata.sources.fields import SourceSettings
from logodata.sources.reading import read_source
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.settings import TrainRecipe
from study.__main__ import prepare
from study.jobs import Job, Study
from study.report import all_jobs
from study.rows import LOGO, ROWS, row
from study.scale import CPU, DOCUMENTS, GPU, SCALES, Scale
from study.schedule import Journal, run_jobs

ROOT = Path(__file__).resolve().parents[1]
RATES = {tuned.name: 5e-4 for tuned in ROWS if tuned.is_tuned}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("tenth", [False, True])
@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_every_command_is_one_that_the_programs_take(scale: object, tenth: bool, tmp_path: Path) -> None:
    assert scale in (CPU, GPU)
    study = Study(scale, tmp_path, longbench=Path("rows.jsonl"), extra=scale.tenth if tenth else {})  # type: ignore[arg-type]
    jobs = all_jobs(study, RATES)
    assert len({job.name for job in jobs}) == len(jobs)
    sections = {
        "logodata": ("build", BuildRecipe),
        "logotrain": ("train", TrainRecipe),
        "logoeval": ("eval", EvalRecipe),
    }
    for job in jobs:
        assert shlex.split(job.command) == [job.program, *job.arguments]
        section, cls = sections[job.program]
        overrides = [word for word in job.arguments if "=" in word and not word.startswith("-")]
        overrides += ["qa.data=somewhere"] if job.arguments[0] == "qa" else []
        recipe = load_recipe(cls, section, scale.recipe, overrides)  # type: ignore[arg-type, attr-defined]
        if isinstance(recipe, TrainRecipe) and "--data" in job.arguments:
            assert recipe.data.num_rejected in (1, 2, 3)


def test_rows_differ_from_logo_in_what_they_say() -> None:
    """A row's overrides change the resolved recipe, and no two rows are the same."""

    def resolved(name: str) -> str:
        overrides = row(name).overrides or ()
        rate_of = row(name).rate_of or name
        return load_recipe(TrainRecipe, "train", CPU.recipe, overrides).model_dump_json() + row(name).data + rate_of

    trained = [found.name for found in ROWS if not found.is_untrained]
    assert len({resolved(name) for name in trained}) == len(trained)
    assert row(LOGO).overrides == ()


def test_the_splits_share_no_document_and_their_evidence_stands_in_the_text() -> None:
    seen: dict[str, str] = {}
    for name in ("train", "validation", "heldout"):
        for line in (DOCUMENTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            assert document["context"] not in seen.values()
            seen[document["doc_id"]] = document["context"]
            for question in document["questions"]:
                assert all(document["context"][start:end].strip() for start, end in question["evidence"])
    assert len(seen) == 18


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_fresh_questions_are_those_of_held_out_documents_that_are_not_asked(scale: Scale, tmp_path: Path) -> None:
    study = Study(scale, tmp_path)
    prepare(study)

    def asked(name: str, most: int | None) -> dict[str, set[str]]:
        settings = SourceSettings(
            path=str(study.documents(name)), kinds=("single_detail",), max_questions_per_document=most
        )
        documents = read_source(settings).documents
        return {document.doc_id: {question.question for question in document.questions} for document in documents}

    every, heldout, fresh = asked("heldout", None), asked("heldout", scale.heldout_questions), asked("fresh", None)
    assert set(every) == set(fresh)
    assert next(iter(fresh.values()))
    assert sum(map(len, fresh.values())) > 0
    for doc_id, questions in every.items():
        assert heldout[doc_id] | fresh[doc_id] == questions
        assert not heldout[doc_id] & fresh[doc_id]


def test_a_folder_is_bound_to_its_documents_and_recipe(tmp_path: Path) -> None:
    study = Study(CPU, tmp_path)
    prepare(study)
    prepare(study)
    bound = json.loads((tmp_path / "study.json").read_text())
    bound["eval"]["niah"]["num_samples"] += 1
    (tmp_path / "study.json").write_text(json.dumps(bound))
    with pytest.raises(UserError, match=r"started with eval\.niah\.num_samples=5, now it is 4"):
        prepare(study)


def _job(name: str, code: str) -> Job:
    return Job(name, "timeit", ("-n", "1", "-r", "1", code))


def test_what_ended_well_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    count = tmp_path / "count"
    append = f"open({str(count)!r}, 'a').write('x')"
    for name in ("good", "bad"):  # a job writes the folder of its name
        (tmp_path / name).mkdir()
    good, bad = _job("good", append), _job("bad", f"{append}; assert len(open({str(count)!r}).read()) > 2")
    journal = Journal(tmp_path)
    with pytest.raises(UserError, match=r"bad ended with code 1: AssertionError"):
        run_jobs([[good], [bad]], 1, tmp_path, journal)
    assert count.read_text() == "xx"
    assert journal.is_done(good)
    assert not journal.is_done(bad)
    run_jobs([[good], [bad]], 1, tmp_path, Journal(tmp_path))  # another process would read the same journal
    assert count.read_text() == "xxx"
    assert Journal(tmp_path).is_done(bad)
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [(line["name"], line["ok"]) for line in lines] == [("good", True), ("bad", False), ("bad", True)]
    assert Journal(tmp_path).taken(bad).seconds == pytest.approx(sum(line["seconds"] for line in lines[1:]))
    (tmp_path / "good").rmdir()
    assert not Journal(tmp_path).is_done(good)  # what it wrote is gone


def test_a_job_whose_command_changed_is_run_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "a").mkdir()
    run_jobs([[_job("a", "pass")]], 1, tmp_path, journal)
    assert journal.is_done(_job("a", "pass"))
    assert not journal.is_done(_job("a", "1 + 1"))


def test_a_chain_keeps_its_order_and_ends_where_a_job_failed(tmp_path: Path) -> None:
    """With two workers the second chain runs beside the first, whose next job starts when the one before it ended."""
    trace = tmp_path / "trace"

    def write(letter: str, then: str = "") -> str:
        return f"open({str(trace)!r}, 'a').write({letter!r}){then}"

    first = [
        _job("a", f"import time; time.sleep(0.3); {write('a')}"),
        _job("b", write("b", "; 1 / 0")),
        _job("c", write("c")),
    ]
    with pytest.raises(UserError, match=r"b ended with code 1: ZeroDivisionError"):
        run_jobs([first, [_job("d", write("d"))]], 2, tmp_path, Journal(tmp_path))
    assert trace.read_text().replace("d", "") == "ab"
