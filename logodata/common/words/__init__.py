"""Read words, numbers and answers from text: one place for judge, evaluators, questions and evaluation."""

from logodata.common.words.normal import normalise as normalise
from logodata.common.words.reasoning import holds_reasoning as holds_reasoning
from logodata.common.words.reasoning import reasoning_markers as reasoning_markers
from logodata.common.words.reasoning import without_reasoning as without_reasoning
from logodata.common.words.units import HEAT as HEAT
from logodata.common.words.values import ORDINAL as ORDINAL
from logodata.common.words.values import VERSION as VERSION
from logodata.common.words.values import Word as Word
from logodata.common.words.words import STOP_WORDS as STOP_WORDS
from logodata.common.words.words import characters as characters
from logodata.common.words.words import content_stems as content_stems
from logodata.common.words.words import marked as marked
from logodata.common.words.words import part_size as part_size
from logodata.common.words.words import read as read
from logodata.common.words.words import stem as stem
from logodata.common.words.words import stems as stems
from logodata.common.words.words import words as words
