"""The study of docs/results: its commands are ones that the programs take, and it goes on where it stopped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe
from logodata.sources.fields import SourceSettings
from logodata.sources.reading import read_source
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.settings import TrainRecipe
from study.__main__ import prepare
from study.corpora import read_fairytaleqa
from study.jobs import Job, Study
from study.outcome import chosen_rates
from study.report import all_jobs
from study.rows import LOGO
from study.scale import CPU, DOCUMENTS, SCALES, Scale
from study.schedule import Journal, run_jobs
from study.splits import split_corpus

ROOT = Path(__file__).resolve().parents[1]
RATES = {tuned.name: 5e-4 for scale in SCALES.values() for tuned in scale.rows if tuned.is_tuned}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("tenth", [False, True])
@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_every_command_is_one_that_the_programs_take(scale: Scale, tenth: bool, tmp_path: Path) -> None:
    study = Study(scale, tmp_path, longbench=Path("rows.jsonl"), extra=scale.tenth if tenth else {})
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
        recipe = load_recipe(cls, section, scale.recipe, overrides)  # type: ignore[arg-type]
        if isinstance(recipe, TrainRecipe) and "--data" in job.arguments:
            assert recipe.data.num_rejected in (1, 2, 3)


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_rows_differ_from_logo_in_what_they_say(scale: Scale) -> None:
    """A row's overrides change the resolved recipe, and no two rows are the same."""

    def resolved(name: str) -> str:
        row = scale.row(name)
        rate_of = row.rate_of or name
        return (
            load_recipe(TrainRecipe, "train", scale.recipe, row.overrides or ()).model_dump_json() + row.data + rate_of
        )

    trained = [found.name for found in scale.rows if not found.is_untrained]
    assert len({resolved(name) for name in trained}) == len(trained)
    assert scale.row(LOGO).overrides == ()


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


def test_fresh_questions_are_those_of_held_out_documents_that_are_not_asked(tmp_path: Path) -> None:
    scale = CPU
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


def write_fairytaleqa(folder: Path, stories: int) -> Path:
    """Write stories in the layout of the corpus, each with 14 questions; every seventh is on two sections."""
    for number in range(stories):
        split, name = ("train", "val", "test")[number % 3], f"story-{number}"
        sections = [f'In part {part} of tale {number},\na fox said "word {part}".' for part in range(1, 15)]
        for kind, suffix, head in (
            ("section-stories", "story", "section,text\n"),
            ("questions", "questions", "question_id,local-or-sum,cor_section,question,answer1,answer2,answer3\n"),
        ):
            path = folder / "data-by-train-split" / kind / split / f"{name}-{suffix}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = []
            for part, text in enumerate(sections, 1):
                on = f'summary,"{part}, 1"' if part % 7 == 0 else f"local,{part}"
                quoted = text.replace('"', '""')
                rows.append(
                    f'{part},"{quoted}"\n'
                    if suffix == "story"
                    # The last two have one number, as in some stories.
                    else f"{min(part, 13)},{on},What did fox {part} say?,word {part},,\n"
                )
            path.write_text(head + "".join(rows) + (",,,,,,\n" if suffix == "questions" else ""), encoding="utf-8")
    return folder


def test_stories_of_a_corpus_keep_their_questions_and_their_evidence(tmp_path: Path) -> None:
    documents = read_fairytaleqa(write_fairytaleqa(tmp_path, 6))
    assert [document["doc_id"] for document in documents] == [f"fairytaleqa-story-{number}" for number in range(6)]
    for number, document in enumerate(documents):
        assert len(document["questions"]) == 14  # the empty line of the table is none
        for part, question in enumerate(document["questions"], 1):
            texts = [document["context"][start:end] for start, end in question["evidence"]]
            expected = [f'In part {part} of tale {number},\na fox said "word {part}".']
            if part % 7 == 0:
                expected.append(f'In part 1 of tale {number},\na fox said "word 1".')
            assert texts == expected
            assert question["kind"] == ("multi_detail" if part % 7 == 0 else "single_detail")
            assert question["answers"] == [f"word {part}"]
    with pytest.raises(UserError, match=r"no copy of FairytaleQA.*git clone"):
        read_fairytaleqa(tmp_path / "data-by-train-split")


def test_a_corpus_is_split_by_story(tmp_path: Path) -> None:
    corpus = read_fairytaleqa(write_fairytaleqa(tmp_path, 240))
    splits = {name: [json.loads(line) for line in text.splitlines()] for name, text in split_corpus(corpus).items()}
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 104,
        "train-kinds": 104,
        "validation": 24,
        "heldout": 104,
    }
    names = {name: {document["doc_id"] for document in found} for name, found in splits.items()}
    assert names["train"] == names["train-kinds"]
    assert not names["train"] & names["heldout"]
    assert not names["validation"] & (names["train"] | names["heldout"])
    assert {len(document["questions"]) for document in splits["heldout"]} == {4}
    kinds = splits["train-kinds"][0]["questions"]
    assert [question["kind"] == "multi_detail" for question in kinds] == [False, False, True] * 4
    (tmp_path / "kinds.jsonl").write_text(split_corpus(corpus)["train-kinds"], encoding="utf-8")
    asked = [
        question
        for document in read_source(SourceSettings(path=str(tmp_path / "kinds.jsonl"))).documents
        for question in document.questions
    ]
    assert len(asked) == 104 * 12
    both = next(question for question in asked if " And what " in question.question)
    first, second = both.answers[0].split("; ")
    assert both.question.startswith(f"What did fox {first.split()[1]} say? And what did fox {second.split()[1]} say?")
    assert len(both.evidence) == 2


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
        run_jobs([[[good]], [[bad]]], 1, tmp_path, journal, 2)
    assert count.read_text() == "xx"
    assert journal.is_done(good)
    assert not journal.is_done(bad)
    run_jobs([[[good]], [[bad]]], 1, tmp_path, Journal(tmp_path), 2)  # another process would read the same journal
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
    run_jobs([[[_job("a", "pass")]]], 1, tmp_path, journal, 1)
    assert journal.is_done(_job("a", "pass"))
    assert not journal.is_done(_job("a", "1 + 1"))


def test_a_training_that_is_measured_is_not_run_again_though_its_folder_is_gone(tmp_path: Path) -> None:
    training = Job("run", "logotrain", ("recipes",))  # prints its error and ends with 2, if it is run
    measuring = _job("measured", "pass")
    (tmp_path / "measured").mkdir()
    run_jobs([[[measuring]]], 1, tmp_path, Journal(tmp_path), 2)
    run_jobs([[[training, measuring]]], 1, tmp_path, Journal(tmp_path), 2)
    with pytest.raises(UserError, match="run ended with code 2"):
        run_jobs([[[training]]], 1, tmp_path, Journal(tmp_path), 2)
    (tmp_path / "measured").rmdir()
    with pytest.raises(UserError, match="run ended with code 2"):
        run_jobs([[[training, measuring]]], 1, tmp_path, Journal(tmp_path), 2)


def test_what_needs_no_training_data_runs_beside_their_build(tmp_path: Path) -> None:
    train, others = Study(SCALES["large"], tmp_path).beginning()
    assert [job.name for job in train] == ["data/train"]
    assert [job.name for job in others] == [
        "data/heldout",
        "data/validation",
        "data/heldout-pairs",
        "validation/base",
        "eval/base",
    ]


def test_seeds_of_what_most_claims_are_about_come_first(tmp_path: Path) -> None:
    scale = SCALES["large"]
    order = [chain[-1].name.removeprefix("eval/") for chain in Study(scale, tmp_path).rows(RATES)]
    first = [f"{one.name}-seed0" if not one.is_untrained else one.name for one in scale.rows]
    then = [f"{name}-seed{seed}" for seed in (1, 2) for name in scale.curves]
    assert order[: len(first) + len(then)] == first + then
    assert len(order) == 1 + 3 * (len(scale.rows) - 1)


def test_a_method_is_measured_at_the_rate_that_its_own_pilots_chose(tmp_path: Path) -> None:
    study = Study(SCALES["large"], tmp_path)
    chosen: dict[str, float] = {}
    partial, logo, full, *_ = study.methods(lambda: chosen)
    assert [[job.name for job in next(partial)] for _ in range(3)] == [
        [f"runs/sft-partial-lr{rate}-seed0", f"validation/sft-partial-lr{rate}"]
        for rate in ("0.000125", "0.0005", "0.002")
    ]
    chosen["sft-partial"] = 5e-4  # as the last validation says
    assert [[job.name for job in chain] for chain in partial] == [
        ["runs/sft-partial-lr0.0005-seed0", "eval/sft-partial-seed0"],
        ["runs/sft-partial-lr0.0005-seed0", "curves/sft-partial"],
    ]
    last = [chain[-1].name for chain in logo][-3:]
    assert last == ["curves/logo", "eval/logo-lambda0.5-seed0", "eval/logo-long-seed0"]
    assert [job.name for chain in full for job in chain][-1] == "eval/sft-full-seed0"
    methods = [job for queue in study.methods(lambda: RATES) for chain in queue for job in chain]
    assert {job.name for job in study.pilots()} < {job.name for job in methods}
    assert {job.command for job in methods} < {job.command for job in all_jobs(study, RATES)}


def test_a_study_goes_on_after_all_pilots_are_validated(tmp_path: Path) -> None:
    """Both workers ask for the rates at the same time."""
    study = Study(SCALES["large"], tmp_path)
    for number in range(20):

        def queue(name: str) -> Iterator[list[Job]]:
            chosen_rates(study)
            yield [_job(name, "pass")]

        run_jobs([queue(f"{number}-a"), queue(f"{number}-b")], 2, tmp_path, Journal(tmp_path), 2)
    assert Journal(tmp_path).number_done() == 40


def test_what_fails_beside_the_jobs_stops_the_study_too(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def broken() -> Iterator[list[Job]]:
        yield [_job("a", "pass")]
        raise UserError("no rate")

    slow = [[_job("b", "import time; time.sleep(1)")], [_job("c", f"open({str(trace)!r}, 'w')")]]
    with pytest.raises(UserError, match="no rate"):
        run_jobs([broken(), slow], 2, tmp_path, Journal(tmp_path), 3)
    assert not trace.exists()


def test_a_queue_decides_on_a_chain_when_those_before_it_are_done(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def queue() -> Iterator[list[Job]]:
        yield [_job("a", f"open({str(trace)!r}, 'w').write('b')")]
        yield [_job(trace.read_text(), f"open({str(trace)!r}, 'a').write('c')")]

    run_jobs([queue()], 1, tmp_path, Journal(tmp_path), 2)
    assert trace.read_text() == "bc"
    assert [record["name"] for record in AppendLog(tmp_path / "jobs.jsonl").values()] == ["a", "b"]


def test_a_training_that_collapsed_ends_its_chain_and_not_the_study(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write = f"open({str(trace)!r}, 'a').write"
    said = "logotrain: error: step 21: the model collapsed: ..."
    lost = _job("lost", f"import os; {write}('x'); os.write(1, {said.encode()!r}); os._exit(2)")
    queue = [[lost, _job("never", f"{write}('n')")], [_job("next", f"{write}('o')")]]
    for _ in range(2):  # it is not tried again
        run_jobs([queue], 1, tmp_path, Journal(tmp_path), 3)
    assert trace.read_text() == "xoo"  # the last one's folder is not there
    assert Journal(tmp_path).collapsed() == {"lost"}
    assert not Journal(tmp_path).is_done(lost)


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
        run_jobs([[first], [[_job("d", write("d"))]]], 2, tmp_path, Journal(tmp_path), 4)
    assert trace.read_text().replace("d", "") == "ab"


def test_a_row_whose_rate_is_chosen_anew_is_measured_anew(tmp_path: Path) -> None:
    """Its folder has the name of the row, and is bound to the adapter of the old rate."""
    write = "import pathlib, sys; pathlib.Path('{}').mkdir(exist_ok=True); open('{}/found', 'x').write('{}')"
    folder = tmp_path / "a"
    for rate in ("old", "new", "new"):
        job = _job("a", write.format(folder, folder, rate))
        run_jobs([[[job]]], 1, tmp_path, Journal(tmp_path), 1)
        assert Journal(tmp_path).is_done(job)
    assert (folder / "found").read_text() == "new"
    (aside,) = (tmp_path / "aside").iterdir()
    assert (aside / "found").read_text() == "old"
    assert not Journal(tmp_path).is_done(_job("a", write.format(folder, folder, "old")))
