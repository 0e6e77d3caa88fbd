"""The three tests: what a needle says, what is asked, how the answer begins.

- ``multivalue``: RULER's ``niah_multivalue`` (Hsieh et al. 2024, arXiv 2404.06654). Several sentences of one wording
  give numbers of one key; the model is asked for all of them.
- ``single``: RULER's wording for one number, at a given depth: the cells of a heat map.
- ``shared_answer``: the LOGO paper's own (Fig. 8): two sentences at random depths share one answer. We read it so:
  each sentence tells one part, no sentence alone answers, and the one question asks for the whole. The paper scores
  the share of values that the response holds, whatever their order, and so do we. Its sentences are not published as
  data: the wording is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from logodata.prompts import CHUNK_SEPARATOR
from logoeval.tasks.needles.settings import NiahVariant

NEEDLE = "One of the special magic numbers for {key} is: {value}."
# PromptFormat writes a separator after the context, and the key comes with its leading space so that it is tokenised
# as it is inside the text. Put together this is RULER's prompt, character for character.
assert CHUNK_SEPARATOR == "\n"
ANSWER_PREFIX = " The special magic numbers for {key} mentioned in the provided text are"

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True, slots=True)
class Wording:
    """``template`` takes ``{context}`` and ``{question}`` (the key, after a space), ``needle`` takes ``{key}``,
    ``{value}`` and ``{ordinal}``, ``answer_prefix`` takes ``{key}``."""

    needle: str
    template: str
    answer_prefix: str

    def needles(self, key: str, values: tuple[str, ...]) -> tuple[str, ...]:
        """A sentence a value."""
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
    NEEDLE,  # RULER leaves the sentence as it is
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
    """The sentences of a variant; RULER writes its prompt in the singular where one number is asked for."""
    if variant == "shared_answer":
        return _SHARED
    return _ONE if num_values == 1 else _SEVERAL
