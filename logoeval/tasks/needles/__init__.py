"""Needle in a haystack: numbers are hidden in a long text, the model is asked for them.

Three variants (:mod:`logoeval.tasks.needles.variants`) in any of the haystacks of
:mod:`logoeval.tasks.needles.haystacks`.
"""

from __future__ import annotations

from logoeval.tasks.needles.haystacks import Haystack, haystacks
from logoeval.tasks.needles.samples import DEPTHS, NiahSample, SampleBuilder
from logoeval.tasks.needles.scores import METRICS, score_response
from logoeval.tasks.needles.task import VERSION, describe, run
from logoeval.tasks.needles.variants import ANSWER_PREFIX, NEEDLE

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
