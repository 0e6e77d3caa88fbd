"""Words of a text: the one place that decides what counts as a word, a content word, and the same word.

Evaluators and judge share it, so that a chunk is called critical by the same words by which an answer is called right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A CJK character is a word of its own, whatever stands before it. So is a run of hiragana or of katakana: it is a
# particle, an ending or a foreign word, and part of neither its neighbours' nor the other script's.
_CJK, _HIRAGANA, _KATAKANA = r"\u3400-\u9fff", r"\u3041-\u3096\u309d-\u309f", r"\u30a1-\u30fa\u30fc-\u30ff"
_WORD = re.compile(rf"([{_CJK}]|[{_HIRAGANA}]+|[{_KATAKANA}]+|[^\W_{_CJK}{_HIRAGANA}{_KATAKANA}]+)")
_APOSTROPHE_S = re.compile(r"['’]s\b")

# English function words, and the words that only frame a question.
_STOP_WORDS = """
a about above after again against all also although am an and another any anyone anything are around as at be
because been before being below between both but by can cannot could did do does doing done down during each
either else ever every everyone everything few for from further get give given go had has have having he hence
her here hers herself him himself his how however i if in into is it its itself just kind least less like made
make many may me might more most much must my myself name named near neither no nobody none nor not nothing now
of off often on once one only onto or other others our ours ourselves out over own per perhaps put quite rather
really same say said see seem several shall she should since so some someone something still such take taken
than that the their theirs them themselves then there these they thing things this those though through thus to
told too toward towards under until up upon us use used very was we well went were what whatever when where
whether which while who whole whom whose why will with within without would yet you your yours yourself
yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def words(text: str) -> list[str]:
    """Lower-cased words in order, without punctuation and possessive endings."""
    return _WORD.findall(_APOSTROPHE_S.sub("", text.lower()))


def split_words(text: str) -> list[str]:
    """The text in parts: between words, a word, between words, ...; joined they are the text."""
    return _WORD.split(text)


def stem(word: str) -> str:
    """Strip the commonest English endings, so that ``carved``, ``carves`` and ``carving`` meet. Numbers stay as they
    are."""
    if word.isdigit() or len(word) < 4:
        return word
    for ending, replacement in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            return word[: len(word) - len(ending)] + replacement
    return word


def content_stems(text: str) -> Iterator[str]:
    """Stems of the words that carry meaning (names, numbers, nouns, verbs, adjectives), in order, repeats included."""
    for word in words(text):
        if word not in STOP_WORDS and (len(word) > 1 or not word.isascii() or word.isdigit()):
            yield stem(word)
