"""Variable tracking (``variable_tracking.py``): a chain of assignments among lines of noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from logoeval.tasks.ruler.sample import Generator, Sample
from logoeval.tasks.texts import NOISE_LINE

_NUM_NAMES = 5  # a chain of four hops
_EXAMPLE_VALUE = "12345"

EXAMPLE_TOKENS = 500
"""The most tokens of the solved example, before its answer."""


def new_value(rng: Random) -> int:
    """Draw a variable's value. RULER's script takes it from numpy's generator, and everything else from Python's."""
    return rng.randint(10_000, 99_998)


def draw_example(rng: Random, num_lines: int, prompt: tuple[str, str]) -> tuple[str, str]:
    """Draw the solved example that stands before every question, and return its prompt and its answer."""
    names = _names(rng, 3)
    text = _prompt(_chain(rng, names, _EXAMPLE_VALUE, num_lines), _EXAMPLE_VALUE, "".join(prompt))
    return text, " ".join(names)


class VariableGenerator(Generator):
    """Makes samples of variable tracking; units are lines. ``example`` is the solved example's prompt and answer, with
    the same lines in all samples; its names and its value are drawn anew for each."""

    def __init__(
        self,
        length: int,
        prompt: tuple[str, str],
        example: tuple[str, str],
        value: Callable[[Random], int] = new_value,
    ) -> None:
        self.first = 5 if length < 4096 else 10
        self._template, self._prefix = prompt
        self._example, self._value = example, value

    def fewest(self, _: int) -> int:
        """Return the length of the chain: each of its lines has a place of its own."""
        return _NUM_NAMES

    def draw(self, rng: Random, num_units: int, _: int) -> Sample:
        """Draw a chain and its places, then the names and the value of the example."""
        bare = self.draw_question(rng, num_units)
        ((question, prefix),) = bare.turns
        return Sample(((f"{self._new_example(rng)}\n{question}", prefix),), bare.references)

    def draw_question(self, rng: Random, num_units: int) -> Sample:
        """Draw a sample without the example."""
        names = _names(rng, 5)
        value = str(self._value(rng))
        context = _chain(rng, names, value, num_units)
        turn = (_prompt(context, value, self._template), _prompt("", value, self._prefix))
        return Sample((turn,), tuple(names))

    def _new_example(self, rng: Random) -> str:
        question, answer = self._example
        example = f"{question} {answer}\n"
        for name in answer.split():
            example = example.replace(name, "".join(rng.choices(ascii_uppercase, k=len(name))))
        return example.replace(_EXAMPLE_VALUE, str(self._value(rng)))


def _names(rng: Random, num_letters: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < _NUM_NAMES:
        names["".join(rng.choices(ascii_uppercase, k=num_letters))] = None
    return list(names)


def _chain(rng: Random, names: list[str], value: str, num_lines: int) -> str:
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    lines = [NOISE_LINE] * num_lines
    for number, place in enumerate(sorted(rng.sample(range(num_lines), len(chain)))):
        lines.insert(place + number, chain[number])
    return "\n".join(lines).replace(". \n", ".\n")


def _prompt(context: str, value: str, template: str) -> str:
    return template.format(context=context, query=value, num_v=_NUM_NAMES)
