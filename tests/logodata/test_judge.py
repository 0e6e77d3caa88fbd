from __future__ import annotations

import pytest

from logodata.judge import (
    JudgedText,
    JudgeSettings,
    error_pattern,
    preferred_fault,
    rejected_fault,
    repetition,
    token_f1,
    word_share,
)

ANSWERS = ["hair of forty grey mares"]  # content words: hair, forty, grey, mares
RIGHT = JudgedText("It was plaited from the hair of forty grey mares.", ended=True)


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
    assert token_f1("dog", ["cat"]) == 0.0
    assert token_f1("anything", []) == 0.0


@pytest.mark.parametrize(
    ("candidate", "guided", "fault"),
    [
        (RIGHT, True, None),
        (JudgedText("  ", True), True, "preferred_empty"),
        (JudgedText("It was rope.", True), True, "preferred_wrong"),
        (JudgedText(RIGHT.text, ended=False), True, "preferred_not_ended"),
        (JudgedText("The answer is hair of forty grey mares.", True), True, "preferred_leaks_hint"),
        (JudgedText("The answer is hair of forty grey mares.", True), False, None),
        (JudgedText("It was hair of forty grey mares. " * 6, True), True, "preferred_repeats_itself"),
        (JudgedText("The hair of forty grey mares.", True), True, "preferred_is_bare_reference"),
        (JudgedText("The hair of forty grey mares.", True), False, None),
    ],
)
def test_preferred(candidate: JudgedText, guided: bool, fault: str | None) -> None:
    assert preferred_fault(candidate, ANSWERS, JudgeSettings(), guided=guided) == fault


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (JudgedText("It was made of silk.", True), None),
        (JudgedText("", True), "rejected_empty"),
        (RIGHT, "identical_responses"),
        (JudgedText("Grey mares gave the hair.", True), "rejected_right"),
    ],
)
def test_rejected(candidate: JudgedText, fault: str | None) -> None:
    assert rejected_fault(candidate, RIGHT, ANSWERS, JudgeSettings()) == fault


def test_switched_off_it_still_refuses_empty_responses() -> None:
    off = JudgeSettings(enabled=False)
    wrong = JudgedText("It was rope.", False)
    assert preferred_fault(wrong, ANSWERS, off, guided=True) is None
    assert rejected_fault(RIGHT, wrong, ANSWERS, off) is None
    assert preferred_fault(JudgedText("", True), ANSWERS, off, guided=True) == "preferred_empty"


def test_repetition() -> None:
    assert repetition("one two three four five") == 0.0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert repetition("short") == 0.0


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
