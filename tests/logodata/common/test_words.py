"""What counts as a word, a number and the same: by hand, a table a kind."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logodata.common.words import content_stems, holds_reasoning, marked, read, stem, without_reasoning, words
from logodata.judge import verdict
from logodata.judge.measures import contains_reference, number_share, token_f1, word_share
from logodata.judge.rules import error_pattern
from logodata.judge.settings import JudgeSettings

SAME = {
    "unicode": [
        ("naïve", "It was nai\u0308ve."),
        ("the cliff", "the cli\ufb00"),
        ("the office", "the o\ufb03ce"),
        ("123", "\uff11\uff12\uff13"),
        ("42", "٤٢"),
        ("42", "४२"),
        ("Ashgrove", "\uff21\uff33\uff28\uff27\uff32\uff2f\uff36\uff25"),
        ("Straße", "STRASSE"),
        ("Ashgrove", "Ash\u200bgrove"),
        ("Ashgrove", "\ufeffAsh\u2060grove"),
        ("cooperation", "co\u00adoperation"),
        ("O'Brien", "O\u2019Brien"),
        ("Việt Nam", "Viê\u0323t Nam"),
        ("Sony", "Sony\u2122"),
        ("forty-two", "forty\u2011two"),
        ("H2O", "H\u2082O"),
        ("20 °C", "20 \u2103"),
        ("20 °C", "20\u00baC"),
        ("5 kg", "5 \u338f"),
    ],
    "numbers": [
        ("1,500", "1500 men"),
        ("1,500", "1\u202f500"),
        ("1 500", "1,500"),
        ("1,500.50", "1.500,50"),
        ("1234567", "12,34,567"),
        ("1204", "1'204"),
        ("1.5 km", "1,5 km"),
        ("3.0", "3"),
        ("007", "7"),
        ("zero", "0"),
        ("-7", "\u22127"),
        ("-7", "minus seven"),
        ("-7 degrees", "7 degrees below zero"),
        ("-0.5", "-.5"),
        ("0.5", "\u00bd"),
        ("3\u00bd miles", "3.5 miles"),
        ("2 1/2", "two and a half"),
        ("2/3", "two thirds"),
        ("1/3", "a third of them"),
        ("0.75", "three-quarters"),
        ("half a million", "500,000"),
        ("0.5 miles", "half a mile"),
        ("2.5 million", "2500000"),
        ("5,000", "5k"),
        ("200k", "two hundred thousand"),
        ("24 eggs", "two dozen eggs"),
        ("105", "one hundred and five"),
        ("1912", "nineteen twelve"),
        ("2024", "twenty twenty-four"),
        ("1", "one"),
        ("one", "1"),
        ("21st", "twenty-first"),
        ("the third door", "the 3rd door"),
        ("first", "1st"),
        ("May 3", "May 3rd"),
        ("2nd", "the second one"),
        ("10-12", "10 to 12"),
        ("2024-03-12", "March 12, 2024"),
        ("May 3", "3 May"),
    ],
    "units": [
        ("5 kg", "5 kilograms"),
        ("5 kilometres", "5km"),
        ("six feet", "6 ft"),
        ("twelve years", "12"),
        ("60 km/h", "60 kilometres per hour"),
        ("60 mph", "60 miles per hour"),
        ("5 km²", "5 square kilometres"),
        ("30%", "thirty per cent"),
        ("30 percent", "30 %"),
        ("$29", "29 dollars"),
        ("$29", "US$29"),
        ("€3.50", "3,50 €"),
        ("$3M", "3 million dollars"),
        ("$1.2 billion", "$1.2bn"),
        ("7 °C", "7 degrees"),
        ("7 degrees Celsius", "7°C"),
    ],
    "times and versions": [
        ("10:30", "at 10:30 am"),
        ("15:45", "3:45 pm"),
        ("10 a.m.", "10am"),
        ("10 am", "at 10:00"),
        ("10.30 am", "10:30"),
        ("7 pm", "seven o'clock"),
        ("2:1", "by 2:1"),
        ("version 2.1", "v2.1"),
        ("version 2.10", "Python 2.10"),
        ("2.3.1", "It runs 2.3.1."),
    ],
    "words": [
        ("हिन्दी", "हिन्दी भाषा"),
        ("தமிழ்", "தமிழ் மொழி"),
        ("上海", "上海人在北京"),
        ("北京", "北京市"),
        ("東京タワー", "それは東京タワーです"),
        ("ひらがな", "これはひらがなです"),
        ("マリア", "マリアさん"),
        ("서울", "수도는 서울입니다"),
        ("ภาษาไทย", "เขาพูดภาษาไทยได้"),
        ("ភ្នំពេញ", "រាជធានីគឺភ្នំពេញ"),
        ("1998年3月", "公司成立于1998年3月。"),
        ("C++", "It is written in C++."),
        ("F#", "in F#"),
        ("AT&T", "It was AT&T."),
        ("A+", "an A+"),
        ("USA", "the U.S.A."),
        ("U.S.", "the US"),
        ("J.R.R. Tolkien", "J. R. R. Tolkien"),
        ("J.R.R. Tolkien", "Tolkien"),
        ("★★★", "He gave ★★★."),
        ("no", "NO."),
        ("US", "in the U.S."),
        ("WHO", "The WHO did."),
        ("the captain", "IT WAS THE CAPTAIN"),
    ],
    "phrases, names and letters": [
        ("5 trillion", "5,000,000,000,000"),
        ("$2 trillion", "$2 Trillion"),
        ("3 trillion", "3,000,000,000,000"),
        ("half a trillion", "500 billion"),
        ("one trillion", "a trillion"),
        ("May", "The answer is May."),
        ("May", "It is May."),
        ("May", "Answer: May"),
        ("May", "before May"),
        ("May", "between April and May"),
        ("May", "Her name was May."),
        ("May", "MAY"),
        ("Theresa May", "Theresa May"),
        ("US$5", "$5"),
        ("$5", "US$5"),
        ("AU$5", "A$5"),
        ("HK$100", "$100"),
        ("US", "THE US WON."),
        ("the US", "THE US"),
        ("U.S.", "THE U.S. WON"),
        ("IT", "IT DEPARTMENT"),
        ("WHO", "THE WHO SAID SO"),
        ("2021-05-03", "2021-05-03T10:00"),
        ("2021-05-03", "2021/05/03"),
        ("2021-05-03", "3 May 2021"),
        ("vitamin C", "It is vitamin C."),
        ("vitamin C", "vitamin c"),
        ("Plan B", "Plan B."),
        ("World War II", "World War 2"),
        ("World War II", "World War Two"),
        ("Henry VIII", "It was Henry VIII"),
        ("World War I", "World War I ended"),
        ("half", "0.5"),
        ("half", "1/2"),
        ("half", "half of them"),
        ("1/2", "half"),
        ("one half", "half"),
        ("1/2 cup", "half cup"),
        ("half pound", "half a pound"),
        ("a half", "one half"),
        ("a third", "1/3"),
        ("one third", "a third"),
        ("1/10", "a tenth"),
        ("0.25", "a quarter"),
        ("1/4 mile", "a quarter mile"),
        ("quarter mile", "a quarter of a mile"),
        ("1.5 million", "one and a half million"),
        ("2.5 million", "two and a half million"),
        ("1,500", "one and a half thousand"),
        ("250,000", "a quarter of a million"),
        ("250,000", "a quarter million"),
        ("750,000", "three quarters of a million"),
        ("1,500,000", "a million and a half"),
        ("six", "a half dozen"),
        ("six", "half a dozen"),
        ("1.5 hours", "an hour and a half"),
        ("2.5 years", "two years and a half"),
        ("USD 29", "$29"),
        ("EUR 50", "€50"),
        ("GBP 5", "£5"),
        ("JPY 500", "500 yen"),
        ("CHF 20", "20 francs"),
        ("Rs 500", "₹500"),
        ("Rs. 500", "₹500"),
        ("$3 bn", "$3 billion"),
        ("$3 M", "$3 million"),
        ("£3 m", "£3 million"),
        ("2 mln", "2 million"),
        ("10 billion", "10 bn"),
        ("5 hundred thousand", "500,000"),
        ("1066", "ten sixty-six"),
        ("1990s", "1990's"),
        ("the 1920's", "the 1920s"),
        ("8:00", "8"),
        ("10:30", "10:30"),
        ("10:30 am", "10.30 am"),
        ("10.30", "10:30"),
        ("3.10", "version 3.10"),
        ("1.0", "v1.0"),
        ("v2", "version 2"),
        ("version 2", "v2"),
        ("5 kgs", "5 kg"),
        ("50 sq. km", "50 km²"),
        ("2 cm³", "2 cubic centimetres"),
        ("60 miles an hour", "60 mph"),
        ("5 mcg", "5 micrograms"),
        ("10⁻³", "10^-3"),
        ("1_000", "1000"),
        ("AT&T", "AT & T"),
        ("R&D", "R & D"),
        ("PhD", "Ph.D."),
        ("Ph.D.", "PhD"),
        ("U. S. A.", "USA"),
        ("U. S.", "US"),
        ("O'Brien", "O´Brien"),
        ("O'Brien", "O`Brien"),
        ("2010年", "2010"),
        ("100 µm", "100 μm"),
        ("100µm", "100 μm"),
        ("5 nautical miles", "five nautical miles"),
        ("Python 3.10", "Python 3.10"),
        ("3.50", "Price 3.5"),
        ("A-", "an A-"),
        ("A+", "A+"),
        (".NET", "in .NET"),
        ("Option A", "Option A"),
        ("A", "The answer is A."),
        ("don't", "don’t"),
        ("the 3rd of May", "May 3"),
        ("May 3", "the third of May"),
        ("4 July", "July 4th"),
        ("third", "3rd"),
        ("Scene IV", "Scene 4"),
        ("it's", "It's"),
        ("C", "The answer is C"),
        ("C++", "C++"),
        ("X chromosome", "the X chromosome"),
        ("J. S. Bach", "Johann Sebastian Bach"),
        ("John F. Kennedy", "John Kennedy"),
        ("one hundred percent", "100%"),
        ("Chapter III", "Chapter 3"),
        ("Louis XIV", "Louis XIV"),
        ("12 nautical miles", "12 nautical miles"),
        ("none", "None."),
        ("37 °C", "37 degrees Celsius"),
        ("fifty-fifty", "50-50"),
        ("a hundred and twenty", "120"),
        ("thirty-three and a third", "33 1/3"),
    ],
    "everyday sentences": [
        ("A", "The answer is **A**."),
        ("B", "**B**: Paris"),
        ("Vitamin A", "**Vitamin A**"),
        ("Henry V", "**Henry V**"),
        ("5", "Answer: 5.0"),
        ("3.5", "in Paris, 3.50"),
        ("5 p.m.", "at 5p.m."),
        ("10:30 p.m.", "10:30p.m."),
        ("ガラス", "ｶﾞﾗｽ"),
        ("İstanbul", "istanbul"),
        ("محمد", "مُحَمَّد"),
        ("שלום", "שָׁלוֹם"),
        ("221B Baker Street", "221b Baker Street"),
        ("2 million", "2million"),
        ("300 K", "300 kelvin"),
        ("January 18", "Jan. 18th"),
        ("December 25", "Dec 25"),
        ("18", "a dozen and a half"),
        ("2.75", "two and three quarters"),
        ("1.75 miles", "a mile and three quarters"),
        ("J.R.R. Tolkien", "Tolkien"),
        ("Type I error", "Type I error"),
        ("World War I", "World War I ended"),
        ("0.125", "0,125"),
        ("$3M", "3 million dollars"),
        ("5k", "5,000"),
        ("7.5B", "7.5 billion"),
        ("1 week", "one week"),
    ],
}
OTHER = {
    "unicode": [("10\u00b2", "102"), ("3\u00bd", "31/2")],
    "numbers": [
        ("1.5", "15"),
        ("15", "1.5"),
        ("1,000", "1.000"),
        ("3.5 percent", "5 percent in May, 3 percent in June"),
        ("7", "-7"),
        ("-7 degrees", "7 degrees"),
        ("third", "second"),
        ("20 billion", "20 million"),
        ("forty-two", "forty, then two"),
        ("1", "No one came, and no other one."),
        ("2", "a moment, one second later"),
        ("3/4", "3 of 4"),
        ("0.05", "5%"),
        ("4B", "4"),
        ("1990s", "1990"),
        ("thousands", "1000"),
    ],
    "units": [
        ("5 kg", "5 pounds"),
        ("twelve years", "12 months"),
        ("$29", "€29"),
        ("$29", "$2.9"),
        ("7 degrees Celsius", "7 °F"),
        ("in 5 hours of sailing", "in 5 days of sailing"),
    ],
    "times and versions": [
        ("10:30", "30:10"),
        ("10:30", "10 or 30"),
        ("3:45 pm", "3:45 am"),
        ("2:1", "1:2"),
        ("2.3.1", "2.1.3"),
        ("version 2.10", "version 2.1"),
    ],
    "words": [
        ("हिन्दी", "हद"),
        ("தமிழ்", "தமழ"),
        ("上海", "在海上。"),
        ("中国", "国中"),
        ("서울", "울서"),
        ("ภาษาไทย", "เขาไปกรุงเทพ"),
        ("C++", "It is written in C."),
        ("C", "It is written in C++."),
        ("C#", "in C"),
        ("A+", "A"),
        ("★★★", "none"),
        ("US", "It told us."),
        ("WHO", "who did"),
        ("May", "It may be in June."),
    ],
    "phrases, names and letters": [
        ("D", "I'd say C."),
        ("T", "I don't know."),
        ("M", "I'm not sure."),
        ("vitamin C", "vitamin D"),
        ("Plan B", "Plan A"),
        ("hepatitis B", "hepatitis C"),
        ("grade A", "grade B"),
        ("Option A", "Option B"),
        ("X chromosome", "Y chromosome"),
        ("Objective-C", "Objective-J"),
        ("Agent J", "Agent K"),
        ("three darts", "threw darts on the third day"),
        ("two sons", "the second son"),
        ("three", "the third day"),
        ("1", "At first he ran"),
        ("ten", "10th"),
        ("5 km", "5 nautical miles"),
        ("5 hours", "5 man-hours"),
        ("5 years", "5 light years"),
        ("50 mW", "50 MW"),
        ("5 Mb", "5 MB"),
        ("Python 3.10", "Python 3.1"),
        ("Python 3.9", "Python 3.90"),
        ("A-", "A"),
        ("A*", "A"),
        (".NET", "a net was cast"),
        ("A", "a dog came"),
        ("I", "In time"),
        ("version 2.1", "version 2.10"),
        ("World War I", "World War II"),
        ("World War II", "World War I"),
        ("Henry VIII", "Henry VII"),
        ("2021-05-03", "2021-03-05"),
    ],
    "everyday sentences": [
        ("10^8", "10^7"),
        ("10⁶", "10⁹"),
        ("10^8", "10 people"),
        ("5", "5²"),
        ("-10^3", "10^3"),
        ("World War One", "World War Two"),
        ("Chapter One", "Chapter 5"),
        ("the First World War", "the Second World War"),
        ("first floor window", "second floor window"),
        ("one brother and one sister", "two brothers and two sisters"),
        ("his first wife Anne", "his second wife Anne"),
        ("1", "Yesterday I saw 2 dogs."),
        ("1", "Actually I don't know."),
        ("the U.K. government", "the U.S. government"),
        ("the F.B.I. agent", "the C.I.A. agent"),
        ("500 B.C.", "500 A.D."),
        ("300万", "300亿"),
        ("5億", "5万"),
        ("125", "0,125"),
        ("Form 10-K", "form 10000"),
        ("5G network", "5 gram network"),
        ("first of July 1900", "4th of July 1900"),
        ("1/3", "took another, then a third."),
    ],
}


@pytest.mark.parametrize(
    ("reference", "response"), [case for cases in SAME.values() for case in cases], ids=lambda text: ascii(text)
)
def test_the_same_in_another_form_is_right(reference: str, response: str) -> None:
    assert verdict(response, [reference]) == "right", (words(reference), words(response))


@pytest.mark.parametrize(
    ("reference", "response"), [case for cases in OTHER.values() for case in cases], ids=lambda text: ascii(text)
)
def test_what_only_looks_alike_is_not_right(reference: str, response: str) -> None:
    assert verdict(response, [reference]) != "right", (words(reference), words(response))


def test_settings_of_a_recipe_decide() -> None:
    response, references = "It sank in March of the year 1921.", ["in March of the year 1912"]
    assert verdict(response, references) == "half_right"
    assert verdict(response, references, JudgeSettings(match_numbers=False)) == "right"
    assert verdict(response, references, JudgeSettings(measure="token_f1", right_at=0.9)) == "wrong"


@pytest.mark.parametrize(
    "response",
    [
        "<think>\nTomas Vey, or Orla Finch?\n</think>\n\n{}",
        "Tomas Vey, or Orla Finch?\n</think>\n\n{}",
        "<think></think>{}",
        "<THINKING>Tomas Vey or Orla Finch</THINKING> {}",
        "[THINK]Tomas Vey or Orla Finch[/THINK]{}",
        "<seed:think>Tomas Vey or Orla Finch</seed:think>{}",
        "◁think▷Tomas Vey or Orla Finch◁/think▷{}",
        "<|START_THINKING|>Tomas Vey or Orla Finch<|END_THINKING|>{}",
        "<|channel|>analysis<|message|>Vey, Finch<|end|><|start|>assistant<|channel|>final<|message|>{}",
        "<think>Vey</think>\n<think>Finch</think>\n{}",
        "<think >Orla Finch</think >{}",
        '<think lang="en">Orla Finch< /think>{}',
        "<scratchpad>Orla Finch</scratchpad>{}",
        "<|begin_of_thought|>Orla Finch<|end_of_thought|>{}",
        "&lt;think&gt;Orla Finch&lt;/think&gt;{}",
        "<unused94>thought Orla Finch<unused95>{}",
        "analysisOrla Finch is it.assistantfinal{}",
    ],
)
@pytest.mark.parametrize("answer", ["Orla Finch.", "Tomas Vey."])
def test_reasoning_is_no_answer(response: str, answer: str) -> None:
    assert without_reasoning(response.format(answer)) == answer
    assert verdict(response.format(answer), ["Orla Finch"]) == ("right" if "Orla" in answer else "wrong")


def test_a_response_cut_off_while_reasoning_answers_nothing() -> None:
    assert without_reasoning("<think>\nOrla Finch, I") == ""
    assert verdict("<think>\nOrla Finch, I", ["Orla Finch"]) == "wrong"
    assert without_reasoning(" As it is, a < b ") == " As it is, a < b "
    assert error_pattern("<think>The harbour?</think>Owls.", "What of the harbour?") == "instruction_unfollowing"


@pytest.mark.parametrize(
    ("response", "holds"),
    [
        ("<reasoning>It is late.</reasoning> Ann.", True),
        (" <think>\nIt is late", True),
        ("It is late.\n</reasoning>\nAnn.", True),
        ("It is late.</analysis>", True),
        ("The tag <think> opens reasoning.", False),
        ("Use </analysis> to close.", False),
        ("A <reflection> of light.", False),
        ("I wrote assistantfinal here.", False),
        ("Ann.", False),
        ("", False),
    ],
)
def test_an_answer_that_names_a_marker_is_not_reasoning(response: str, holds: bool) -> None:
    assert holds_reasoning(response) is holds


def test_words_and_stems() -> None:
    assert words("Ashgrove's well-kept garden, 1882: 漢字") == ["ashgrove", "well", "kept", "garden", "1882", "漢字"]
    assert words("用iPhone手机, 3月のタワーで食べた。") == [
        *("用", "iphone", "手机", "3"),
        *("月の", "のタ", "タワ", "ワー", "ーで", "で食", "食べ", "べた"),
    ]
    assert words("It costs $1,204.50, forty-two percent of 3 million.") == [
        *("it", "costs", "1204.5", "dollar", "42", "percent", "of", "3000000")
    ]
    assert {stem(word) for word in ("carve", "carves", "carved", "carving")} == {"carv"}
    assert [stem(word) for word in ("glass", "1882", "its")] == ["glass", "1882", "its"]
    assert list(content_stems("Who was it that carved the pears?")) == ["carv", "pear"]
    assert list(content_stems("the \ufb01nest pears")) == ["finest", "pear"]


def test_a_run_is_found_by_its_neighbours() -> None:
    """北京 of 北京市 is said, two of its three characters."""
    assert word_share("他在北京", ["北京市"]) == pytest.approx(2 / 3)
    assert word_share("海上", ["上海"]) == 0
    assert contains_reference("他去了上海。", ["上海"])
    assert contains_reference("Bob 去了上海 today", ["去了上海 today"])
    assert not contains_reference("在海上。", ["上海"])
    assert token_f1("他去了上海", ["他去了上海"]) == 1


def test_marked_words_are_those_with_a_wanted_stem() -> None:
    text = "Forty\u00adtwo \ufb01ne pears, 他去了上海人 and 42 geese"
    wanted = set(content_stems("pear, 上海, 42"))
    parts = list(marked(text, wanted))
    assert "".join(part for part, _ in parts) == text
    assert [part for part, hit in parts if hit] == ["pears", "上海", "42"]
    assert list(marked("", {"a"})) == []


_PIECES = """
one half a of third thirds million and dozen minus version o'clock pm degrees below zero per cent square metres km /h
percent twenty nineteen second 1 1,204 2.5 3/4 0/0 10:30 2.3.1 $ € % ° - – ½ ³ 上海 ไทย é
"""
_TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(_PIECES.split())), max_size=10).map(" ".join)


@given(_TEXTS)
def test_any_text_is_its_own_right_answer(text: str) -> None:
    found = read(text)
    assert all(0 <= word.start < word.end <= len(text) for word in found)
    wanted = set(content_stems(text))
    assert "".join(part for part, _ in marked(text, wanted)) == text
    if found:
        assert word_share(text, [text]) == 1
        assert number_share(text, [text]) in (None, 1)
        assert math.isclose(token_f1(text, [text]), 1) or set(words(text)) <= {"a", "an", "the"}
    # The other forms of Unicode say the same.
    for form in ("NFD", "NFKC"):
        other = unicodedata.normalize(form, text)
        if form == "NFD" or not any(unicodedata.decomposition(c).startswith("<") for c in text):
            assert words(other) == words(text)


def test_numbers_without_end_are_compared_as_they_are_written() -> None:
    assert verdict("9" * 5000, ["9" * 5000]) == "right"
    assert verdict("9" * 4999, ["9" * 5000]) == "wrong"


_TOO_MUCH = {
    "flags": "\U0001f1e9" * 20000,
    "marks": "\u0301\u0323" * 20000,
    "marks of one letter": "a" + "\u0301" * 20000,
    "markers": "<think>" * 20000,
    "number words": "three point " + "one " * 5000,
    "halves": "half a " * 10000,
    "fractions": "1/" * 10000,
    "exponent": "1e999999",
    "zero": "1/0",
    "digits": "9" * 20000,
}


@pytest.mark.parametrize("text", _TOO_MUCH.values(), ids=_TOO_MUCH)
def test_no_text_is_too_much(text: str) -> None:
    assert verdict(text, ["Orla Finch"]) == "wrong"


def test_without_a_reference_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="needs a reference"):
        verdict("It is an owl.", [])
