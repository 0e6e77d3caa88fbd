"""Read words, numbers and answers from text: one place for judge, evaluators, questions and evaluation."""

from logodata.common.words.normal import normalise
from logodata.common.words.reasoning import without_reasoning
from logodata.common.words.units import HEAT
from logodata.common.words.values import ORDINAL, VERSION, Word
from logodata.common.words.words import (
    STOP_WORDS,
    characters,
    content_stems,
    marked,
    part_size,
    read,
    stem,
    stems,
    words,
)

__all__ = [
    "HEAT",
    "ORDINAL",
    "STOP_WORDS",
    "VERSION",
    "Word",
    "characters",
    "content_stems",
    "marked",
    "normalise",
    "part_size",
    "read",
    "stem",
    "stems",
    "without_reasoning",
    "words",
]
