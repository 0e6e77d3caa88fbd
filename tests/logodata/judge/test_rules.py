from __future__ import annotations

import pytest

from logodata.common.words import read
from logodata.contract import Measures, Response
from logodata.judge.measures import contains_reference, number_share, repetition, token_f1, word_share
from logodata.judge.rules import Measurer, added_words, error_pattern, preferred_fault, rejected_fault
from logodata.judge.settings import JudgeSettings

ROPE = "What was the rope plaited from?"
ANSWERS = ["hair of forty grey mares"]  # content words: hair, forty, grey, mares


def judged(text: str, ended: bool, measures: Measures | None = None) -> Response:
    """A response with its measures, by default under the default settings."""
    measures = measures or Measurer(JudgeSettings()).measure(text, ANSWERS)
    return Response(strategy="model", text=text, token_ids=[], ended=ended, **dict(measures))


RIGHT = judged("It was plaited from the hair of forty grey mares.", ended=True)


@pytest.mark.parametrize(
    ("response", "answers", "share"),
    [
        (RIGHT.text, ANSWERS, 1.0),
        ("Forty mares.", ANSWERS, 0.5),
        ("I do not know.", ANSWERS, 0.0),
        ("He was carving it.", ["carved"], 1.0),  # endings do not count
        ("grey-maned MARE'S hair, forty", ANSWERS, 1.0),
        ("The other one, of course.", ["the other one"], 1.0),  # no content word: all words count
        ("Parsnip", ["a mule", "Parsnip"], 1.0),  # the best reference
        ("anything", [], 0.0),
        ("in 1749", ["174"], 0.0),  # numbers are whole
    ],
)
def test_word_share(response: str, answers: list[str], share: float) -> None:
    assert word_share(response, answers) == pytest.approx(share)


def test_token_f1_by_hand() -> None:
    # "cat sat" against "cat sat down": 2 common of 2 and 3 words.
    assert token_f1("The cat sat!", ["a cat sat down"]) == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3))
    assert token_f1("cat", ["dog", "cat", "dog"]) == 1.0, "the best reference"
    assert token_f1("dog", ["cat"]) == 0.0
    assert token_f1("anything", []) == 0.0


@pytest.mark.parametrize(
    ("candidate", "guided", "fault"),
    [
        (RIGHT, True, None),
        (judged("  ", True), True, "preferred_empty"),
        (judged("It was rope.", True), True, "preferred_wrong"),
        (judged(RIGHT.text, ended=False), True, "preferred_not_ended"),
        (judged("The answer is hair of forty grey mares.", True), True, "preferred_leaks_hint"),
        (judged("The answer is hair of forty grey mares.", True), False, None),
        (judged("It was hair of forty grey mares. " * 6, True), True, "preferred_repeats_itself"),
        (judged("The hair of forty grey mares.", True), True, "preferred_is_bare_reference"),
        (judged("The hair of forty grey mares.", True), False, None),
        (judged("Plaited hair of forty grey mares.", True), True, "preferred_is_bare_reference"),
        (judged("It was hair of forty grey mares.", True), True, None),  # two words are added
    ],
)
def test_preferred(candidate: Response, guided: bool, fault: str | None) -> None:
    assert preferred_fault(candidate, ROPE, ANSWERS, JudgeSettings(), guided=guided) == fault


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (judged("It was made of silk.", True), None),
        (judged("", True), "rejected_empty"),
        (RIGHT, "identical_responses"),
        (judged("Forty grey mares gave the hair.", True), "rejected_right"),
        (judged("Grey mares gave the hair.", True), "rejected_half_right"),
    ],
)
def test_rejected(candidate: Response, fault: str | None) -> None:
    assert rejected_fault(candidate, RIGHT, JudgeSettings()) == fault


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("The rope was plaited from the hair of forty grey mares.", 0),
        ("It was the hair of forty grey mares of Pellowick, and Pellowick's goats.", 2),
        ("Plaiting ropes: forty mares' hairs, grey.", 0),  # by stem
    ],
)
def test_added_words(text: str, added: int) -> None:
    assert added_words(text, ROPE, ANSWERS) == added
    for limit in (0, 1, 2, None):
        fault = preferred_fault(judged(text, True), ROPE, ANSWERS, JudgeSettings(max_added_words=limit), guided=False)
        assert fault == ("preferred_adds_words" if limit is not None and added > limit else None)


def test_switched_off_it_still_refuses_empty_responses() -> None:
    off = JudgeSettings(enabled=False)
    wrong = judged("It was rope.", False)
    assert preferred_fault(wrong, ROPE, ANSWERS, off, guided=True) is None
    assert rejected_fault(RIGHT, wrong, off) is None
    assert preferred_fault(judged("", True), ROPE, ANSWERS, off, guided=True) == "preferred_empty"


def test_repetition() -> None:
    assert repetition("one two three four five") == 0.0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert repetition("short") == 0.0
    said = judged("It was hair of forty grey mares. It was hair.", True)  # 1 of 8 trigrams
    for limit, fault in ((1 / 8, None), (0.12, "preferred_repeats_itself")):
        assert preferred_fault(said, ROPE, ANSWERS, JudgeSettings(max_repetition=limit), guided=True) == fault


@pytest.mark.parametrize(
    ("response", "pattern"),
    [
        ("The harbour of Vell holds nothing.", "hallucination"),
        ("Harbours are wet.", "hallucination"),  # by its stem
        ("Seven owls.", "instruction_unfollowing"),
        ("It does hold what it has.", "hallucination"),  # "hold" carries meaning
        ("I do not know what it is.", "instruction_unfollowing"),  # function words are no entities
    ],
)
def test_error_patterns(response: str, pattern: str) -> None:
    assert error_pattern(response, "What does the harbour of Vell hold?") == pattern


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Twelve mules in 1,204 carts, 007 of them red", {"12", "1204", "7"}),
        ("no one, the other one", set()),
        ("forty-two", {"42"}),
        ("year1912", set()),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert {word.text for word in read(text) if word.kind == "number" and word.exact} == found


def test_a_short_answer_is_right_from_the_share_of_words_on() -> None:
    answers = ["a mule, an owl, a goat, a mare and a heron"]
    for said, verdict in (("mule, owl and goat", "right"), ("mule and owl", "wrong")):
        assert Measurer(JudgeSettings(right_at=0.6)).measure(said, answers).verdict == verdict


def test_a_short_answer_with_another_number_is_half_right() -> None:
    answers = ["in March of the year 1912"]  # content words: march, year, 1912
    assert word_share("It sank in March of the year 1921.", answers) == pytest.approx(2 / 3)
    assert number_share("It sank in March of the year 1921.", answers) == 0.0
    assert Measurer(JudgeSettings()).measure("It sank in March of the year 1921.", answers).verdict == "half_right"
    loose = JudgeSettings(match_numbers=False)
    assert Measurer(loose).measure("It sank in March of the year 1921.", answers).verdict == "right"
    assert Measurer(JudgeSettings()).measure("For 12 years.", ["twelve years", "twelve"]).number_share == 1.0
    assert number_share("Yes.", ["it was black", "364"]) is None, "not every reference holds a number"
    assert number_share("In 1912.", ["1749", "1912", "1749"]) == 1.0, "the best reference"


def test_containment() -> None:
    assert contains_reference("He sailed on the old grey mare!", ["an old grey mare"])
    assert not contains_reference("He sailed on the grey old mare", ["an old grey mare"])
    assert not contains_reference("a marebit", ["mare"])
    assert not contains_reference("anything", ["the"])


class Cosine:
    """Instead of an embedding model."""

    def __init__(self, value: float) -> None:
        self.value = value

    def best(self, *_: object) -> float:
        return self.value


@pytest.mark.parametrize(
    ("cosine", "verdict"), [(0.85, "right"), (0.84, "half_right"), (0.75, "half_right"), (0.74, "wrong")]
)
def test_long_references_are_compared_by_similarity(
    monkeypatch: pytest.MonkeyPatch, cosine: float, verdict: str
) -> None:
    monkeypatch.setattr("logodata.judge.rules.Similarity", lambda _: Cosine(cosine))
    long = [" ".join(f"word{n}" for n in range(21))]
    measured = Measurer(JudgeSettings()).measure("word1 and word2", long)
    assert (measured.similarity, measured.verdict) == (cosine, verdict)
    assert Measurer(JudgeSettings()).measure("word1", [long[0], "word1"]).similarity is None, "one reference is short"
    assert Measurer(JudgeSettings()).measure("word1", [long[0].removesuffix(" word20")]).similarity is None
    assert Measurer(JudgeSettings(measure="word_share")).measure("word1", long).similarity is None
    candidate = judged("word1 and word2", True, measured)
    assert (preferred_fault(candidate, ROPE, long, JudgeSettings(), guided=False) is None) == (verdict == "right")
    fault = {"right": "rejected_right", "half_right": "rejected_half_right", "wrong": None}[verdict]
    assert rejected_fault(candidate, RIGHT, JudgeSettings()) == fault


def test_the_real_similarity_orders_answers() -> None:
    """The embedded MiniLM: the same said in other words, the question repeated, something else."""
    reference = (
        "The marketing expert proposed to drop the display because of its cost, and the group agreed that a screen on "
        "the television would show the settings instead, so that the remote control could stay small, cheap and simple "
        "for older people and children."
    )
    said = [
        "They decided that no display was needed: it was expensive, and the television could show the settings.",
        "The group discussed the display of the remote control.",
        "The harbour was closed on account of fog.",
    ]
    measurer = Measurer(JudgeSettings())
    cosines = [measurer.measure(text, [reference]).similarity or -1.0 for text in said]
    assert min(cosines) > -1
    assert cosines == sorted(cosines, reverse=True)
    assert measurer.measure(reference, [reference]).similarity == pytest.approx(1.0, abs=1e-5)
    assert measurer.measure(said[2], [reference]).verdict == "wrong"
