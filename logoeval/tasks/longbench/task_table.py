"""The 21 tasks of LongBench: prompt, response length, chat template, metric and category.

The sources are Bai et al. 2024, table 1, and ``config/`` and ``pred.py`` of the official repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Category = Literal["single-doc QA", "multi-doc QA", "summarization", "few-shot", "synthetic", "code"]
Language = Literal["en", "zh", "code"]

E_SUFFIX = "_e"
"""The suffix of LongBench-E's tasks, whose rows are spread evenly over lengths. Rules and prompt are the task's."""


@dataclass(frozen=True, slots=True)
class Task:
    """The rules of one task. ``metric`` is a key of :data:`logoeval.tasks.longbench.metrics.METRICS`; ``num_rows`` is
    the number of rows in LongBench; ``chat`` says whether the prompt goes through the chat template, as few-shot
    examples and code do not; with ``first_line`` only the first line of a response is scored; ``in_e`` says whether
    LongBench-E has the task."""

    name: str
    category: Category
    language: Language
    metric: str
    max_new_tokens: int
    num_rows: int
    chat: bool = True
    first_line: bool = False
    in_e: bool = False

    @property
    def prompt(self) -> str:
        """The template of the prompt, with ``{context}`` and in most tasks ``{input}``."""
        return _prompts()[self.name]

    @property
    def in_logo_table(self) -> bool:
        """Whether the LongBench table of the LOGO paper has the task: it has English tasks without code."""
        return self.language == "en"

    def kept(self, response: str) -> str:
        """Return the part of a response that is scored."""
        return response.lstrip("\n").split("\n")[0] if self.first_line else response


@cache
def _prompts() -> dict[str, str]:
    # NOTICE beside the file names its source. Typos are part of the benchmark.
    text = resources.files("logoeval.tasks.longbench").joinpath("prompts.json").read_text(encoding="utf-8")
    prompts: dict[str, str] = json.loads(text)
    return prompts


TASKS = {
    task.name: task
    for task in (
        Task("narrativeqa", "single-doc QA", "en", "qa_f1", 128, 200),
        Task("qasper", "single-doc QA", "en", "qa_f1", 128, 200, in_e=True),
        Task("multifieldqa_en", "single-doc QA", "en", "qa_f1", 64, 150, in_e=True),
        Task("multifieldqa_zh", "single-doc QA", "zh", "qa_f1_zh", 64, 200),
        Task("hotpotqa", "multi-doc QA", "en", "qa_f1", 32, 200, in_e=True),
        Task("2wikimqa", "multi-doc QA", "en", "qa_f1", 32, 200, in_e=True),
        Task("musique", "multi-doc QA", "en", "qa_f1", 32, 200),
        Task("dureader", "multi-doc QA", "zh", "rouge_zh", 128, 200),
        Task("gov_report", "summarization", "en", "rouge", 512, 200, in_e=True),
        Task("qmsum", "summarization", "en", "rouge", 512, 200),
        Task("multi_news", "summarization", "en", "rouge", 512, 200, in_e=True),
        Task("vcsum", "summarization", "zh", "rouge_zh", 512, 200),
        Task("trec", "few-shot", "en", "classification", 64, 200, chat=False, first_line=True, in_e=True),
        Task("triviaqa", "few-shot", "en", "qa_f1", 32, 200, chat=False, first_line=True, in_e=True),
        Task("samsum", "few-shot", "en", "rouge", 128, 200, chat=False, first_line=True, in_e=True),
        Task("lsht", "few-shot", "zh", "classification", 64, 200, chat=False, first_line=True),
        Task("passage_count", "synthetic", "en", "count", 32, 200, in_e=True),
        Task("passage_retrieval_en", "synthetic", "en", "retrieval", 32, 200, in_e=True),
        Task("passage_retrieval_zh", "synthetic", "zh", "retrieval_zh", 32, 200),
        Task("lcc", "code", "code", "code_sim", 64, 500, chat=False, in_e=True),
        Task("repobench-p", "code", "code", "code_sim", 64, 500, chat=False, in_e=True),
    )
}
"""The tasks by name, in the order of the published tables."""

CATEGORIES: tuple[Category, ...] = tuple(dict.fromkeys(task.category for task in TASKS.values()))

_MOST_E_ROWS = 300
_E_ROWS = {"qasper": 224, "multifieldqa_en": 150, "multi_news": 294}
"""LongBench-E has 100 rows of each length group, but fewer long ones of these tasks (``task.md`` of the official
repository)."""

BUCKETS = ("0-4k", "4-8k", "8k+")
"""LongBench-E's groups of rows by length in words."""


def bucket(length: int) -> str:
    """Return the length group of a row of ``length`` words."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def official_rows(names: Iterable[str], *, e: bool) -> int:
    """Return the number of rows of these tasks in LongBench or LongBench-E. Repeated names count once."""
    return sum(_E_ROWS.get(name, _MOST_E_ROWS) if e else TASKS[name].num_rows for name in set(names))


def split_name(name: str) -> tuple[Task | None, bool]:
    """Return the task of a name such as ``qasper`` or ``qasper_e`` (None if there is none), and whether the name is
    LongBench-E's."""
    plain = name.removesuffix(E_SUFFIX)
    task, is_e = TASKS.get(plain), plain != name
    return (None if task and is_e and not task.in_e else task), is_e
