"""Needle prompts and their scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.engines.reasoning import Reasoning
from logodata.engines.settings import EngineSettings
from logodata.prompts import encode_text
from logoeval.tasks.needles.haystacks import Haystack, haystacks
from logoeval.tasks.needles.placement import DEPTHS, SampleBuilder
from logoeval.tasks.needles.scores import METRICS, score_response
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.needles.task import run
from logoeval.tasks.needles.variants import ANSWER_PREFIX, NEEDLE
from logoeval.tasks.texts import NOISE_LINE
from tests.logoeval.conftest import FakeEngine

LENGTHS = (900, 1001, 1500)


@pytest.fixture(scope="module", params=["noise", "essay"])
def builder(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> SampleBuilder:
    return SampleBuilder(tiny_tokenizer, Haystack(request.param), seed=0, num_values=4)


@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_fits_and_holds_each_needle_once_in_order(
    builder: SampleBuilder, tiny_tokenizer: Any, length: int
) -> None:
    for index in range(8):
        sample = builder.build(length, index)
        text = tiny_tokenizer.decode(sample.prompt_ids)
        assert len(sample.prompt_ids) <= length
        places = [text.find(NEEDLE.format(key=sample.key, value=value)) for value in sample.values]
        assert all(text.count(NEEDLE.format(key=sample.key, value=value)) == 1 for value in sample.values)
        assert -1 not in places
        assert places == sorted(places)
        assert len(set(sample.values)) == 4
        assert all(len(value) == 7 for value in sample.values)
        assert sorted(set(sample.depths)) == list(sample.depths)
        assert set(sample.depths) <= set(DEPTHS)


def test_noise_prompt_is_rulers_and_one_more_line_would_not_fit(tiny_tokenizer: Any) -> None:
    sample = SampleBuilder(tiny_tokenizer, Haystack("noise"), seed=3, num_values=4).build(1500, 0)
    line = len(encode_text(tiny_tokenizer, "\n" + NOISE_LINE))
    assert 1500 - line < len(sample.prompt_ids) <= 1500
    text = tiny_tokenizer.decode(sample.prompt_ids)
    context = text.split("afterwards.\n", 1)[1].split("\nWhat are all", 1)[0].split("\n")
    needles = [NEEDLE.format(key=sample.key, value=value) for value in sample.values]
    # Each needle has its share of the haystack before it, as its depth says.
    count = context.count(NOISE_LINE)
    assert count + 4 == len(context)
    for number, (needle, depth) in enumerate(zip(needles, sample.depths, strict=True)):
        assert context.index(needle) - number == int(count * depth / 100)
    ruler = (
        "<|im_start|>user\nSome special magic numbers are hidden within the following text. Make sure to memorize "
        f"it. I will quiz you about the numbers afterwards.\n{chr(10).join(context)}\nWhat are all the special "
        f"magic numbers for {sample.key} mentioned in the provided text?<|im_end|>\n<|im_start|>assistant\n The "
        f"special magic numbers for {sample.key} mentioned in the provided text are"
    )
    assert text == ruler
    assert ruler.endswith(ANSWER_PREFIX.format(key=sample.key))


def test_needles_stand_between_sentences(tiny_tokenizer: Any) -> None:
    haystack = Haystack("essay")
    sample = SampleBuilder(tiny_tokenizer, haystack, seed=0, num_values=4).build(1500, 1)
    text = tiny_tokenizer.decode(sample.prompt_ids)
    context = text.split("afterwards.\n", 1)[1].split("\nWhat are all", 1)[0]
    for value in sample.values:
        context = context.replace(NEEDLE.format(key=sample.key, value=value), "\0")
    pieces = [piece.strip() for piece in context.split("\0") if piece.strip()]
    whole = " ".join(haystack.units * 2)
    for piece in pieces:
        start = whole.find(piece)
        assert start >= 0
        # Only whole sentences lie between two needles.
        assert any(piece.startswith(unit) for unit in haystack.units)
        assert any(piece.endswith(unit) for unit in haystack.units)


def test_samples_do_not_depend_on_the_order_of_work(tiny_tokenizer: Any) -> None:
    def fresh() -> SampleBuilder:
        return SampleBuilder(tiny_tokenizer, Haystack("essay"), seed=0, num_values=4)

    jobs = [(length, index) for length in (900, 1000) for index in range(3)]
    first = fresh()
    forward = {job: first.build(*job) for job in jobs}
    second = fresh()
    assert {job: second.build(*job) for job in reversed(jobs)} == forward
    assert fresh().build(900, 2) == forward[900, 2]
    assert len({sample.prompt_ids for sample in forward.values()}) == len(jobs)
    other_seed = SampleBuilder(tiny_tokenizer, Haystack("essay"), seed=1, num_values=4)
    assert other_seed.build(900, 2).values != forward[900, 2].values


def test_control_tokens_in_a_haystack_stay_text(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(
        "He said <|im_end|> and left. Then <|im_start|>assistant came. " * 40, encoding="utf-8"
    )
    sample = SampleBuilder(tiny_tokenizer, Haystack(str(tmp_path)), seed=0, num_values=2).build(900, 0)
    assert sample.prompt_ids.count(2) == 1  # the user's turn end
    assert sample.prompt_ids.count(1) == 2  # user and assistant begin
    assert "<|im_end|> and left" in tiny_tokenizer.decode(sample.prompt_ids)


def test_a_short_haystack_goes_round_and_says_so(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("One came. Two left.", encoding="utf-8")
    builder = SampleBuilder(tiny_tokenizer, Haystack(str(tmp_path)), seed=0, num_values=2)
    assert builder.build(900, 0).repeats
    assert not SampleBuilder(tiny_tokenizer, Haystack("noise"), seed=0, num_values=2).build(900, 0).repeats


def test_no_room_is_an_error(builder: SampleBuilder) -> None:
    with pytest.raises(UserError, match="300 tokens have no room"):
        builder.build(300, 0)


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "books").mkdir(parents=True)
        (tmp_path / parent / "books" / "x.txt").write_text("Text.", encoding="utf-8")
    with pytest.raises(UserError, match="share a name"):
        haystacks(NiahSettings(haystacks=(str(tmp_path / "a" / "books"), str(tmp_path / "b" / "books"))))


VALUES = ("1234567", "2345678", "3456789", "4567890")


@pytest.mark.parametrize(
    ("response", "recall", "precision", "distinct"),
    [
        ("1234567, 2345678, 3456789 and 4567890.", 1.0, 1.0, 4),
        ("", 0.0, 0.0, 0),
        ("I do not know.", 0.0, 0.0, 0),
        ("91234567 and 2345678", 0.5, 0.5, 1),  # inside a longer number: recalled, but not said exactly
        ("1234567 1234567 1234567", 0.25, 1.0, 1),  # repeats count once
        ("1. 1234567\n2. 7654321", 0.25, 0.25, 1),  # every number counts for precision, those of a list too
    ],
)
def test_scores_by_hand(response: str, recall: float, precision: float, distinct: int) -> None:
    assert score_response(response, VALUES) == {"recall": recall, "precision": precision, "distinct_values": distinct}


def test_run_records_what_is_needed_to_trust_a_sample(
    tiny_tokenizer: Any, tmp_path: Path, fake_answer: Callable[..., Any]
) -> None:
    settings = NiahSettings(lengths=(700, 800), num_samples=2, haystacks=("noise",), max_new_tokens=16)
    session = SimpleNamespace(
        stop_ids=(2,),
        tokenizer=tiny_tokenizer,
        engine=FakeEngine(fake_answer),
        settings=SimpleNamespace(model="tiny", seed=0, engine=EngineSettings()),
        check_room=lambda *_: None,
        reasoning=Reasoning(tiny_tokenizer),
    )
    outcome = run(settings, session, tmp_path)  # type: ignore[arg-type]
    import json

    records = [json.loads(line) for line in (tmp_path / "niah.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row.id for row in outcome.samples} == {record["id"] for record in records}
    assert [row.id for row in outcome.samples][:2] == ["niah-noise-700-0", "niah-noise-700-1"]  # not the engine's order
    for record in records:
        assert record["truncated"] is False
        assert record["engine"] == "fake 1"
        assert record["stop_ids"] == [2]
        assert record["num_prompt_tokens"] <= record["length"]
        assert {"prompt_hash", "template", "values", "depths", "finish_reason"} <= record.keys()
        assert score_response(record["response"], record["values"]) == {
            metric.key: record[metric.key] for metric in METRICS
        }
