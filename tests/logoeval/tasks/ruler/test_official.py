"""The generators make RULER's own prompts where they get its own random numbers.

``cases.jsonl.xz`` holds what the unchanged scripts of NVIDIA/RULER (c3f5e3b, Apache-2.0) wrote, with the tokenizer of
SmolLM2 and stand-ins for the files that they fetch: a piece of "The War of the Worlds", and invented questions in the
formats of SQuAD and HotpotQA. The protocol of the scripts is here: one stream of random numbers for a file, from which
their search for the number of units draws too, and steps back of a fixed size.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from logodata.models.loading import load_tokenizer
from logoeval.tasks.ruler.frequent_words import CommonWordsGenerator, FrequentWordsGenerator
from logoeval.tasks.ruler.needles import NeedleGenerator
from logoeval.tasks.ruler.questions import QuestionGenerator
from logoeval.tasks.ruler.sample import Sample
from logoeval.tasks.ruler.sources import common_words, key_words, read_essays, read_hotpot, read_squad
from logoeval.tasks.ruler.task_table import TASKS, Niah, Task
from logoeval.tasks.ruler.variables import VariableGenerator, draw_example

HERE = Path(__file__).parent
SEED = 42
CHAT = {"base": ("", ""), "meta-chat": ("[INST] ", " [/INST]")}


@cache
def tokenizer() -> Any:
    return load_tokenizer("embedded")


def count(text: str) -> int:
    return len(tokenizer().tokenize(text))


@cache
def files() -> dict[tuple[str, int, str, bool], list[dict[str, Any]]]:
    """The samples of each file that the scripts wrote: task, length, chat template, and whether newlines were
    removed."""
    found: dict[tuple[str, int, str, bool], list[dict[str, Any]]] = {}
    with lzma.open(HERE / "cases.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            found.setdefault((case["task"], case["length"], case["chat"], case["flat"]), []).append(case)
    return found


class Official:
    """The protocol of RULER's scripts over our generators."""

    def __init__(self, task: Task, length: int, chat: str, flat: bool) -> None:
        self.task, self.length, self.chat, self.flat = task, length, chat, flat
        self.rng, numbers = Random(SEED), np.random.RandomState(SEED)
        self.value: Callable[[Random], int] = lambda _: int(numbers.randint(10000, 99999))

    def text(self, sample: Sample) -> str:
        before, after = CHAT[self.chat]
        return "".join(f"{before}{question}{after}{answer}" for question, answer in sample.turns)

    def flattened(self, text: str) -> str:
        return " ".join(text.replace("\n", " ").replace("\t", " ").strip().split()) if self.flat else text

    def samples(self, number: int) -> Iterator[tuple[str, tuple[str, ...], int]]:
        """The first prompts with references and length."""
        kind, prompt, new = self.task.kind, self.task.prompt, self.task.max_new_tokens
        if kind == "fwe":
            yield from self.coded_words(number)
        elif kind == "vt":
            yield from self.variables(number)
        elif kind == "cwe":
            words = CommonWordsGenerator(self.length, prompt, common_words())
            estimate = int(self.length // (count(self.text(words.draw(self.rng, 4096, 0))) / 4096)) * 2
            units = self.search(words.first, estimate, lambda n: count(self.text(words.draw(self.rng, n, 0))) + new)
            yield from self.drawn(words.draw, units, words.first, number)
        else:
            if isinstance(kind, Niah):
                essay = read_essays(HERE / "essays.json") if kind.haystack == "essay" else None
                made: Any = NeedleGenerator(kind, self.length, prompt, key_words=key_words(), essay=essay)
            else:
                data = read_squad(HERE / "squad.json") if kind.dataset == "squad" else read_hotpot(HERE / "hotpot.json")
                made = QuestionGenerator(self.task.name, prompt, data)
            first = count(self.text(made.draw(self.rng, made.first, 0)))
            estimate = int(self.length / (first / made.first) * 3)
            units = self.search(made.first, estimate, lambda n: count(self.text(made.draw(self.rng, n, 0))) + new)
            yield from self.drawn(made.draw, units, made.first, number)

    def search(self, lowest: int, estimate: int, tokens: Callable[[int], int], limit: int | None = None) -> int:
        low, high, best = lowest, max(estimate, 2 * lowest), lowest
        while low <= high:
            middle = (low + high) // 2
            if tokens(middle) <= (limit or self.length):
                low, best = middle + 1, middle
            else:
                high = middle - 1
        return best

    def drawn(
        self, draw: Callable[[Random, int, int], Sample], units: int, step: int, number: int
    ) -> Iterator[tuple[str, tuple[str, ...], int]]:
        for index in range(number):
            used = units
            while True:
                sample = draw(self.rng, used, index)
                text = self.text(sample)
                if self.task.kind == "vt":  # which alone counts what is left
                    text = self.flattened(text)
                length = count(text) + self.task.max_new_tokens
                if length <= self.length:
                    break
                used -= step if used > step else 0
            yield self.flattened(text), sample.references, length

    def variables(self, number: int) -> Iterator[tuple[str, tuple[str, ...], int]]:
        prompt = self.task.prompt
        example = partial(draw_example, prompt=prompt)
        lines = self.search(
            5, int(500 / (count(example(self.rng, 5)[0]) / 5) * 3), lambda n: count(example(self.rng, n)[0]), 500
        )
        while count(self.flattened((drawn := example(self.rng, lines))[0])) > 500:
            lines -= 5 if lines > 5 else 0
        solved = (self.flattened(drawn[0]), drawn[1])
        made = VariableGenerator(self.length, prompt, solved, self.value)
        beside = count(f"{solved[0]} {solved[1]}\n") + self.task.max_new_tokens
        first = count(self.text(made.draw_question(self.rng, made.first)))
        units = self.search(
            made.first,
            int(self.length / (first / made.first) * 3),
            lambda n: count(self.text(made.draw_question(self.rng, n))) + beside,
        )
        yield from self.drawn(made.draw, units, made.first, number)

    def coded_words(self, number: int) -> Iterator[tuple[str, tuple[str, ...], int]]:
        limit = self.length - self.task.max_new_tokens
        made = FrequentWordsGenerator(limit, self.task.prompt)

        def again(units: int) -> tuple[str, Sample]:
            """One vocabulary serves all numbers of words that are tried."""
            self.rng.setstate(state)
            sample = made.draw(self.rng, units, 0)
            return self.text(sample), sample

        state = self.rng.getstate()
        units = made.first
        while count(again(units)[0]) < limit:
            units += made.step
        units -= made.step
        for _ in range(number):
            state, used = self.rng.getstate(), units
            while count(again(used)[0]) > limit:
                used -= made.step
            text, sample = again(used)
            yield self.flattened(text), sample.references, count(text) + self.task.max_new_tokens


def test_all_cases_are_here() -> None:
    assert sum(map(len, files().values())) == 102
    assert {task for task, *_ in files()} == set(TASKS)
    assert {(length, chat, flat) for _, length, chat, flat in files()} == {
        *((length, "base", False) for length in (1024, 2048, 4096)),
        (1024, "meta-chat", False),
        (1024, "base", True),
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_official_stream_gives_the_official_prompts(task: str) -> None:
    of_task = {key: cases for key, cases in files().items() if key[0] == task}
    for (_, length, chat, flat), cases in of_task.items():
        made = Official(TASKS[task], length, chat, flat).samples(len(cases))
        for case, (text, references, tokens) in zip(cases, made, strict=True):
            assert text == case["prompt"], (length, chat, flat)
            assert list(references) == case["outputs"]
            assert tokens == case["tokens"]
