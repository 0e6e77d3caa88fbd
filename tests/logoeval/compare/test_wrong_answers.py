"""How answers go wrong: counts known by hand, what is refused, what is escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.judge.rules import error_pattern
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.compare.answers import LONGBENCH_TASKS
from logoeval.compare.compare import Comparison, compare
from logoeval.compare.wrong_answers import OUTCOMES, PATTERNS, Outcome, classify, draw_examples, read_and_analyse
from logoeval.records import Metric, Provenance, Results, SampleRow, TaskResult, write_results
from logoeval.report.sections.wrong_answers import errors_section
from logoeval.run import evaluate
from logoeval.session import Session
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.report.test_report import Reader
from tests.logoeval.tasks.longbench.test_task import recipe, row, write_lines

QUESTION = "What does the harbour of Vell hold?"
ANSWERS = ["forty silver bells"]
SAID: dict[Outcome, str] = {
    "right": "It holds forty silver bells, which nobody rings any more.",
    "hallucination": "The harbour of Vell holds a wooden ship.",
    "instruction_unfollowing": "I like to eat <b>bread</b> in the morning.",
    "empty": " \n...",
}
EVIL = "\x1b[31m[bold]<script>alert(1)</script> & bread"
METRIC = Metric(key="score", label="Score", explanation="Some.", kind="share")


def said(kinds: str) -> list[str]:
    """Answers by the first letters of their outcomes."""
    by_letter = {outcome[0]: text for outcome, text in SAID.items()}
    return [by_letter[letter] for letter in kinds]


MakeRun = Callable[..., Path]


@pytest.fixture
def make_answers(tmp_path: Path) -> MakeRun:
    """Write a finished run: ``pairs`` a list of answers, ``longbench`` one a task; two answers share a document."""

    def make(
        name: str,
        pairs: Sequence[str] = (),
        longbench: dict[str, Sequence[str]] | None = None,
        *,
        e: bool = False,
        references: Sequence[str] = ANSWERS,
        settings: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        (folder / "predictions" / "longbench").mkdir(parents=True)
        tasks: dict[Any, TaskResult] = {}
        by_task = {"pairs": {"pairs": pairs}, "longbench": longbench or {}}
        for task, parts in by_task.items():
            samples = []
            for part, responses in parts.items():
                place = "pairs" if task == "pairs" else f"longbench/{part}{'_e' if e else ''}"
                lines = []
                for number, response in enumerate(responses):
                    record = {"id": f"q{number}", "question": QUESTION, "answers": references, "response": response}
                    lines.append(json.dumps(record) + "\n")
                    samples.append(
                        SampleRow(
                            id=f"q{number}" if task == "pairs" else f"{part}/q{number}",
                            cluster=f"{part}-{number // 2}",
                            prompt_hash="h",
                            scores={"score": 0.0},
                            facts={"task": part},
                        )
                    )
                if lines:
                    (folder / "predictions" / f"{place}.jsonl").write_text("".join(lines), encoding="utf-8")
            if samples:
                tasks[task] = TaskResult(
                    task=task,  # type: ignore[arg-type]
                    settings={"e": e, **(settings or {})},
                    provenance=PROVENANCE,
                    metrics=[METRIC],
                    summary=[],
                    samples=samples,
                )
        write_results(folder, Results(tasks=tasks))
        return folder

    return make


PROVENANCE = Provenance(
    logo_align="0",
    python="3",
    torch="2",
    transformers="5",
    engine="fake 1",
    device="cpu",
    model="tiny",
    model_fingerprint="abc",
    adapter=None,
    adapter_fingerprint=None,
    tokenizer_fingerprint="t",
    date="2026-11-23T00:00:00+00:00",
    seconds=1.0,
)


@pytest.mark.parametrize(("outcome", "response"), SAID.items())
def test_one_answer(outcome: Outcome, response: str) -> None:
    assert classify(response, QUESTION, ANSWERS) == outcome


@pytest.mark.parametrize(
    ("response", "wrong_below", "outcome"),
    [
        ("forty silver spoons", 0.6, "right"),  # two words of three
        ("forty silver spoons", 2 / 3, "right"),
        ("forty silver spoons", 0.7, "instruction_unfollowing"),
        ("forty silver spoons of Vell", 0.7, "hallucination"),
        ("bells", 0.6, "instruction_unfollowing"),
        ("bells", 0.3, "right"),
    ],
)
def test_the_threshold_is_a_share_of_the_references_words(response: str, wrong_below: float, outcome: Outcome) -> None:
    assert classify(response, QUESTION, ["a brass gong", *ANSWERS], wrong_below) == outcome


def test_a_right_answer_in_a_whole_sentence_is_right_though_its_f1_is_low() -> None:
    from logoeval.tasks.longbench.metrics import qa_f1

    response = f"As the long text about the old town tells its readers somewhere, {SAID['right']}"
    assert qa_f1(response, ANSWERS[0]) < 0.3
    assert classify(response, QUESTION, ANSWERS) == "right"


def test_the_six_tasks() -> None:
    assert set(LONGBENCH_TASKS) == {"narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"}


def test_counts_shares_and_differences(make_answers: MakeRun) -> None:
    before = make_answers("before", said("rrhhhiie"), {"qasper": said("rhhi"), "musique": said("hhhi")})
    after = make_answers("after", said("rrrrhiii"), {"qasper": said("rrrr"), "musique": said("hhhi")})
    analysis = read_and_analyse([before, after], 0.6)
    found = {
        group.part or group.task: {outcome: row.counts for outcome, row in group.outcomes.items()}
        for group in analysis.groups
    }
    keys = list(OUTCOMES)
    assert found == {
        "longbench": dict(zip(keys, [[1, 4], [5, 3], [2, 1], [0, 0]], strict=True)),
        "qasper": dict(zip(keys, [[1, 4], [2, 0], [1, 0], [0, 0]], strict=True)),
        "musique": dict(zip(keys, [[0, 0], [3, 3], [1, 1], [0, 0]], strict=True)),
        "pairs": dict(zip(keys, [[2, 4], [3, 1], [2, 3], [1, 0]], strict=True)),
    }
    pairs = next(group for group in analysis.groups if group.task == "pairs")
    assert (pairs.title, pairs.num_answers, pairs.num_clusters) == ("Held-out pairs", 8, 4)
    (difference,) = pairs.outcomes["hallucination"].differences
    assert difference.change.value == pytest.approx(-2 / 8)
    assert difference.change.low is not None
    assert difference.change.high is not None
    assert difference.change.low <= -2 / 8 <= difference.change.high
    for number in (0, 1):
        assert sum(row.values[number].value for row in pairs.outcomes.values()) == pytest.approx(1)
    medians = {outcome: row.median_words for outcome, row in pairs.outcomes.items() if row.median_words}
    assert medians == {"hallucination": [8, 8], "instruction_unfollowing": [10, 10]}


def test_intervals_are_the_cluster_bootstraps(make_answers: MakeRun) -> None:
    from logoeval.intervals import estimate_difference, estimate_mean

    kinds = ("rrhhhiierhhh", "rrrrhiiirrhh")
    analysis = read_and_analyse([make_answers(name, said(name)) for name in kinds], 0.6)
    columns = [[float(letter == "h") for letter in name] for name in kinds]
    clusters = [f"d{number // 2}" for number in range(12)]
    (group,) = analysis.groups
    row = group.outcomes["hallucination"]
    assert (row.values[0].low, row.values[0].high) == estimate_mean(columns[0], clusters).interval
    change = row.differences[0].change
    assert (change.low, change.high) == estimate_difference(*columns, clusters).interval


def test_an_answer_is_sorted_by_the_judges_formula(make_answers: MakeRun) -> None:
    analysis = read_and_analyse([make_answers("run", said("rhie"))], 0.6)
    for pattern in PATTERNS:
        (answer,) = analysis.answers[0][pattern]
        assert pattern == error_pattern(answer.response, answer.question)
    # Without a kind of its own an empty answer would be called instruction unfollowing.
    assert error_pattern(SAID["empty"], QUESTION) == "instruction_unfollowing"


def test_tasks_that_ask_no_question_are_not_counted(make_answers: MakeRun) -> None:
    run = make_answers("run", longbench={"qasper": said("rh"), "triviaqa": said("hh"), "multifieldqa_zh": said("hh")})
    (group,) = read_and_analyse([run], 0.6).groups
    assert (group.title, group.part, group.num_answers) == ("LongBench qasper", None, 2)
    with pytest.raises(UserError, match="holds no answers to questions"):
        read_and_analyse([make_answers("other", longbench={"triviaqa": said("hh")})], 0.6)


def test_long_references_are_left_out_and_counted(make_answers: MakeRun) -> None:
    long = [" ".join(f"word{number}" for number in range(21))]
    run = make_answers("run", said("rh"), {"qasper": said("h")})
    lines = [json.loads(line) for line in (run / "predictions" / "pairs.jsonl").open(encoding="utf-8")]
    lines[0]["answers"] = long
    (run / "predictions" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    analysis = read_and_analyse([run], 0.6)
    assert [group.num_answers for group in analysis.groups] == [1, 1]
    (note,) = analysis.notes
    assert note.startswith("Held-out pairs: 1 of 2 answers are not counted")
    with pytest.raises(UserError, match="Held-out pairs: 1 of 1 answers"):
        read_and_analyse([make_answers("all", said("r"), references=long)], 0.6)


def test_longbench_e_is_read_from_its_files(make_answers: MakeRun) -> None:
    (group,) = read_and_analyse([make_answers("run", longbench={"qasper": said("rh")}, e=True)], 0.6).groups
    assert group.title == "LongBench qasper_e"


def test_a_run_of_longbench_is_counted(
    tiny_model_dir: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["in the old mill", "Story 1 was long.", "Nobody knows.", ""]

    def answer(request: GenerationRequest) -> GenerationResult:
        number = int(request.id.rpartition("-")[2])
        return GenerationResult(request.id, tuple(encode_text(tiny_tokenizer, texts[number])), "stop")

    monkeypatch.setattr(Session, "engine", FakeEngine(answer))
    data = write_lines(tmp_path / "qasper.jsonl", [row("qasper", number) for number in range(4)])
    evaluate(recipe(tiny_model_dir, data), ["longbench"], tmp_path / "out")
    (found,) = read_and_analyse([tmp_path / "out"], 0.6).answers
    ids = {outcome: [answer.id for answer in members] for outcome, members in found.items()}
    assert ids == {outcome: [f"qasper/qasper-id-{number}"] for number, outcome in enumerate(OUTCOMES)}


# -- what is refused, what is noted ------------------------------------------------------------------------------------


def test_other_samples_are_refused(make_answers: MakeRun) -> None:
    with pytest.raises(UserError, match="the runs hold different samples"):
        read_and_analyse([make_answers("before", said("rh")), make_answers("after", said("rhi"))], 0.6)
    with pytest.raises(UserError, match="max_new_tokens is None in one and 32 in the other"):
        read_and_analyse(
            [make_answers("one", said("rh")), make_answers("two", said("rh"), settings={"max_new_tokens": 32})], 0.6
        )


def test_a_partially_finished_run_is_refused(make_answers: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_answers("run", said("rh"), {"qasper": said("rh")})
    content = json.loads((run / "results.json").read_text(encoding="utf-8"))
    del content["tasks"]["longbench"]
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(["errors", str(run)]) == 2
    error = capsys.readouterr().err
    assert "longbench is not finished" in error
    assert error.count("\n") == 1
    (run / "results.json").unlink()  # stopped in its first task
    assert main(["errors", str(run)]) == 2
    assert "is not finished" in capsys.readouterr().err


def _page(folders: list[Path]) -> str:
    section = errors_section(compare(folders))
    assert section is not None
    return section.html()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "lacks the answer to 'q1', which results.json counts"),
        (lambda lines: [{**line, "question": None} for line in lines], "pairs.jsonl: q0: damaged: 'question': input"),
        (
            lambda lines: [{key: line[key] for key in ("id", "response")} for line in lines],
            "pairs.jsonl: q0: damaged: lacks 'question'",
        ),
    ],
)
def test_records_that_cannot_be_counted(make_answers: MakeRun, change: Any, message: str) -> None:
    run = make_answers("run", said("rh"))
    path = run / "predictions" / "pairs.jsonl"
    lines = [json.loads(line) for line in path.open(encoding="utf-8")]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_and_analyse([run], 0.6)
    other = make_answers("other", said("rh"))
    page = _page([other, run])
    assert "Not counted:" in page  # the rest of the report stands


def test_a_run_without_predictions_is_noted(make_answers: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    before, after = make_answers("before", said("rrh")), make_answers("after", said("rhi"))
    shutil.rmtree(before / "predictions")
    analysis = read_and_analyse([before, after], 0.6)
    assert [run.label for run in analysis.runs] == ["after"]
    assert "before is left out: its answers are not there" in analysis.notes[0]
    assert "before is left out" in _page([before, after])
    shutil.rmtree(after / "predictions")
    assert main(["errors", str(before), str(after)]) == 2
    assert "after is left out" in capsys.readouterr().err
    assert "after is left out" in _page([before, after])


@pytest.mark.parametrize("extra", [["--wrong-below", "0"], ["--wrong-below", "1.5"], ["--examples", "-1"]])
def test_numbers_that_mean_nothing(make_answers: MakeRun, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", str(make_answers("run", said("rh"))), *extra]) == 2
    assert extra[0] in capsys.readouterr().err


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_terminal_and_json(make_answers: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_answers("before", [*said("rrhhe"), EVIL]), make_answers("after", said("rrrhhi"))]
    out = tmp_path / "made" / "errors.json"
    assert main(["errors", *map(str, runs), "-o", str(out), "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Held-out pairs, 6 *\n  before +33 \[0, 100\] ", printed, re.MULTILINE)
    assert re.search(r"^    - before +\+17 \[", printed, re.MULTILINE)
    assert "before, instruction unfollowing: 1 of 1 answers, drawn by chance" in printed
    assert "\x1b" not in printed
    assert "\N{SYMBOL FOR ESCAPE}[31m[bold]<script>alert(1)</script> & bread" in printed
    assert "--wrong-below" not in printed
    assert "under 60 % of a reference's content words" in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [run["label"] for run in written["runs"]] == ["before", "after"]
    assert written["runs"][0]["tasks"]["pairs"]["model_fingerprint"] == "abc"
    (group,) = written["groups"]
    assert {outcome: part["counts"] for outcome, part in group["outcomes"].items()} == {
        "right": [2, 3],
        "hallucination": [2, 2],
        "instruction_unfollowing": [1, 1],
        "empty": [1, 0],
    }
    assert written["wrong_below"] == 0.6
    assert [(example["run"], example["outcome"]) for example in written["examples"]] == [
        ("before", "hallucination"),
        ("before", "instruction_unfollowing"),
        ("after", "hallucination"),
        ("after", "instruction_unfollowing"),
    ]
    assert written["examples"][1]["response"] == EVIL
    assert main(["errors", str(runs[0]), "--examples", "0", "--wrong-below", "1"]) == 0
    assert ANSWERS[0] not in capsys.readouterr().out


def test_examples_are_seeded_and_shared_by_runs(make_answers: MakeRun) -> None:
    runs = [make_answers("before", said("h" * 12)), make_answers("after", said("rhhhh" + "h" * 7))]
    before, after = read_and_analyse(runs, 0.6).answers
    shown = [answer.id for answer in draw_examples(before["hallucination"], 12)]
    assert sorted(shown) == sorted(f"q{number}" for number in range(12))
    assert shown != sorted(shown)
    assert [answer.id for answer in draw_examples(before["hallucination"][::-1], 3)] == shown[:3]
    others = [answer.id for answer in draw_examples(after["hallucination"], 12)]
    assert others == [name for name in shown if name != "q0"]


def test_the_section_is_escaped_and_nests(make_answers: MakeRun) -> None:
    longbench = {"qasper": said("rhi"), "musique": said("hie")}
    before = make_answers("before <i>x$1$", [*said("rrhhe"), EVIL.removeprefix("\x1b")], longbench)
    after = make_answers("after", said("rrrhhi"), longbench)
    page = _page([before, after])
    reader = Reader(page)
    assert reader.open == []
    assert not {"script", "i", "b"} & set(reader.tags)
    assert "<script>alert(1)</script> & bread" in reader.text
    assert "How answers go wrong" in reader.text
    assert reader.tags.count("svg") == 4
    described = [value for name, value in reader.attributes if name == "aria-label"]
    assert "before <i>x$1$: right 33.3 %, hallucination 33.3 %" in described[1]


def test_no_section_without_questions(make_run: Callable[..., Path]) -> None:
    found = compare([make_run("before", [0.0, 1.0]), make_run("after", [1.0, 1.0])])
    assert isinstance(found, Comparison)
    assert errors_section(found) is None
