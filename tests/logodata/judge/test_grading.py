"""Grades without a reference: what counts as a reply, what a grade is made of, and which pair follows from grades."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import logodata.build.responses
import logodata.judge.asked_judge
from logodata.cli import main
from logodata.common.resampling import mean_interval
from logodata.contexts.lexical import LexicalEvaluator
from logodata.contract import (
    DecisionRow,
    GradedFact,
    Grades,
    GradeStats,
    Question,
    QuestionOutcome,
    Response,
    Role,
    Ungraded,
)
from logodata.dataset.files import read_stats
from logodata.dataset.samples import read_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.judge.agreement import wilson_interval
from logodata.judge.grade_agreement import GradeCounts, rank_correlation
from logodata.judge.grader import Grader
from logodata.judge.grades import best_and_worst, sides
from logodata.judge.judged_response import Decision
from logodata.judge.replies import parse_extract, parse_facts, parse_score, parse_support
from logodata.judge.settings import GradeSettings, JudgeSettings
from logodata.models.loading import load_tokenizer
from tests.logodata.dataset.test_inspect import REJECTED
from tests.logotrain.conftest import sample_of

# The totals of a worked example: help, logic, supports of the facts, completeness.
WORKED: dict[str, tuple[float, float, tuple[float, ...], float]] = {
    "a": (8, 9, (1, 0.5, 0, 1), 7),
    "b": (9, 9, (1, 1, 0.5), 8),
    "c": (9, 8, (0, 0.5), 4),
}
SUPPORTS = {1: "full", 0.5: "partial", 0: "none"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 7", 7),
        ("It names the owl.\nScore: 7.5\n", 7.5),
        ("score: 10.0.", 10),
        ("<think>Score: 3?</think>\nScore: 0", 0),
        ("Score: 10.5", None),
        ("Score: 12", None),
        ("Score: 7.25", None),
        ("Score: -1", None),
        ("Score: 7/10", None),
        ("Score: 3\nScore: 7", None),
        ("7", None),
        ("[[7]]", None),
        ("Score: 7\nIt names the owl.", None),
        ("", None),
    ],
)
def test_a_score_is_one_last_line(reply: str, score: float | None) -> None:
    assert parse_score(reply, ended=True) == score
    assert parse_score(reply, ended=False) is None


def test_other_replies_are_as_strict() -> None:
    supports = {"full": 1.0, "partial": 0.5, "none": 0.0, "fully": None, "no": None, "full or partial": None}
    for said, value in supports.items():
        assert parse_support(f"Support: {said}", ended=True) == value
    facts = {
        "1. The owl sleeps.\n\n2) It wakes.": ["The owl sleeps.", "It wakes."],
        "None": [],
        "none.": [],
        "2. It wakes.": None,
        "1. It wakes.\n1. It sleeps.": None,
        "Here they are:\n1. It wakes.": None,
        "1. It wakes.\n- It sleeps.": None,
        "1. None": [],
        "1. a\n2. b\n3. c": None,  # more than the most
        "1.": None,
        "": None,
    }
    for reply, found in facts.items():
        assert parse_facts(reply, ended=True, most=2) == found
        assert parse_facts(reply, ended=False, most=2) is None
    extracts = {
        "No relevant information.": "",
        '"no relevant information"': "",
        "The owl sleeps. There is no relevant information on its food.": (
            "The owl sleeps. There is no relevant information on its food."
        ),
        "malformed": "malformed",
        " ": None,
    }
    for reply, said in extracts.items():
        assert parse_extract(reply, ended=True) == said
        assert parse_extract(reply, ended=False) is None


class Engine:
    """Answers ``training-n`` by ``answers[n]``, and judges by ``says(kind, response or fact, is_second)``."""

    name = "scripted 1"

    def __init__(
        self, model_dir: Path, answers: Sequence[str], says: Callable[[str, str, bool], str], fails_after: int | None
    ) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))
        self._answers, self._says, self._fails_after = answers, says, fails_after
        self.asked: list[str] = []
        self.prompts: dict[str, str] = {}

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            if self._fails_after is not None and len(self.asked) >= self._fails_after:
                raise KeyboardInterrupt
            self.asked.append(request.id)
            prompt = self.prompts[request.id] = self._tokenizer.decode(list(request.prompt_ids))
            question, last = request.id.split("/")[0], request.id.rpartition("/")[2]
            if last.startswith("training"):
                text = self._answers[int(last.rpartition("-")[2])].replace("PLACE", question[:-3])
            else:
                kind = request.id.split("/")[-2 if last in ("first", "second") else -1].partition("-")[0]
                field = "Statement" if kind == "support" else "Response"
                said = prompt.partition(f"\n{field}: ")[2].partition("\n")[0]
                text = self._says(kind, said, last == "second")
            yield GenerationResult(request.id, tuple(self._tokenizer.encode(text, add_special_tokens=False)), "stop")


def worked(kind: str, said: str, second: bool) -> str:
    """Grade an answer by its last word, as in the worked example. Facts are "a1", "a2", and so on."""
    if kind == "extract":
        return "It holds something."
    name = said.split()[-1][0]
    helpful, logical, supports, complete = WORKED[name]
    if kind == "facts":
        return "\n".join(f"{n}. It is {name}{n}" for n in range(1, len(supports) + 1))
    if kind == "support":
        return f"Support: {SUPPORTS[supports[int(said[-1]) - 1]]}"
    return f"Reasons.\nScore: { ({'helpfulness': helpful, 'logicality': logical, 'completeness': complete}[kind]):g}"


PLACES = ("harbour", "tower", "mill")


@pytest.fixture
def build(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Builds pairs of best and worst, and returns the engine that answered and graded."""
    # Words in common tell which passages are near, so that no model is needed.
    monkeypatch.setattr(Grader, "_evaluator", LexicalEvaluator())

    def run(
        output: Path,
        answers: Sequence[str],
        *overrides: str,
        says: Callable[[str, str, bool], str] = worked,
        references: bool = True,
        places: Sequence[str] = PLACES[:1],
        fails_after: int | None = None,
        code: int = 0,
        options: Sequence[str] = (),
    ) -> Engine:
        weather = [f"On day {day} nothing was written down but wind of kind {day * 7}. " for day in range(30)]
        rows = []
        for place in places:
            text = "".join([*weather[:12], f"The {place} of Vell holds thing{place}. ", *weather[12:]])
            question: dict[str, Any] = {"question": f"What does the {place} of Vell hold?"}
            question |= {"answers": [f"thing{place}"]} if references else {}
            rows.append({"doc_id": place, "context": text, "questions": [question]})
        file = tmp_path / "my.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        engine = Engine(tiny_model_dir, answers, says, fails_after)
        for module in (logodata.build.responses, logodata.judge.asked_judge):
            monkeypatch.setattr(module, "open_engine", lambda *_: engine)
        settings = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
        settings += ["contexts.critical_top=2", "generation.max_new_tokens=8", "judge.require_ended=true"]
        settings += ["generation.preferred=best_versus_worst", f"generation.num_candidates={len(answers)}"]
        settings += ["judge.grades.least_graded=2", "judge.grades.rejudge_share=0", *overrides, *options]
        assert main(["build", str(file), *settings, "--model", str(tiny_model_dir), "-o", str(output)]) == code
        return engine

    return run


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def grades(folder: Path) -> dict[str, float | None]:
    found = {}
    for row in rows(folder, "decisions.jsonl"):
        if "grades" in row:
            found[row["text"].split()[-1].strip(".")] = row["grades"]["grade"]
    return found


def test_the_worked_example(build: Callable[..., Engine], tmp_path: Path) -> None:
    answers = [f"It is {name}" for name in "abc"]
    engine = build(tmp_path / "out", answers, references=False)
    assert grades(tmp_path / "out") == pytest.approx({"a": 30.25 / 4, "b": 34.3333333 / 4, "c": 23.5 / 4})
    [sample] = read_samples(tmp_path / "out")
    assert (sample.chosen.text, [it.text for it in sample.rejected]) == ("It is b", ["It is c"])
    assert sample.chosen.strategy == "training"
    assert (sample.chosen.verdict, sample.answers, sample.answer_in_critical) == (None, [], None)
    # ceil(P / 4096) + n (4 + F), and the answers themselves.
    facts = sum(len(WORKED[name][2]) for name in "abc")
    assert len(engine.asked) == len(set(engine.asked)) == 3 + 1 + 3 * 4 + facts
    stats = read_stats(tmp_path / "out").grades
    assert stats is not None
    assert (stats.graded, stats.malformed, stats.graded_again, stats.pairs_again) == (3, 0, 0, 0)
    assert (stats.preferred, stats.dispreferred) == pytest.approx((34.3333333 / 4, 23.5 / 4))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the best one by its grade of 3 answers" in card
    assert "it graded 3 answers" in card
    assert rows(tmp_path / "out", "decisions.jsonl")[0]["grades"]["facts"][1] == {"text": "It is a2", "support": 0.5}


def test_ties_are_no_pair(build: Callable[..., Engine], tmp_path: Path) -> None:
    engine = build(tmp_path / "out", ["It is a", "It is a", "So it is a"], references=False, code=2)
    [row] = rows(tmp_path / "out", "rejected.jsonl")
    assert (row["reason"], row["stage"]) == ("grades_too_close", "judge")
    # Equal answers are asked about once, and both have the grade.
    assert sum(request.endswith("/facts") for request in engine.asked) == 2
    assert [row["grades"]["grade"] for row in rows(tmp_path / "out", "decisions.jsonl")] == [30.25 / 4] * 3
    stats = read_stats(tmp_path / "out").grades
    assert stats is not None
    assert stats.graded == 2


def test_the_gap_decides_and_needs_no_new_replies(build: Callable[..., Engine], tmp_path: Path) -> None:
    answers = ["It is a", "It is b"]  # 7.56 and 8.58
    build(tmp_path / "wide", answers, "judge.grades.gap=1.1", references=False, code=2)
    assert rows(tmp_path / "wide", "rejected.jsonl")[0]["reason"] == "grades_too_close"
    (tmp_path / "out").mkdir()
    (tmp_path / "wide" / "work").rename(tmp_path / "out" / "work")
    for name in ("settings.json", "outcomes.jsonl"):
        (tmp_path / "out" / "work" / name).unlink(missing_ok=True)
    engine = build(tmp_path / "out", answers, "judge.grades.gap=1", references=False)
    assert engine.asked == []
    assert len(read_samples(tmp_path / "out")) == 1


def test_no_grade_outvotes_the_reference(build: Callable[..., Engine], tmp_path: Path) -> None:
    # The rules find a and c right, b (the best grade) wrong.
    answers = ["It holds thingPLACE: a", "It holds sand: b", "It holds thingPLACE: c", "It holds salt, c"]
    build(tmp_path / "out", answers)
    [sample] = read_samples(tmp_path / "out")
    assert (sample.chosen.text[-1], sample.rejected[0].text) == ("a", "It holds salt, c")
    kept = Counter((row["role"], row["verdict"], row["kept"]) for row in rows(tmp_path / "out", "decisions.jsonl"))
    assert kept == {
        ("preferred", "right", True): 1,
        ("preferred", "right", False): 1,
        ("rejected", "wrong", True): 1,
        ("rejected", "wrong", False): 1,
    }
    assert read_stats(tmp_path / "out").purity == 1
    # Grades reverse the rules: the best wrong answer is above every right one, and no pair is made of the others.
    build(tmp_path / "none", ["It holds thingPLACE: c", "It holds sand: b", "It is sand: a"], code=2)
    assert rows(tmp_path / "none", "rejected.jsonl")[0]["reason"] == "grades_too_close"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (["It holds sand: a", "It holds salt: b"], "preferred_wrong"),
        (["It holds thingPLACE: a", "It holds thingPLACE: b"], "rejected_right"),
    ],
)
def test_nothing_is_graded_where_the_rules_leave_no_pair(
    build: Callable[..., Engine], tmp_path: Path, answers: list[str], reason: str
) -> None:
    engine = build(tmp_path / "out", answers, code=2)
    assert rows(tmp_path / "out", "rejected.jsonl")[0]["reason"] == reason
    assert len(engine.asked) == 2


@pytest.mark.parametrize("kind", ["helpfulness", "logicality", "completeness", "facts", "support", "extract"])
def test_a_malformed_reply_leaves_no_grade(build: Callable[..., Engine], tmp_path: Path, kind: str) -> None:
    def says(asked: str, said: str, second: bool) -> str:
        if asked == kind and (kind == "extract" or said.split()[-1][0] == "c"):
            return "" if kind == "extract" else "I would say 9, [[9]]"
        return worked(asked, said, second)

    answers = ["It is a", "It is b", "It is c"]
    build(tmp_path / "out", answers, "judge.grades.gap=1.1", says=says, references=False, code=2)
    [row] = rows(tmp_path / "out", "rejected.jsonl")
    assert row["reason"] == ("too_few_grades" if kind == "extract" else "grades_too_close")
    names = {"facts": "faithfulness", "support": "faithfulness", "extract": "completeness"}
    for decision in rows(tmp_path / "out", "decisions.jsonl"):
        is_faulty = kind == "extract" or decision["text"].endswith("c")
        assert (decision["grades"][names.get(kind, kind)] == "malformed") == is_faulty
        assert (decision["grades"]["grade"] is None) == is_faulty
    stats = read_stats(tmp_path / "out").grades
    assert stats is not None
    assert (stats.graded, stats.malformed) == ((0, 3) if kind == "extract" else (2, 1))


def test_prompts_that_exceed_the_window_are_counted(build: Callable[..., Engine], tmp_path: Path) -> None:
    engine = build(
        tmp_path / "out", ["It is a", "It is b"], "judge.grades.max_new_tokens=4000", references=False, code=2
    )
    assert all("training" in request for request in engine.asked)
    stats = read_stats(tmp_path / "out").grades
    assert stats is not None
    assert (stats.graded, stats.malformed, stats.exceeds_window) == (0, 0, 2)


def test_a_fact_whose_number_is_nowhere_is_partial_at_most(build: Callable[..., Engine], tmp_path: Path) -> None:
    def says(kind: str, said: str, second: bool) -> str:
        if kind == "facts":
            return "1. It had 731 doors" if said.endswith("a") else "None"
        return {"extract": "It holds something.", "support": "Support: full"}.get(kind, "Score: 10")

    answers = ["It is a", "It is b"]
    build(tmp_path / "out", answers, "judge.grades.gap=0.5", says=says, references=False)
    assert grades(tmp_path / "out") == {"a": 35 / 4, "b": 10}
    # An answer without facts is one fact.
    facts = {row["text"][-1]: row["grades"]["facts"] for row in rows(tmp_path / "out", "decisions.jsonl")}
    assert facts["b"] == [{"text": "It is b", "support": 1.0}]
    build(tmp_path / "off", answers, "judge.match_numbers=false", says=says, references=False, code=2)
    assert grades(tmp_path / "off") == {"a": 10, "b": 10}


def test_what_the_judge_is_shown(build: Callable[..., Engine], tmp_path: Path) -> None:
    def says(kind: str, said: str, second: bool) -> str:
        if kind == "extract":
            parts = len(shown)
            shown.append(said)
            return "No relevant information" if parts == 0 else f"malformed {parts}"
        return worked(kind, said, second)

    shown: list[str] = []
    overrides = ("judge.grades.extract_tokens=64", "judge.grades.passage_tokens=24", "judge.grades.num_passages=2")
    engine = build(
        tmp_path / "out",
        ["thingharbour a", "It is c"],
        *overrides,
        "judge.grades.rejudge_share=1",
        says=says,
        references=False,
    )
    [sample] = read_samples(tmp_path / "out")
    context = "\n".join(chunk.text for chunk in sample.chunks)
    asked = engine.prompts
    assert len(shown) > 2
    extracts = [prompt for request, prompt in asked.items() if "/extract-" in request]
    parts = [prompt.partition("longer text.\n\n")[2].rpartition("\n\nQuestion: ")[0] for prompt in extracts]
    assert "".join(parts).replace("\n", "") == context.replace("\n", "")
    complete = asked["harbour-01/preferred-0/completeness/first"]
    assert "% to 100%] malformed " in complete
    assert "[0% to" not in complete
    wordings = {asked[f"harbour-01/preferred-0/completeness/{which}"] for which in ("first", "second")}
    assert len(wordings) == 2
    support = asked["harbour-01/preferred-0/support-0/first"]
    assert support.count("On day") < context.count("On day") / 2


def test_wordings_that_disagree_are_measured(build: Callable[..., Engine], tmp_path: Path) -> None:
    def says(kind: str, said: str, second: bool) -> str:
        reply = worked(kind, said, second)
        if kind == "helpfulness" and second:
            return "Score: 10" if said.endswith("a") else "Score: 0"
        return reply

    answers = [f"It is {name}" for name in "abc"]
    build(tmp_path / "out", answers, "judge.grades.rejudge_share=1", says=says, references=False, places=PLACES)
    stats = read_stats(tmp_path / "out").grades
    assert stats is not None
    first, second = ([30.25, 34.33, 23.5], [32.25, 25.33, 14.5])
    assert stats.rank_correlation == pytest.approx(spearmanr(first, second).statistic)
    assert stats.rank_correlation_interval == pytest.approx((0.5, 0.5))
    assert (stats.graded_again, stats.same_best, stats.same_worst) == (3, 0, 1)
    assert (stats.pairs_again, stats.pairs_agree) == (3, 1)
    assert "have the same order in both" in (tmp_path / "out" / "README.md").read_text()
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(5, size=8).tolist(), rng.integers(5, size=8).tolist()
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_an_interrupted_build_ends_as_one_that_was_not(build: Callable[..., Engine], tmp_path: Path) -> None:
    answers = ["It holds thingPLACE: a", "It holds sand: b", "It holds thingPLACE: b", "It holds salt, c"]
    overrides = ("judge.grades.rejudge_share=0.5", "generation.group_size=2")
    whole = build(tmp_path / "whole", answers, *overrides, places=PLACES)
    asked: list[str] = []
    for fails_after in (7, 11, 23, 3, 31):
        engine = build(tmp_path / "out", answers, *overrides, places=PLACES, fails_after=fails_after, code=130)
        asked += engine.asked
    asked += build(tmp_path / "out", answers, *overrides, places=PLACES).asked
    assert sorted(asked) == sorted(whole.asked)
    for name in ("data/train-00000-of-00001.parquet", "stats.json", "decisions.jsonl", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shards_join_to_the_same_data(build: Callable[..., Engine], tmp_path: Path) -> None:
    answers = ["It holds thingPLACE: a", "It holds sand: b", "It holds thingPLACE: b", "It holds salt, c"]
    build(tmp_path / "whole", answers, places=PLACES)
    for number in (1, 2):
        build(tmp_path / f"part-{number}", answers, places=PLACES, options=["--shard", f"{number}/2"])
    assert main(["merge", str(tmp_path / "part-1"), str(tmp_path / "part-2"), "-o", str(tmp_path / "joined")]) == 0
    for name in ("data/train-00000-of-00001.parquet", "stats.json", "decisions.jsonl"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("judge.grades=null",), "needs a judge that grades"),
        (("generation.preferred=model", "generation.num_candidates=1"), "best_versus_worst only"),
        (("judge.grades.least_graded=5",), "is less than judge.grades.least_graded=5"),
        (("judge.model.rejudge_share=0",), "set one of them to null"),
    ],
)
def test_settings_that_do_not_go_together(
    build: Callable[..., Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    build(tmp_path / "out", ["a", "b"], *overrides, code=2)
    assert said in capsys.readouterr().err


def _grades(name: str, score: float | Ungraded, completeness: float | Ungraded = 1) -> Grades:
    grade = None if isinstance(score, str) else score
    facts = [GradedFact(text=name, support=1.0)]
    return Grades(helpfulness=score, logicality=1, faithfulness=1, completeness=completeness, facts=facts, grade=grade)


def _answer(
    name: str, grade: float | None, *, verdict: Any = None, rule: Any = None, role: Any = "preferred"
) -> Decision:
    response = Response(strategy="training", text=name, token_ids=[1], ended=True, verdict=verdict)
    made = _grades(name, "malformed" if grade is None else grade)
    return Decision(Question(id="q", question="?"), role, 0, response, rule, grades=made)


def _row(
    name: str,
    first: Grades,
    second: Grades | None = None,
    *,
    role: Role = "preferred",
    kept: bool = False,
) -> DecisionRow:
    response = Response(strategy="training", text=name, token_ids=[1], ended=True)
    decision = Decision(Question(id="q", question="?"), role, 0, response, None, grades=first, second_grades=second)
    return decision.row("my.jsonl", kept=kept)


def test_grades_are_counted_by_hand() -> None:
    """Three questions with answers a, b and c; each answer with the grades of both wordings."""

    def answers(kept: bool, **grades: tuple[float, float | Ungraded]) -> list[DecisionRow]:
        roles: dict[str, Role] = {"a": "preferred", "b": "rejected", "c": "preferred"}
        return [
            _row(name, _grades(name, one), _grades(name, two), role=roles[name], kept=kept and name != "c")
            for name, (one, two) in grades.items()
        ]

    counts = GradeCounts()
    assert counts.result() is None
    longer = sample_of("longer", responses=(5, 3)).model_copy(update={"doc_id": "x"})
    counts.add(QuestionOutcome(id="1", decisions=answers(True, a=(8, 6), b=(2, 3), c=(5, "malformed")), sample=longer))
    # The second wording grades both answers of the pair alike, so it does not agree.
    equal = sample_of("equal", responses=(4, 4)).model_copy(update={"doc_id": "y"})
    counts.add(QuestionOutcome(id="2", decisions=answers(True, a=(9, 3), b=(3, 3), c=(4, 1)), sample=equal))
    none = REJECTED.model_copy(update={"doc_id": "z"})
    counts.add(QuestionOutcome(id="3", decisions=answers(False, a=(7, 9), b=(1, 2)), rejected=none))
    missing = [
        _row("both", _grades("both", "malformed", "exceeds_window")),
        _row("one", _grades("one", "exceeds_window")),
    ]
    counts.add(QuestionOutcome(id="4", decisions=missing, rejected=none))
    correlations = [1.0, rank_correlation([9, 3, 4], [3, 3, 1]), 1.0]
    expected = GradeStats(
        graded=8,
        malformed=1,
        exceeds_window=1,
        preferred=8.5,
        dispreferred=2.5,
        longer_preferred=1 / 2,
        longer_preferred_interval=wilson_interval(1, 2),
        graded_again=3,
        ungraded_again=1,
        compared=3,
        rank_correlation=fmean(correlations),
        rank_correlation_interval=mean_interval(correlations, ["x", "y", "z"]),
        same_best=1.0,
        same_worst=2 / 3,
        pairs_again=2,
        pairs_agree=1 / 2,
        pairs_agree_interval=wilson_interval(1, 2),
    )
    found = counts.result()
    assert found is not None
    assert found.model_dump() == {field: pytest.approx(value) for field, value in expected.model_dump().items()}


def test_who_may_stand_on_which_side() -> None:
    free = [_answer("a", 5), _answer("b", 6, rule="preferred_not_ended"), _answer("c", 7, rule="preferred_empty")]
    found = sides(free, JudgeSettings())
    assert not isinstance(found, str)
    assert [[answer.response.text for answer in side] for side in found] == [["a"], ["a", "b"]]
    # With the rules switched off a verdict says nothing.
    measured = [_answer("a", 5, verdict="wrong"), _answer("b", 6, verdict="right")]
    found = sides(measured, JudgeSettings(enabled=False))
    assert not isinstance(found, str)
    assert [len(side) for side in found] == [2, 2]
    half = [_answer("a", 5, verdict="half_right", rule="preferred_wrong"), _answer("b", 5, verdict="right")]
    assert sides(half, JudgeSettings()) == "rejected_right"


def test_best_and_worst_of_equal_answers_are_the_first_ones() -> None:
    answers = [_answer("a", 5), _answer("b", 8), _answer("c", 8), _answer("d", 5), _answer("e", None)]
    pair = best_and_worst(answers, answers, GradeSettings(least_graded=4))
    assert not isinstance(pair, str)
    assert [answer.response.text for answer in pair] == ["b", "a"]
    assert best_and_worst(answers, answers, GradeSettings(least_graded=5)) == "too_few_grades"
    assert best_and_worst(answers, answers, GradeSettings(least_graded=4, gap=3)) == pair, "the gap is the least one"
    assert best_and_worst(answers, answers, GradeSettings(least_graded=4, gap=3.5)) == "grades_too_close"
    assert best_and_worst(answers[4:], answers[:4], GradeSettings(least_graded=4)) == "too_few_grades"
    # Four copies of one answer, and another one, are two.
    copies = [*(_answer("a", 8) for _ in range(4)), _answer("b", 5)]
    assert best_and_worst(copies, copies, GradeSettings(least_graded=3)) == "too_few_grades"
    assert best_and_worst(copies, copies, GradeSettings(least_graded=2)) == (copies[0], copies[4])
