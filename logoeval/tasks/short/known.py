"""Tasks whose published settings are taken where a recipe names none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A task as papers report it: its name for readers, examples in the prompt, lm-evaluation-harness's metric."""

    title: str
    shots: int
    metric: str
    explanation: str
    measure: str = "accuracy"
    """The metric in a reader's words."""


KNOWN = {
    "mmlu": Known(
        "MMLU",
        5,
        "acc",
        "Share of four-way questions of 57 school and university subjects answered right; chance is 25 %.",
    ),
    "arc_easy": Known(
        "ARC easy",
        25,
        "acc_norm",
        "Share of easy school science questions whose right answer is the likeliest per character.",
    ),
    "arc_challenge": Known(
        "ARC challenge",
        25,
        "acc_norm",
        "Share of hard school science questions whose right answer is the likeliest per character.",
    ),
    "truthfulqa_mc1": Known(
        "TruthfulQA MC1", 0, "acc", "Share of questions about common misbeliefs whose one true answer is the likeliest."
    ),
    "truthfulqa_mc2": Known(
        "TruthfulQA MC2",
        0,
        "acc",
        "Share of the probability of all listed answers that falls on the true ones.",
        "truth",
    ),
}
"""In the order a report shows them. Shots and metrics: those of the leaderboards that the LOGO paper follows."""

MEASURES = {"acc": "accuracy", "acc_norm": "accuracy", "exact_match": "exact match"}
"""Metrics of other tasks in a reader's words; one that is not here keeps its name."""
