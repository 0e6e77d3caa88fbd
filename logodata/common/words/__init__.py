"""Words, numbers and answers out of text: one place for judge, evaluators, questions and evaluation."""

from logodata.common.words.normal import normalise
from logodata.common.words.quantities import HEAT, Word
from logodata.common.words.reasoning import without_reasoning
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
    "STOP_WORDS",
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
