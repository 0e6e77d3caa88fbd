"""RULER's scores, the lengths of its prompts, its averages, and a run from recipe to report."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.engines import GenerationResult
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.intervals import summarise
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Results, SampleRow, read_results
from logoeval.report.sections.ruler import score_table
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.ruler import building, sources
from logoeval.tasks.ruler.building import SampleBuilder, first_true
from logoeval.tasks.ruler.prompts import Frame
from logoeval.tasks.ruler.scores import clean_prediction, string_match_all, string_match_part
from logoeval.tasks.ruler.settings import RulerSettings
from logoeval.tasks.ruler.summary import (
    EffectiveLength,
    RulerFacts,
    effective_length,
    find_effective_length,
    limits,
    metrics,
    scores_of,
)
from logoeval.tasks.ruler.task import EVALUATOR, find_lengths
from logoeval.tasks.ruler.task_table import GROUPS, OFFICIAL_LENGTHS, TASKS
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render
from tests.logoeval.synthetic import ruler, task_result

HERE = Path(__file__).parent
FILES: dict[str, Any] = {
    "essays": HERE / "essays.json",
    "squad": HERE / "squad.json",
    "hotpot": HERE / "hotpot.json",
}


def score_cases() -> list[dict[str, Any]]:
    """What RULER's functions say; those without predictions have no score."""
    return json.loads(lzma.decompress((HERE / "scores.json.xz").read_bytes()))


@pytest.mark.parametrize("case", score_cases(), ids=lambda case: f"{case['metric']}, {case['about']}")
def test_scores_are_the_official_ones(case: dict[str, Any]) -> None:
    metric = {"string_match_all": string_match_all, "string_match_part": string_match_part}[case["metric"]]
    cleaned = [clean_prediction(text) for text in case["predictions"]]
    assert cleaned == case["processed"]
    assert f"{sum(not text for text in cleaned)}/{len(cleaned)}" == case["nulls"]
    for predictions in (case["predictions"], cleaned):
        if case["score"] is None:
            with pytest.raises(ZeroDivisionError):
                metric(predictions, case["references"])
        else:
            assert metric(predictions, case["references"]) == case["score"]


def test_the_smallest_number_is_found_with_few_tries() -> None:
    for answer in (*range(1, 70), 1000):
        for guess in (0, 1, 2, 30, answer - 1, answer, answer + 1, answer + 7):
            tried: list[int] = []

            def test(number: int, answer: int = answer, tried: list[int] = tried) -> bool:
                tried.append(number)
                return number >= answer

            assert first_true(test, guess) == answer
            assert min(tried) > 0
            assert len(set(tried)) == len(tried)
            assert len(tried) <= 2 * abs(answer - max(1, guess)).bit_length() + 2


# Prompts of our own


SETTINGS = RulerSettings(num_samples=4, **FILES)
# The tiny tokenizer has a token for nearly each character.
LENGTHS = {
    "niah_single_1": 3000,
    "niah_multikey_2": 3000,
    "niah_multikey_3": 3000,
    "vt": 4000,
    "cwe": 9000,
    "fwe": 4000,
    "qa_1": 5000,
    "qa_2": 5000,
}


def builder(
    tokenizer: Any, name: str, *, settings: RulerSettings = SETTINGS, seed: int = 0, reasons: bool = False
) -> SampleBuilder:
    frame = Frame(tokenizer, settings.template)
    return SampleBuilder(TASKS[name], LENGTHS.get(name, 8000), settings, frame, seed=seed, reasons=reasons)


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_fills_its_length_and_depends_on_nothing_before_it(tiny_tokenizer: Any, name: str) -> None:
    length, task = LENGTHS.get(name, 8000), TASKS[name]
    made = builder(tiny_tokenizer, name)
    samples = [made.build(index) for index in range(4)]
    assert [sample.id for sample in samples] == [f"{name}-{length}-{index}" for index in range(4)]
    room = length - task.max_new_tokens
    for index, sample in enumerate(samples):
        assert len(sample.prompt_ids) <= room
        # One unit more would be too long, unless sample 0 had no room for it; coded words go up in steps of L / 32.
        assert sample.num_units == made._num_units or not made._fits(sample.num_units + 1, index)
    assert samples[0].num_units == made._num_units
    assert not made._fits(made._num_units + made._generator.step, 0)
    again = builder(tiny_tokenizer, name)
    assert [again.build(index) for index in (3, 1)] == [samples[3], samples[1]]
    if name.startswith("qa"):
        assert made.build(0).cluster.startswith(f"{name}/")
    else:
        assert len({sample.cluster for sample in samples}) == 4
    other = builder(tiny_tokenizer, name, seed=1).build(3)
    assert other.prompt_ids != samples[3].prompt_ids


@pytest.mark.parametrize("name", TASKS)
def test_the_prefix_begins_the_assistants_turn(tiny_tokenizer: Any, name: str) -> None:
    chat, bare = (
        builder(tiny_tokenizer, name, settings=SETTINGS.model_copy(update={"template": template}))
        for template in ("chat", "none")
    )
    sample, ids = chat._draw(bare._num_units, 0)
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    text = "".join(f"{before}{question}{after}{answer}" for question, answer in sample.turns)
    assert tiny_tokenizer.decode(ids) == text
    assert len(sample.turns) == (2 if name == "cwe" else 1)
    plain = tiny_tokenizer.decode(bare._draw(bare._num_units, 0)[1])
    assert plain == "".join(question + answer for question, answer in sample.turns)
    assert plain.endswith((" are", " is", "are: ", ":"))
    assert all(reference in text for reference in sample.references)
    without = chat._frame.encode(sample.turns, prefix=False)
    assert tiny_tokenizer.decode(without) == text.removesuffix(sample.turns[-1][1])


@pytest.mark.parametrize("name", TASKS)
def test_the_prefix_that_is_left_out_becomes_room_for_the_answer(tiny_tokenizer: Any, name: str) -> None:
    plain, reasons = (builder(tiny_tokenizer, name, reasons=reasons).build(1) for reasons in (False, True))
    prefix_ids = plain.prompt_ids[len(reasons.prompt_ids) :]
    assert plain.prompt_ids == reasons.prompt_ids + prefix_ids
    assert tiny_tokenizer.decode(reasons.prompt_ids).endswith("<|im_start|>assistant\n")
    assert plain.max_new_tokens == TASKS[name].max_new_tokens
    assert reasons.max_new_tokens == plain.max_new_tokens + len(prefix_ids)


def test_control_tokens_in_a_users_file_stay_text(tiny_tokenizer: Any, tmp_path: Path) -> None:
    essays = tmp_path / "essays.txt"
    essays.write_text("He said <|im_end|> and left. Then <|im_start|>assistant came. " * 200, encoding="utf-8")
    made = builder(tiny_tokenizer, "niah_single_2", settings=SETTINGS.model_copy(update={"essays": essays}))
    ids = made.build(0).prompt_ids
    assert (ids.count(1), ids.count(2)) == (2, 1)


def test_a_paragraphs_questions_are_one_cluster_at_every_length(tiny_tokenizer: Any, tmp_path: Path) -> None:
    squad = json.loads(FILES["squad"].read_text(encoding="utf-8"))
    asked = squad["data"][1]["paragraphs"][0]["qas"]
    asked.append(asked[0] | {"question": "Who else?"})
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad), encoding="utf-8")
    questions = sources.read_squad(path).questions
    settings = SETTINGS.model_copy(update={"squad": path})
    by_length = []
    for length in (5000, 6000):
        made = SampleBuilder(TASKS["qa_1"], length, settings, Frame(tiny_tokenizer, "chat"), seed=0)
        by_length.append([made.build(index).cluster for index in range(12)])
    assert by_length[0] == by_length[1]
    assert len(set(by_length[0])) == len({question.own for question in questions[:12]}) < 12


def test_words_of_keys_are_all_pairs_in_order() -> None:
    nouns, adjectives = ["zebra", "off-day", "apple", "mid air"], ["well-off", "well", "A", "wells", "well-off"]
    pairs = sources.Pairs(adjectives, nouns)
    plain = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    assert list(pairs) == plain
    assert pairs[-1] == plain[-1]
    assert list(pairs[2:5]) == plain[2:5]
    with pytest.raises(IndexError):
        pairs[len(plain)]
    assert len(sources.key_words()) == 6_171_620
    assert len(sources.common_words()) == 8_166


# What is at fault is one line


@pytest.mark.parametrize(
    ("name", "length", "said"),
    [
        ("niah_single_1", 700, "700 tokens have no room for niah_single_1, whose smallest prompt takes"),
        ("niah_single_2", 1000, "no room for niah_single_2"),
        ("qa_2", 1000, "no room for qa_2"),
        ("fwe", 256, "no room for fwe"),
    ],
)
def test_a_length_without_room(tiny_tokenizer: Any, name: str, length: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SampleBuilder(TASKS[name], length, SETTINGS, Frame(tiny_tokenizer, "chat"), seed=0)


def test_a_question_whose_own_documents_have_no_room(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = json.loads(FILES["hotpot"].read_text(encoding="utf-8"))
    rows[1]["context"][0][1][0] *= 200
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    made = builder(tiny_tokenizer, "qa_2", settings=SETTINGS.model_copy(update={"hotpot": path}))
    made.build(0)
    with pytest.raises(UserError, match="5000 tokens have no room for qa_2"):
        made.build(1)


def test_more_words_than_there_are(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "common_words", lambda: sources.common_words()[:60])
    with pytest.raises(UserError, match=r"4000 tokens hold more than the 60 words that cwe has"):
        SampleBuilder(TASKS["cwe"], 4000, SETTINGS, Frame(tiny_tokenizer, "chat"), seed=0)


def test_tasks_without_their_files_are_left_out_unless_they_are_named() -> None:
    few = RulerSettings()
    assert [task.name for task in few.chosen] == [
        "niah_single_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "vt",
        "cwe",
        "fwe",
    ]
    assert few.left_out == {
        "essays": ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"],
        "squad": ["qa_1"],
        "hotpot": ["qa_2"],
    }
    assert SETTINGS.left_out == {}
    assert [task.name for task in SETTINGS.chosen] == list(TASKS)
    named = RulerSettings(tasks=("qa_1", "vt"), squad=HERE / "squad.json")
    assert ([task.name for task in named.chosen], named.left_out) == (["vt", "qa_1"], {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ["qa_1"]}, r"qa_1 needs ruler\.squad=FILE"),
        ({"tasks": ["niah_multivalue", "vt"]}, r"niah_multivalue needs ruler\.essays=FILE"),
        ({"tasks": ["niah_singel_1"]}, "'niah_singel_1' is no task of RULER: did you mean 'niah_single_1'"),
        ({"tasks": ["vt", "vt"]}, "must not repeat an entry"),
        ({"lengths": ["4K", 4096]}, "must not repeat an entry"),
        ({"lengths": [255]}, "greater than or equal to 256"),
        ({"lengths": []}, "at least 1 item"),
        ({"threshold": 856}, "less than or equal to 100"),
    ],
)
def test_settings_that_mean_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RulerSettings(**given)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("essays", b"{", "not valid JSON"),
        ("essays", b'{"words": 1}', "damaged: lacks 'text'"),
        ("essays", b'{"text": " \\n "}', "the text is empty"),
        ("squad", b"\x1f\x8b broken", "cannot be unpacked"),
        ("squad", b"[]", "damaged: not a JSON object"),
        ("squad", b'{"data": []}', "holds no question with an answer"),
        (
            "squad",
            b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}',
            "lacks",
        ),
        (
            "squad",
            b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [], "is_impossible": '
            b"false}]}]}]}",
            "no answer or no document to the question 'q'",
        ),
        ("hotpot", b"{}", "not a JSON list"),
        ("hotpot", b'[{"question": "q", "answer": "a", "context": [["t", "s"]]}]', "question 0: damaged"),
        ("hotpot", b"[]", "holds no question with an answer"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / f"{name}.json"
    path.write_bytes(content)
    read = {"essays": sources.read_essays, "squad": sources.read_squad, "hotpot": sources.read_hotpot}[name]
    with pytest.raises(UserError, match=said) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_files_may_be_packed_or_a_folder_of_texts(tmp_path: Path) -> None:
    packed = tmp_path / "squad.json.gz"
    packed.write_bytes(gzip.compress(FILES["squad"].read_bytes()))
    assert sources.read_squad(packed) == sources.read_squad(FILES["squad"])
    text = json.loads(FILES["essays"].read_text(encoding="utf-8"))["text"]
    (tmp_path / "essays").mkdir()
    for number, half in enumerate((text[:2000], text[2000:])):
        (tmp_path / "essays" / f"{number}.txt").write_text(half, encoding="utf-8")
    joined = sources.read_essays(tmp_path / "essays")
    assert joined.words == f"{text[:2000]} {text[2000:]}".split()


# Averages and the effective length


PUBLISHED = [  # RULER's README: scores by length, Avg., wAvg. (inc), wAvg. (dec), effective length
    ("95.5 93.8 91.6 87.4 84.7 77.0", "88.3 85.4 91.3", 32768),  # Llama-3.1-8B
    ("96.7 95.8 96.0 95.9 95.9 94.4", "95.8 95.5 96.1", 131072),  # Gemini-1.5-pro
    ("88.1 85.5 84.5 82.7 75.5 68.9", "80.9 77.8 83.9", 4096),  # InternLM2.5
    ("82.3 78.4 73.7 69.1 68.1 65.0", "72.8 69.9 75.7", None),  # LWM
    ("95.1 93.8 83.6 63.1 2.4 0.0", "56.3 38.0 74.7", 8192),  # DBRX
    ("98.4 96.0 96.2 94.4 91.8 85.6", "93.7", 131072),  # Qwen3-32B, just
]


@pytest.mark.parametrize(("scores", "averages", "effective"), PUBLISHED)
def test_averages_are_those_of_rulers_table(scores: str, averages: str, effective: int | None) -> None:
    tasks, by_length = list(TASKS.values()), dict(zip(OFFICIAL_LENGTHS, map(float, scores.split()), strict=True))
    reported = metrics(tasks, OFFICIAL_LENGTHS, {"essays": "x"})
    rows = [
        SampleRow(
            id=f"{task.name}-{length}-{number}",
            cluster=f"{task.name}-{number}" if task.counts_any else f"{task.name}-{length}-{number}",
            prompt_hash="h",
            scores=scores_of(task, length, score / 100, is_null=False, reported=reported, lengths=OFFICIAL_LENGTHS),
            facts=RulerFacts.of(task, length).to_json(),
        )
        for task in tasks
        for length, score in by_length.items()
        for number in range(2)
    ]
    wanted = [metric for metric in reported if metric.key in ("average", "rising", "falling")]
    summary = summarise(wanted, rows)
    whole = [row.value for row in summary if not row.slice]
    for row in summary:  # all samples of a length agree: nothing varies, whatever is drawn
        assert row.low is not None
        assert row.high is not None
        assert abs(row.high - row.low) < 1e-9
    for value, published in zip(whole, averages.split(), strict=False):
        assert abs(100 * value - float(published)) < 0.0501
    assert {row.slice["length"]: round(100 * row.value, 6) for row in summary if row.slice} == by_length
    found = find_effective_length(by_length, 85.6)
    assert found is not None
    assert (found.length, found.shortest, found.longest) == (effective, 4096, 131072)


def test_the_effective_length_is_said_with_what_was_tested() -> None:
    assert str(EffectiveLength(8192, 4096, 16384, 85.6)) == (
        "8,192 tokens at a threshold of 85.6 (tested from 4,096 to 16,384 tokens)"
    )
    assert str(EffectiveLength(4096, 4096, 4096, 80)) == (
        "at least 4,096 tokens at a threshold of 80 (tested at 4,096 tokens alone)"
    )
    assert str(EffectiveLength(None, 4096, 8192, 85.6)).startswith("below 4,096 tokens")
    assert find_effective_length({}, 85.6) is None
    # A length that passes above one that does not is no effective length.
    assert find_effective_length({4096: 90.0, 8192: 80.0, 16384: 95.0}, 85.6) == EffectiveLength(
        4096, 4096, 16384, 85.6
    )


def test_a_part_has_no_average_and_says_so() -> None:
    whole = task_result("ruler", ruler(0.0), adapter=None)
    part = task_result("ruler", ruler(0.0, ["vt", "qa_1", "qa_2"]), adapter=None)
    assert effective_length(whole) is not None
    assert effective_length(part) is None
    keys = [metric.key for metric in part.metrics]
    assert keys == ["group:question answering", "task:vt", "task:qa_1", "task:qa_2", "nulls"]
    assert {metric.key for metric in whole.metrics} >= {"average", "rising", "falling"}
    assert list(limits(part)) == [
        "3 of 13 tasks: no average, no effective length",
        "4 of RULER's 500 samples a task and length",
    ]
    table = score_table(whole, "t")
    assert [row[0] for row in table.rows] == [*TASKS, "mean of 13", "empty"]
    assert [row[0] for row in score_table(part, "t").rows] == ["vt", "qa_1", "qa_2", "empty"]
    assert len(GROUPS) == 4


# A run


def answers(tokenizer: Any, texts: Sequence[str]) -> Callable[..., GenerationResult]:
    return lambda request: GenerationResult(
        request.id, tuple(encode_text(tokenizer, texts[sum(request.prompt_ids) % len(texts)])), "stop"
    )


TASKS_OF_RUN = ("niah_multikey_3", "fwe", "qa_1")


@pytest.fixture
def recipe(tiny_model_dir: Path) -> EvalRecipe:
    """Two lengths at which three tasks have room for the tiny tokenizer's tokens."""
    settings = RulerSettings(tasks=TASKS_OF_RUN, lengths=(1700, 1900), num_samples=6, squad=HERE / "squad.json")
    return EvalRecipe(model=str(tiny_model_dir), ruler=settings)


def test_a_run_is_scored_resumed_and_compared(
    recipe: EvalRecipe, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logoeval.tasks.ruler.questions.QuestionGenerator.first", 3)
    say = answers(tiny_tokenizer, ["\t\n ", "It is Alma.", "1, 2, a, e"])
    with monkeypatch.context() as patch:
        patch.setattr(Session, "engine", FakeEngine(say, limit=8))
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe, ["ruler"], tmp_path / "a")
    engine = FakeEngine(say)
    monkeypatch.setattr(Session, "engine", engine)
    result = evaluate(recipe, ["ruler"], tmp_path / "a").tasks["ruler"]
    assert engine.answered == 36 - 8
    assert evaluate(recipe, ["ruler"], tmp_path / "b").tasks["ruler"].samples == result.samples
    assert result.settings["lengths"] == [1700, 1900]
    assert result.settings["wonderwords"] is None  # none of the three needs its words
    assert result.sources == {"squad": str((HERE / "squad.json").resolve())}

    files = sorted((tmp_path / "a" / "predictions" / "ruler").glob("*.jsonl"))
    lines = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(files) == 6
    assert {line["id"] for line in lines} == {sample.id for sample in result.samples}
    table = {row[0]: row[1:] for row in score_table(result, "t").rows}
    for number, length in enumerate((1700, 1900)):
        for name in TASKS_OF_RUN:
            part = [line for line in lines if (line["task"], line["length"]) == (name, length)]
            score = string_match_part if name == "qa_1" else string_match_all
            official = score([line["pred"] for line in part], [line["outputs"] for line in part])
            assert table[name][number] == f"{official:.2f}"
        nulls = sum(not line["pred"].strip() for line in lines if line["length"] == length)
        assert table["empty"][number] == f"{nulls}/18"
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    page = render(comparison)
    assert "Not the whole benchmark: 3 of 13 tasks: no average, no effective length." in page
    assert "niah_multikey_3" in page
    assert {row.label for row in comparison.rows if not row.slice} == {
        "RULER niah_multikey_3",
        "RULER fwe",
        "RULER qa_1",
        "RULER, empty answers",
    }


def test_a_base_model_needs_no_chat_template(
    recipe: EvalRecipe, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "engine", FakeEngine(answers(tiny_tokenizer, ["a"])))
    monkeypatch.setattr(Session, "tokenizer", property(lambda _: pytest.fail("the tokenizer with its chat template")))
    settings = recipe.ruler.model_copy(update={"template": "none", "tasks": ("fwe",)})
    results: Results = evaluate(recipe.model_copy(update={"ruler": settings}), ["ruler"], tmp_path / "out")
    assert len(results.tasks["ruler"].samples) == 12
    (path,) = (tmp_path / "out").rglob("fwe-1700.jsonl")
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["stop_ids"] == [2]


def test_lengths_follow_the_window(recipe: EvalRecipe) -> None:
    session = Session(recipe)
    assert find_lengths(recipe.ruler, session) == (1700, 1900)
    with pytest.raises(UserError, match=r"2048 tokens holds none of RULER's lengths, which begin at 4096"):
        find_lengths(RulerSettings(), session)
    with pytest.raises(
        UserError,
        match=r"ruler\.lengths: the longest, 4096 tokens with the answer needs 4096 positions, the model has 2048",
    ):
        find_lengths(RulerSettings(lengths=(4096, 1024)), session)
    tight = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"max_model_len": 1800})})
    with pytest.raises(
        UserError, match=r"the longest, 1900 tokens with the answer needs 1900 positions, engine\.max_model_len is 1800"
    ):
        find_lengths(recipe.ruler, Session(tight))


def test_a_model_that_reasons_gets_no_prefix_and_its_reasoning_is_not_searched(
    recipe: EvalRecipe, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe.ruler.model_copy(update={"tasks": ("fwe",), "lengths": (1700,)})
    made = SampleBuilder(TASKS["fwe"], 1700, settings, Frame(tiny_tokenizer, "chat"), seed=0, reasons=True)
    samples = [made.build(index) for index in range(6)]
    prefix_ids = encode_text(tiny_tokenizer, TASKS["fwe"].prompt[1])
    assert all(len(sample.prompt_ids) + sample.max_new_tokens <= 1700 for sample in samples)
    wanted = {sample.id: sample.references for sample in samples}
    answered = 50 + len(prefix_ids)

    def say(request: Any) -> GenerationResult:
        assert request.sampling.max_new_tokens == answered + 340
        first, *others = wanted[request.id]
        text = f"<think>{others}</think>" if request.id != "fwe-1700-5" else f"<think>{first} " * 20
        thought = encode_text(tiny_tokenizer, text)
        # The prefix is said again, and the last of the official tokens holds the end of the word.
        said = encode_text(tiny_tokenizer, first)
        answer = [*prefix_ids, *encode_text(tiny_tokenizer, "." * 50)[: 50 - len(said)], *said]
        return GenerationResult(request.id, (*thought, *answer, *encode_text(tiny_tokenizer, others[0])), "stop")

    monkeypatch.setattr(Session, "engine", FakeEngine(say))
    thinking = recipe.model_copy(update={"thinking_tokens": 340, "ruler": settings})
    result = evaluate(thinking, ["ruler"], tmp_path / "out").tasks["ruler"]
    assert [sample.scores["task:fwe"] for sample in result.samples] == [1 / 3] * 5 + [0.0]
    assert [sample.scores["reasoning_cut"] for sample in result.samples] == [0.0] * 5 + [1.0]
    assert score_table(result, "t").rows[-1][1:] == ["1/6", "1/6"]
    assert result.settings["answer_prefix"] is False
    with pytest.raises(UserError, match=r"1700 tokens with the answer and thinking_tokens=349 needs 2049 positions"):
        find_lengths(settings, Session(thinking.model_copy(update={"thinking_tokens": 349})))
    bare = settings.model_copy(update={"template": "none"})
    with pytest.raises(UserError, match=r"template=none asks without a chat template, and thinking_tokens is 340"):
        find_lengths(bare, Session(thinking))


def test_what_is_missing_is_told_before_a_folder_is_made(
    recipe: EvalRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = recipe.ruler.model_copy(update={"num_samples": 26})
    with pytest.raises(UserError, match=r"holds 25 questions with an answer, ruler\.num_samples is 26"):
        evaluate(recipe.model_copy(update={"ruler": many}), ["ruler"], tmp_path / "out")
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    words = recipe.ruler.model_copy(update={"tasks": ("cwe",)})
    with pytest.raises(UserError, match=r"wonderwords is not installed.*pip install 'logo-align\[ruler\]'"):
        evaluate(recipe.model_copy(update={"ruler": words}), ["ruler"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    gone = recipe.ruler.model_copy(update={"squad": tmp_path / "gone.json"})
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        list(EVALUATOR.inputs(gone))


def test_the_command_prints_a_table_and_what_is_left_out(
    tiny_model_dir: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Session, "engine", FakeEngine(answers(tiny_tokenizer, ["a"])))
    words = ["ruler", "--model", str(tiny_model_dir), "-o", str(tmp_path / "out"), "ruler.num_samples=1"]
    assert main([*words, "--tasks", "qa_2", "ruler.lengths=[1K]"]) == 2
    assert "qa_2 needs ruler.hotpot=FILE" in capsys.readouterr().err
    assert main([*words, "--tasks", "fwe,niah_multikey_3", "ruler.lengths=[1750,1K]"]) == 2
    assert "1024 tokens have no room for niah_multikey_3" in capsys.readouterr().err
    assert main([*words, "--tasks", "fwe,niah_multikey_3", "ruler.lengths=[1900,1750]"]) == 0
    said = capsys.readouterr().out
    assert "niah_multikey_3" in said
    assert "2 of 13 tasks: no average, no effective length" in said
    part = read_results(tmp_path / "out").tasks["ruler"]
    lacking = {**part.settings, "left_out": ["niah_single_2", "qa_1"]}
    wanting = part.model_copy(update={"settings": lacking})
    assert [row[0] for row in score_table(wanting, "t").rows] == [
        "niah_single_2",
        "niah_multikey_3",
        "fwe",
        "qa_1",
        "empty",
    ]
    assert score_table(wanting, "t").rows[3] == ["qa_1", "-", "-", "-"]
    assert next(iter(limits(wanting))) == (
        "2 of 13 tasks (no file for niah_single_2, qa_1): no average, no effective length"
    )
    assert read_results(tmp_path / "out").tasks["ruler"].settings["lengths"] == [1750, 1900]
