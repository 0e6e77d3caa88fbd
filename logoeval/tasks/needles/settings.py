"""The settings of the needle tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens, token_count
from logoeval.tasks.texts import Lengths


class RetrievalSettings(RecipeModel):
    """The retrieval score (LOGO, Eq. 5) of the samples of a needle test."""

    num_calibration: int = Field(default=4, gt=0)
    """Samples for each haystack and length (and depth of ``single``) that find the retrieval heads; none of them is
    measured."""
    heads: Path | None = None
    """``heads.json`` of another run, such as the base model's: its heads are measured. By default the model's own."""


NiahVariant = Literal["multivalue", "single", "shared_answer"]

_RANGE = re.compile(r"([^-/]+)-([^-/]+)/([^-/]+)")
_PAPER_DEPTHS = (0, 22, 44, 66, 88)
_NUM_VALUES = {"single": 1, "shared_answer": 2}


def _spelt_out(entry: object) -> Sequence[object]:
    """The numbers of a range; anything else as it is."""
    if not isinstance(entry, str) or entry.strip().replace(".", "").rstrip(" KkMm").isdecimal():
        return (entry,)
    match = _RANGE.fullmatch(entry.strip())
    if match is None:
        raise ValueError(f"{entry!r} is no range: write START-STOP/STEP, such as 8K-88K/0.5K")
    start, stop, step = (int(token_count(part.strip())) for part in match.groups())
    if step < 1 or start > stop or (stop - start) % step:
        raise ValueError(f"{entry!r}: steps of {step} do not lead from {start} to {stop}")
    return range(start, stop + 1, step)


class NiahSettings(RecipeModel):
    """Needle in a haystack."""

    variant: NiahVariant = "multivalue"
    """``multivalue``: RULER's ``niah_multivalue``, four numbers of one key at random depths. ``single``: one number, at
    each of ``depths``, for a heat map. ``shared_answer``: LOGO's own, two sentences that share one answer."""
    lengths: Lengths = (1024, 2048, 4096)
    """Prompt lengths in tokens of the model, chat template and answer prefix included. Never exceeded. Numbers, K for
    1,024, or ``START-STOP/STEP`` with both ends: ``8K-88K/0.5K`` is the paper's map."""
    depths: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(
        default_factory=lambda settings: _PAPER_DEPTHS if settings.get("variant") == "single" else ()
    )
    """Percent of the haystack's sentences before the needle; only for ``single`` (default: 0, 22, 44, 66, 88, the
    paper's). The others draw depths at random."""
    num_samples: int = Field(default=25, gt=0)
    """Samples for each haystack and length, and for each depth of ``single``."""
    num_values: int = Field(default_factory=lambda settings: _NUM_VALUES.get(settings.get("variant"), 4), gt=0, le=40)
    """Values hidden for the one key that is asked for. Default: 4 for ``multivalue`` (RULER's), 2 for
    ``shared_answer`` (the paper's, at most 8); ``single`` has 1."""
    max_new_tokens: Tokens = 128
    """Length cap of a response (RULER: 128)."""
    haystacks: Annotated[tuple[str, ...], Field(min_length=1), OrPath("noise", "distractors", "essay")] = (
        "noise",
        "essay",
    )
    """``noise``: RULER's five sentences, repeated. ``distractors``: sentences like the needles, of other keys.
    ``essay``: prose of Python's own documentation. Else a folder of .txt files, or one file."""
    retrieval: RetrievalSettings | None = None
    """Also measure which values the model's heads find (transformers)."""

    @field_validator("lengths", mode="before")
    @classmethod
    def _spelt_out(cls, value: object) -> object:
        """``8K-88K/0.5K`` as numbers, also among others."""
        if not isinstance(value, list | tuple):
            return value
        return [length for entry in value for length in _spelt_out(entry)]

    @field_validator("lengths", "depths", "haystacks")
    @classmethod
    def _no_repeats(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat an entry")
        return value

    @field_validator("depths")
    @classmethod
    def _depths_of_single(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        variant = info.data.get("variant")
        if value and variant != "single":
            raise ValueError(f"{variant} draws depths at random: leave them out, or give niah.variant=single")
        if not value and variant == "single":
            raise ValueError("single needs depths")
        return value

    @field_validator("num_values")
    @classmethod
    def _values_of_variant(cls, value: int, info: ValidationInfo) -> int:
        variant = info.data.get("variant")
        if variant == "single" and value != 1:
            raise ValueError("single hides one value: leave it out")
        if variant == "shared_answer" and not 2 <= value <= 8:
            raise ValueError("shared_answer needs 2 to 8 sentences")
        return value
