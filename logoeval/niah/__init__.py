"""Needle in a haystack: numbers are hidden in a long text, the model is asked for them.

Three variants (:mod:`logoeval.niah.variants`) in any of the haystacks of :mod:`logoeval.niah.haystacks`.
"""

from logoeval.niah.haystacks import Haystack, haystacks
from logoeval.niah.samples import DEPTHS, NiahSample, SampleBuilder
from logoeval.niah.scores import METRICS, score_response
from logoeval.niah.task import VERSION, describe, run
from logoeval.niah.variants import ANSWER_PREFIX, NEEDLE

__all__ = [
    "ANSWER_PREFIX",
    "DEPTHS",
    "METRICS",
    "NEEDLE",
    "VERSION",
    "Haystack",
    "NiahSample",
    "SampleBuilder",
    "describe",
    "haystacks",
    "run",
    "score_response",
]
