"""LongBench's metrics against hand-worked cases, and ROUGE-L against the package it reproduces."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logoeval.tasks.longbench.metrics import CODE_SIM, METRICS, normalize, rouge_overflows
from logoeval.tasks.longbench.rouge import MAX_FRAMES, rouge_l


def package_rouge_l(prediction: str, gold: str) -> float:
    """What LongBench's script does with the package."""
    from rouge import Rouge

    try:
        return float(Rouge().get_scores([prediction], [gold], avg=True)["rouge-l"]["f"])
    except Exception:
        return 0.0


PIECES = st.lists(st.sampled_from(["a ", "b ", "c ", "d. ", ". ", ".", " ", "\n", "A ", "a"]), max_size=30).map("".join)


@given(PIECES, PIECES)
@settings(max_examples=300, deadline=None)
def test_rouge_equals_the_package_on_few_words(prediction: str, gold: str) -> None:
    assert rouge_l(prediction, gold).f == package_rouge_l(prediction, gold)


@pytest.mark.parametrize("num_words", [3, 30, 300])
def test_rouge_equals_the_package_on_summaries(num_words: int) -> None:
    rng = random.Random(num_words)
    words = [f"word{number}" for number in range(num_words)]
    weights = [1 / (number + 1) for number in range(num_words)]

    def summary() -> str:
        chosen = rng.choices(words, weights, k=200)
        return " ".join(word + ("." if rng.random() < 0.05 else "") for word in chosen)

    for _ in range(3):
        prediction, gold = summary(), summary()
        assert rouge_l(prediction, gold).f == package_rouge_l(prediction, gold)


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


@pytest.mark.parametrize(
    ("prediction", "gold", "frames"),
    [
        (words("w", 30), words("w", 30), 31),  # straight up the diagonal
        (words("v", 20) + ". w0", words("w", 10), 21),  # nothing in common: left to the border
        (words("w", 30), words("w", 10), 31),
        (words("w", 10), words("w", 30), 31),
    ],
)
def test_frames_of_the_walk_back_are_the_packages(
    prediction: str, gold: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inspect
    import sys

    from rouge import rouge_score

    assert rouge_l(prediction, gold, max_frames=frames).f == package_rouge_l(prediction, gold) > 0
    assert rouge_l(prediction, gold, max_frames=frames - 1).overflow
    assert rouge_l(prediction, gold, max_frames=frames - 1).f == 0

    # The deepest call of the package, counted as it runs.
    deepest = 0

    def trace(frame: object, event: str, argument: object) -> None:
        nonlocal deepest
        if event == "call" and inspect.isframe(frame) and frame.f_code.co_name == "_recon":
            depth, outer = 0, frame
            while outer is not None and outer.f_code.co_name == "_recon":
                depth, outer = depth + 1, outer.f_back
            deepest = max(deepest, depth)

    sys.setprofile(trace)
    try:
        rouge_score.rouge_l_summary_level(prediction.split(". "), [gold])
    finally:
        sys.setprofile(None)
    assert deepest == frames


def test_a_walk_beyond_the_recursion_limit_is_zero_and_known() -> None:
    whole = words("w", MAX_FRAMES)
    assert METRICS["rouge"](whole, whole, None) == 0
    assert rouge_overflows("rouge", whole, whole)
    shorter = words("w", MAX_FRAMES - 1)
    assert METRICS["rouge"](shorter, shorter, None) == pytest.approx(1)
    assert not rouge_overflows("rouge", shorter, shorter)
    assert not rouge_overflows("qa_f1", whole, whole)
    # The package gives 0 there too, from far less than the calls that lie between, under Python's own limit: libraries
    # that other tests load (torch's compiler) raise it.
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1000)
        assert package_rouge_l(words("w", 1000), words("w", 1000)) == 0
    finally:
        sys.setrecursionlimit(limit)


TREC = ["Date", "Definition of something", "Something", "Individual", "Group or organization of person", "person"]

CASES: list[tuple[str, str, str, Sequence[str] | None, float]] = [
    ("qa_f1", "The U.S. Army!", "US army", None, 1.0),  # punctuation goes without leaving a space
    ("qa_f1", "state-of-the-art", "state of the art", None, 0.0),
    ("qa_f1", "Paris Paris", "paris", None, 2 / 3),
    ("qa_f1", "", "", None, 0.0),
    ("qa_f1", "the", "a", None, 0.0),  # nothing is left of either
    ("qa_f1_zh", "北京。", "北京", None, 1.0),
    ("qa_f1_zh", "，。！", "北京", None, 0.0),
    ("rouge", "Paris.", "paris.", None, 0.0),  # case counts
    ("rouge", "a b a b", "a b", None, 2 / (2 + 1e-8)),  # sets of words
    ("rouge", ".", "a", None, 0.0),
    ("rouge", "", "a", None, 0.0),
    ("rouge_zh", "北京", "北京", None, 2 / (2 + 1e-8)),
    ("rouge_zh", "", "北京", None, 0.0),
    ("classification", "It is a Date.", "Date", TREC, 1.0),
    ("classification", "Date or Individual", "Date", TREC, 0.5),
    ("classification", "individual", "Individual", TREC, 0.0),
    # "Something" stays: it does not occur in the gold class, whose letter is small.
    ("classification", "Something, Definition of something", "Definition of something", TREC, 0.5),
    ("classification", "Group or organization of person", "Group or organization of person", TREC, 1.0),
    # Of two classes that occur in the gold one, the second is skipped when the first is removed.
    ("classification", "abc", "abc", ["a", "b", "abc"], 0.5),
    ("classification", "abc", "abc", ["a", "abc", "b"], 1.0),
    ("retrieval", "Paragraph 3", "Paragraph 3", None, 1.0),
    ("retrieval", "Paragraph 13 and 3", "Paragraph 3", None, 0.5),
    ("retrieval", "Paragraph 03", "Paragraph 3", None, 0.0),  # as strings
    ("retrieval", "none", "Paragraph 3", None, 0.0),
    ("retrieval_zh", "段落7", "段落7", None, 1.0),
    ("count", "There are 7 of 9.", "7", None, 0.5),
    ("count", "７", "7", None, 0.0),  # a full-width digit is a number, but another string
    ("code_sim", "\n\nreturn x", "return x", None, 1.0),
    ("code_sim", "# comment\n```\nreturn x", "return x", None, 1.0),
    ("code_sim", "return x // y", "return x", None, 0.0),
    ("code_sim", "", "", None, 1.0),
    ("code_sim", "/", "//", None, 0.67),
    ("code_sim", "ab" * 25, "ba" * 25, None, 0.98),
]


@pytest.mark.parametrize(("name", "prediction", "gold", "classes", "score"), CASES)
def test_by_hand(name: str, prediction: str, gold: str, classes: Sequence[str] | None, score: float) -> None:
    assert METRICS[name](prediction, gold, classes) == pytest.approx(score, abs=1e-12)


def test_an_answer_without_its_number_is_an_error_there_as_here() -> None:
    with pytest.raises(IndexError):
        METRICS["retrieval"]("3", "3", None)
    with pytest.raises(ValueError, match="all_classes"):
        METRICS["classification"]("Date", "Date", None)


def test_code_sim_back_ends_differ_where_they_are_known_to() -> None:
    prediction, gold = "Next line of code:\nreturn x", "return x"
    assert {name: metric(prediction, gold, None) for name, metric in CODE_SIM.items()} == {
        "rapidfuzz": 0.31,
        "difflib": 0.15,
    }


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_scores_are_shares(name: str, prediction: str, gold: str) -> None:
    gold = {"retrieval": "Paragraph 1", "retrieval_zh": "段落1"}.get(name, gold)
    assert 0 <= METRICS[name](prediction, gold, [gold]) <= 1


@given(st.text(max_size=60))
def test_normalizing_again_changes_nothing_but_articles(text: str) -> None:
    once = normalize(text)
    assert once == once.strip()
    assert "  " not in once
