"""The eight needle tasks (``niah.py``)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from random import Random

from logoeval.tasks.needles.placement import DEPTHS
from logoeval.tasks.ruler.sample import Generator, Sample, put_in_fixed_order
from logoeval.tasks.ruler.task_table import NeedleType, Niah
from logoeval.tasks.texts import NOISE_LINE, split_sentences

_NEEDLE = "One of the special magic {type} for {key} is: {value}."
_SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))


class Essay:
    """The text of the essays as words, of which prompts take the first ones."""

    def __init__(self, text: str) -> None:
        self.words = re.sub(r"\s+", " ", text).split(" ")
        self._kept: tuple[int, list[str]] = (0, [])

    @property
    def num_words(self) -> int:
        """The number of words, without the empty ones that white space at the ends makes."""
        return sum(map(bool, self.words))

    def sentences(self, num_words: int) -> list[str]:
        """Return the sentences of the first words. After the last word comes the first again. RULER asks nltk's punkt
        for the sentences, whose data must be downloaded; we cut by rules."""
        if self._kept[0] != num_words:  # nearly all samples of a task and length take equally many
            rounds = -(-num_words // len(self.words))
            self._kept = num_words, split_sentences(" ".join((self.words * rounds)[:num_words]))
        return self._kept[1]


class NeedleGenerator(Generator):
    """Makes samples of one needle task. ``key_words`` are the words that keys are drawn from; units are words of the
    essays, or lines."""

    def __init__(
        self,
        kind: Niah,
        length: int,
        prompt: tuple[str, str],
        *,
        key_words: Sequence[str] = (),
        essay: Essay | None = None,
    ) -> None:
        self._kind, self._key_words, self._essay = kind, key_words, essay
        self.first = 500 if kind.haystack == "essay" else 5 if length < 4096 else 25
        is_one = kind.num_asked * kind.num_values == 1
        self._template, self._prefix = (_singular(text) if is_one else text for text in prompt)
        self._type_asked = kind.values[:-1] if is_one else kind.values

    def fewest(self, _: int) -> int:
        """Return the number of needles: in lines, each has a place of its own."""
        return self._kind.num_keys * self._kind.num_values

    def goes_round(self, num_units: int) -> bool:
        """Whether the essays have fewer words. The other haystacks repeat by design."""
        return self._essay is not None and num_units > len(self._essay.words)

    def draw(self, rng: Random, num_units: int, _: int) -> Sample:
        """Draw keys, values, places and what is asked for."""
        kind = self._kind
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(kind.num_keys):
            keys.append(self._new(rng, kind.keys))
            values.append([self._new(rng, kind.values) for _ in range(kind.num_values)])
        needles = [self._needle(key, value) for key, own in zip(keys, values, strict=True) for value in own]
        put_in_fixed_order(needles)
        hide = self._in_lines if self._essay is None else self._in_essay
        context = hide(rng, num_units, needles)
        asked = rng.sample(range(kind.num_keys), kind.num_asked)
        *most, last = (keys[number] for number in asked)
        query = f"{', '.join(most)}, and {last}" if most else last
        fields = {"type_needle_v": self._type_asked, "query": query}
        return Sample(
            ((self._template.format(context=context, **fields), self._prefix.format(**fields)),),
            tuple(value for number in asked for value in values[number]),
        )

    def _in_essay(self, rng: Random, num_words: int, needles: list[str]) -> str:
        """Put each needle before the sentence at its depth. Empty pieces are joined too, so that a prompt may begin
        with a space."""
        assert self._essay is not None
        sentences = self._essay.sentences(num_words)
        places = sorted(int(len(sentences) * (depth / 100)) for depth in rng.sample(DEPTHS, len(needles)))
        pieces: list[str] = []
        for start, end, needle in zip([0, *places], places, needles, strict=False):
            pieces += [" ".join(sentences[start:end]), needle]
        return " ".join([*pieces, " ".join(sentences[places[-1] :])])

    def _in_lines(self, rng: Random, num_lines: int, needles: list[str]) -> str:
        lines = [NOISE_LINE] * num_lines
        if self._kind.haystack == "needle":
            lines = [
                self._needle(self._new(rng, self._kind.keys), self._new(rng, self._kind.values))
                for _ in range(num_lines)
            ]
        places = sorted(rng.sample(range(num_lines), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(type=self._kind.values, key=key, value=value)

    def _new(self, rng: Random, kind: NeedleType) -> str:
        if kind == "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        if kind == "words":
            return rng.choice(self._key_words)
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _singular(text: str) -> str:
    for plural, singular in _SINGULAR:
        text = text.replace(plural, singular)
    return text
