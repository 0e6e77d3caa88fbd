"""The wording of the three variants: the needle, the question, and the beginning of the answer.

- ``multivalue``: RULER's ``niah_multivalue`` (Hsieh et al. 2024, arXiv 2404.06654). Several sentences of one wording
  give numbers of one key, and the question asks for all of them.
- ``single``: RULER's wording for one number at a given depth, for the cells of a heat map.
- ``shared_answer``: the variant of the LOGO paper (Fig. 8), where two sentences at random depths share one answer. We
  understand it so: each sentence gives one part, no sentence alone is the answer, and the question asks for the whole.
  The score, as in the paper, is the share of values in the response, in any order. The paper's sentences are not
  published as data, so the wording is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from logodata.prompts import CHUNK_SEPARATOR
from logoeval.tasks.needles.settings import NiahVariant

NEEDLE = "One of the special magic numbers for {key} is: {value}."
# PromptFormat writes a separator after the context. The key has a leading space, so that it is tokenised as inside the
# text. The result equals RULER's prompt in every character.
assert CHUNK_SEPARATOR == "\n"
ANSWER_PREFIX = " The special magic numbers for {key} mentioned in the provided text are"

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True, slots=True)
class Wording:
    """The sentences of one variant: the needle, with ``{key}``, ``{value}`` and ``{ordinal}``; the prompt, with
    ``{context}`` and ``{question}`` (a space and the key); the beginning of the answer, with ``{key}``."""

    needle: str
    template: str
    answer_prefix: str

    def needles(self, key: str, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return one sentence for each value."""
        return tuple(
            self.needle.format(key=key, value=value, ordinal=ordinal)
            for value, ordinal in zip(values, cycle(ORDINALS), strict=False)
        )


_SEVERAL = Wording(
    NEEDLE,
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n{context}"
    "What are all the special magic numbers for{question} mentioned in the provided text?",
    ANSWER_PREFIX,
)
_ONE = Wording(
    NEEDLE,  # RULER too keeps the plural in this sentence
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n{context}"
    "What is the special magic number for{question} mentioned in the provided text?",
    " The special magic number for {key} mentioned in the provided text is",
)
_SHARED = Wording(
    "The {ordinal} number of the magic combination for {key} is: {value}.",
    "The numbers of a magic combination are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the combination afterwards.\n{context}"
    "What is the whole magic combination for{question} mentioned in the provided text?",
    " The magic combination for {key} mentioned in the provided text is",
)


def wording(variant: NiahVariant, num_values: int) -> Wording:
    """Return the sentences of a variant. As in RULER, the prompt is in the singular if it asks for one number."""
    if variant == "shared_answer":
        return _SHARED
    return _ONE if num_values == 1 else _SEVERAL
