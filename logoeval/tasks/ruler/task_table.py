"""The 13 tasks of RULER: what each hides, asks, and counts as right.

The sources are ``scripts/synthetic.yaml`` and the two ``constants.py`` of https://github.com/NVIDIA/RULER (c3f5e3b),
and Hsieh et al. 2024, arXiv 2404.06654.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Haystack = Literal["noise", "essay", "needle"]
NeedleType = Literal["words", "numbers", "uuids"]
Dataset = Literal["squad", "hotpot"]
Group = Literal["retrieval", "variable tracking", "aggregation", "question answering"]

OFFICIAL_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
OFFICIAL_SAMPLES = 500
"""Samples of a task and length (``config_tasks.sh``)."""
OFFICIAL_QUESTIONS = {"squad": 5928, "hotpot": 7405}
"""Questions with an answer in the dev sets that RULER takes: SQuAD 2.0, and HotpotQA in the distractor setting."""


@dataclass(frozen=True, slots=True)
class Niah:
    """A needle task: the haystack; what keys and values are; how many keys are hidden, how many values each has, and
    how many keys are asked for."""

    haystack: Haystack
    keys: NeedleType = "words"
    values: NeedleType = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_asked: int = 1


@dataclass(frozen=True, slots=True)
class Questions:
    """A task of real questions, each among documents of its data set."""

    dataset: Dataset


Words = Literal["vt", "cwe", "fwe"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task. ``group`` is the paper's; ``max_new_tokens`` are part of a sample's length."""

    name: str
    group: Group
    kind: Niah | Words | Questions
    max_new_tokens: int

    @property
    def needs(self) -> Literal["essays", "squad", "hotpot"] | None:
        """The setting of the user's file that the task is made of; None if it needs none."""
        if isinstance(self.kind, Questions):
            return self.kind.dataset
        return "essays" if isinstance(self.kind, Niah) and self.kind.haystack == "essay" else None

    @property
    def needs_words(self) -> bool:
        """Whether the task draws from wonderwords' lists."""
        return self.kind == "cwe" or (isinstance(self.kind, Niah) and self.kind.keys == "words")

    @property
    def counts_any(self) -> bool:
        """Whether any one reference makes an answer right (``string_match_part``), instead of the share of all."""
        return isinstance(self.kind, Questions)

    @property
    def prompt(self) -> tuple[str, str]:
        """The official template and answer prefix."""
        kind = "niah" if isinstance(self.kind, Niah) else "qa" if isinstance(self.kind, Questions) else self.kind
        return _prompts()[kind]


@cache
def _prompts() -> dict[str, tuple[str, str]]:
    # NOTICE beside the file names its source.
    text = resources.files("logoeval.tasks.ruler").joinpath("prompts.json").read_text(encoding="utf-8")
    return {name: (entry["template"], entry["answer_prefix"]) for name, entry in json.loads(text).items()}


TASKS = {
    task.name: task
    for task in (
        Task("niah_single_1", "retrieval", Niah("noise"), 128),
        Task("niah_single_2", "retrieval", Niah("essay"), 128),
        Task("niah_single_3", "retrieval", Niah("essay", values="uuids"), 128),
        Task("niah_multikey_1", "retrieval", Niah("essay", num_keys=4), 128),
        Task("niah_multikey_2", "retrieval", Niah("needle"), 128),
        Task("niah_multikey_3", "retrieval", Niah("needle", keys="uuids", values="uuids"), 128),
        Task("niah_multivalue", "retrieval", Niah("essay", num_values=4), 128),
        # synthetic.yaml gives it one key, which the script raises to the number that is asked for.
        Task("niah_multiquery", "retrieval", Niah("essay", num_keys=4, num_asked=4), 128),
        Task("vt", "variable tracking", "vt", 30),
        Task("cwe", "aggregation", "cwe", 120),
        Task("fwe", "aggregation", "fwe", 50),
        Task("qa_1", "question answering", Questions("squad"), 32),
        Task("qa_2", "question answering", Questions("hotpot"), 32),
    )
}
"""The tasks by name, in the order of ``synthetic.yaml``."""

GROUPS: tuple[Group, ...] = tuple(dict.fromkeys(task.group for task in TASKS.values()))
