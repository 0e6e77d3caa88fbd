"""Build prompts that fill a length: the number of units is found once, and a sample that is too long takes fewer.

RULER looks for the number of units by bisection over random prompts, and so do we, over prompts of question 0. Three
things differ. Each sample is drawn from a seed of its own, so that it depends on nothing before it. One that is too
long is made again from the same seed with as many units fewer as it takes; RULER's scripts draw another one and take
off 500 words, 25 lines or 10 documents at a time. Where the smallest number of units does not fit, the scripts never
end, and here it is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from logodata.common.errors import UserError
from logoeval.tasks.ruler.frequent_words import CommonWordsGenerator, FrequentWordsGenerator
from logoeval.tasks.ruler.needles import NeedleGenerator
from logoeval.tasks.ruler.prompts import Frame
from logoeval.tasks.ruler.questions import QuestionGenerator, QuestionSet
from logoeval.tasks.ruler.sample import Generator, Sample
from logoeval.tasks.ruler.settings import RulerSettings
from logoeval.tasks.ruler.sources import common_words, key_words, read_essays, read_hotpot, read_squad
from logoeval.tasks.ruler.task_table import Niah, Questions, Task
from logoeval.tasks.ruler.variables import EXAMPLE_TOKENS, VariableGenerator, draw_example
from logoeval.tasks.texts import text_fingerprint


@dataclass(frozen=True, slots=True)
class RulerSample:
    """A prompt with its references. Samples of one ``cluster`` ask about the same documents, so they are not
    independent evidence. ``max_new_tokens`` are those of the answer, and ``num_units`` is the number of words, lines or
    documents."""

    id: str
    cluster: str
    prompt_ids: tuple[int, ...]
    references: tuple[str, ...]
    max_new_tokens: int
    num_units: int


class SampleBuilder:
    """Builds the samples of one task and length. A sample depends only on seed, task, length and index, on the number
    of units that sample 0 has room for, and on what it is made of.

    A length holds the prompt with its answer prefix and the task's new tokens, as RULER's. A model that ``reasons``
    gets the same text without the prefix. Most begin their answer with the prefix, or with words like it, so the answer
    may have its tokens more: a prompt with its answer still fits the length, which the reasoning is no part of.

    Raises:
        UserError: the length has no room for the smallest prompt.
    """

    def __init__(
        self, task: Task, length: int, settings: RulerSettings, frame: Frame, *, seed: int, reasons: bool = False
    ) -> None:
        self._task, self._length, self._frame, self._seed = task, length, frame, seed
        self._reasons = reasons
        self._room = length - task.max_new_tokens
        self.template = text_fingerprint("\n".join((frame.fingerprint, *task.prompt)))
        self._generator = self._make_generator(settings)
        self._num_units = self._find_units()

    def build(self, index: int) -> RulerSample:
        """Build a sample.

        Raises:
            UserError: its smallest prompt is too long.
        """
        most, room = max(self._num_units, self._generator.fewest(index)), self._room
        drawn = {most: self._draw(most, index)}
        excess = len(drawn[most][1]) - room
        less = 0
        if excess > 0:
            fewest = self._generator.fewest(index)

            def is_short(less: int) -> bool:
                drawn[most - less] = self._draw(most - less, index)
                return len(drawn[most - less][1]) <= room

            guess = excess * most // (room + excess)
            less = first_true(lambda less: less > most - fewest or is_short(less), guess)
            if most - less < fewest:
                raise self._no_room(fewest, index)
        sample, ids = drawn[most - less]
        name = f"{self._task.name}-{self._length}-{index}"
        sent = self._frame.encode(sample.turns, prefix=False) if self._reasons else ids
        return RulerSample(
            id=name,
            # A question is asked at every length, and other questions of the same paragraph too.
            cluster=self._generator.cluster(index) or name,
            prompt_ids=sent,
            references=sample.references,
            max_new_tokens=self._task.max_new_tokens + len(ids) - len(sent),
            num_units=most - less,
        )

    @property
    def goes_round(self) -> bool:
        """Whether the user's text is shorter than the prompts, and is repeated."""
        return self._generator.goes_round(self._num_units)

    def _find_units(self) -> int:
        generator, step = self._generator, self._generator.step
        first = max(generator.first, generator.fewest(0))
        most = generator.most
        if not self._fits(first, 0):
            raise self._no_room(first, 0)

        def too_many(steps: int) -> bool:
            units = first + steps * step
            return (most is not None and units > most) or not self._fits(units, 0)

        num_units = first + (first_true(too_many) - 1) * step
        if most is not None and num_units == most:
            raise UserError(
                f"ruler.lengths: {self._length} tokens hold more than the {most:,} words that {self._task.name} has",
                mend="lower the length, or leave the task out with ruler.tasks",
            )
        return num_units

    def _fits(self, num_units: int, index: int) -> bool:
        return len(self._draw(num_units, index)[1]) <= self._room

    def _draw(self, num_units: int, index: int) -> tuple[Sample, tuple[int, ...]]:
        rng = random_source(self._seed, self._task.name, self._length, index)
        sample = self._generator.draw(rng, num_units, index)
        return sample, self._frame.encode(sample.turns)

    def _no_room(self, num_units: int, index: int) -> UserError:
        needed = len(self._draw(num_units, index)[1]) + self._task.max_new_tokens
        return UserError(
            f"ruler.lengths: {self._length} tokens have no room for {self._task.name}, whose smallest prompt takes "
            f"{needed} with its answer",
            mend="raise the length, or leave the task out with ruler.tasks",
        )

    def _make_generator(self, settings: RulerSettings) -> Generator:
        task, prompt = self._task, self._task.prompt
        if isinstance(task.kind, Questions):
            return QuestionGenerator(task.name, prompt, question_set(settings, task))
        if isinstance(task.kind, Niah):
            essay = read_essays(settings.essays) if task.needs and settings.essays else None
            words = key_words() if task.needs_words else ()
            return NeedleGenerator(task.kind, self._length, prompt, key_words=words, essay=essay)
        if task.kind == "vt":
            return VariableGenerator(self._length, prompt, self._vt_example())
        if task.kind == "cwe":
            return CommonWordsGenerator(self._length, prompt, common_words())
        return FrequentWordsGenerator(self._room, prompt)

    def _vt_example(self) -> tuple[str, str]:
        """Return variable tracking's solved example, the same at every length: as many lines as 500 tokens hold, and
        not fewer than five."""

        def draw(num_lines: int) -> tuple[str, str]:
            return draw_example(random_source(self._seed, "vt", "example"), num_lines, self._task.prompt)

        def too_long(more: int) -> bool:
            return self._frame.count(draw(4 + more)[0]) > EXAMPLE_TOKENS

        return draw(max(5, 3 + first_true(too_long)))


def question_set(settings: RulerSettings, task: Task) -> QuestionSet:
    """Return the questions of a task that asks real ones."""
    if task.needs == "squad":
        assert settings.squad is not None
        return read_squad(settings.squad)
    assert settings.hotpot is not None
    return read_hotpot(settings.hotpot)


def random_source(*parts: object) -> Random:
    """Return Python's random generator with a seed that is a hash of ``parts``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


def first_true(test: Callable[[int], bool], guess: int = 1) -> int:
    """Return the smallest number from 1 on for which ``test`` is true, given that it is true for all larger ones. Steps
    that double lead away from the guess, and halving back."""
    high, step = max(1, guess), 1
    low = high - 1
    if test(high):
        while low > 0 and test(low):
            step *= 2
            low, high = max(0, low - step), low
    else:
        low, high = high, high + step
        while not test(high):
            step *= 2
            low, high = high, high + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle) else (middle, high)
    return high
