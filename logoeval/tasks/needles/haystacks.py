"""The texts that needles are hidden in. They consist of units, sentences or lines, that are never cut."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np

from logodata.common.errors import UserError
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.needles.variants import NEEDLE
from logoeval.tasks.texts import NOISE_LINE, pydoc_documents, read_documents, split_sentences, text_fingerprint

BUILT_IN = ("noise", "distractors", "essay")
NUM_DISTRACTORS = 16_384
"""The number of distractor sentences, about 400,000 tokens. A longer haystack repeats them, and the results say so."""

_ADJECTIVES = """ancient bitter brave bright calm careful clever curious damp distant eager early elegant faint famous
fierce fragile gentle golden hidden hollow humble icy jolly keen lazy little lonely lucky mellow modern narrow noble
patient plain polite proud quick quiet rapid rough rusty shallow sharp shiny silent simple sleepy slow small smooth
solemn steady stormy sunny tender tidy velvet wild wise"""
_NOUNS = """anchor apple arrow barrel basket beacon bottle branch bridge bucket button candle canyon carpet castle
cellar chimney cloud compass copper cradle desert donkey engine falcon feather fiddle forest fountain garden hammer
harbor helmet island jacket kettle ladder lantern lemon marble meadow mirror needle ocean orchard oyster pencil pepper
pillow planet rabbit ribbon saddle shadow spider temple thunder tunnel violin walnut window"""
_PAIRS = [f"{adjective}-{noun}" for adjective, noun in product(_ADJECTIVES.split(), _NOUNS.split())]
# No distractor may answer the question, so needles and distractors have separate lists of keys.
KEYS, DISTRACTOR_KEYS = _PAIRS[::8], [pair for number, pair in enumerate(_PAIRS) if number % 8]


class Haystack:
    """A text to hide needles in: ``noise`` (RULER's line of five sentences, repeated), ``distractors`` (RULER's needle
    haystack: sentences like the needles, but of other keys), ``essay`` (prose of Python's documentation), or the
    ``.txt`` files under a path.

    Raises:
        UserError: there is no text under the path.
    """

    def __init__(self, name: str) -> None:
        self.name = name if name in BUILT_IN else Path(name).name
        self.repeats_by_design = name == "noise"
        self.joiner = "\n" if name in ("noise", "distractors") else " "
        if name == "noise":
            self.units = [NOISE_LINE]
        elif name == "distractors":
            self.units = _distractors()
        else:
            documents = pydoc_documents() if name == "essay" else read_documents(Path(name))
            self.units = split_sentences("\n\n".join(text for _, text in documents))
        self.numbers = frozenset(number for unit in self.units for number in re.findall(r"\d{7,}", unit))
        """The numbers of seven or more digits in the text. No needle may have one of them."""
        self.fingerprint = text_fingerprint("\n".join(self.units))

    def take(self, start: int, count: int) -> list[str]:
        """Return ``count`` units from unit ``start`` on. After the last unit comes the first again."""
        return [self.units[(start + offset) % len(self.units)] for offset in range(count)]


def _distractors() -> list[str]:
    """Return the distractor sentences, which are equal for all seeds; a sample begins at a random one of them."""
    rng = np.random.default_rng(0)
    values = 10**6 + rng.choice(9 * 10**6, size=NUM_DISTRACTORS, replace=False)
    keys = rng.integers(len(DISTRACTOR_KEYS), size=NUM_DISTRACTORS)
    return [NEEDLE.format(key=DISTRACTOR_KEYS[key], value=value) for key, value in zip(keys, values, strict=True)]


def haystacks(settings: NiahSettings) -> list[Haystack]:
    """Return the haystacks of a recipe. One that cannot be read raises a ``UserError``, and so do two folders of the
    same name, since sample ids would clash."""
    found = [Haystack(entry) for entry in settings.haystacks]
    names = [haystack.name for haystack in found]
    if len(set(names)) < len(names):
        raise UserError(
            "niah.haystacks: two folders share a name", where=", ".join(settings.haystacks), mend="rename one"
        )
    return found
