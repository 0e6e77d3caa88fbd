"""Draw the contexts of one question: critical, mixed and irrelevant ones, and the training context of all responses.

The functions are pure and seeded (paper section 3.2). Chunks always stand in document order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from logodata.common.recipes.reading import RecipeModel


class ContextSettings(RecipeModel):
    """Which chunks are critical, and how chunks form contexts."""

    num_chunks: int = Field(default=16, ge=2)
    """The number of chunks in a context, N (paper: 16)."""
    critical_threshold: float | None = None
    """A chunk with a score above this is critical. It replaces ``critical_top`` (paper: 6 shared entities, for
    512-token chunks; on other data few questions share as many)."""
    critical_top: int | None = Field(default=4, gt=0)
    """The number of best-scored chunks that are critical, if their score is above 0. Null where ``critical_threshold``
    is set."""
    mixed_ratios: tuple[float, ...] = (0.5,)
    """Each ratio gives one dis-preferred response, from a context that keeps this share of the critical chunks. With
    the response from irrelevant chunks alone, there are M = 1 + len(mixed_ratios) dis-preferred responses. At least one
    critical chunk is kept. With a single critical chunk, every mixed context is the training context itself;
    ``stats.json`` counts such samples (``single_critical_chunk``)."""

    @model_validator(mode="before")
    @classmethod
    def _threshold_alone(cls, values: Any) -> Any:
        """Drop the default of ``critical_top`` where a threshold is set."""
        if isinstance(values, dict) and values.get("critical_threshold") is not None:
            return {"critical_top": None, **values}
        return values

    @model_validator(mode="after")
    def _one_rule(self) -> ContextSettings:
        if (self.critical_threshold is None) == (self.critical_top is None):
            raise ValueError("set exactly one of critical_threshold and critical_top (the other to null)")
        if self.critical_top is not None and self.critical_top > self.num_chunks:
            raise ValueError(f"critical_top={self.critical_top} exceeds num_chunks={self.num_chunks}")
        if not all(0 < ratio < 1 for ratio in self.mixed_ratios):
            raise ValueError("mixed_ratios must lie between 0 and 1")
        names = [f"{ratio:g}" for ratio in self.mixed_ratios]
        if len(set(names)) < len(names):
            # These names identify responses: of two with one name, the first would be lost.
            raise ValueError(f"mixed_ratios must differ, also when they are printed: {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True)
class Contexts:
    """Chunk indices of each context, in ascending order.

    ``critical`` holds at most N critical chunks, and ``irrelevant`` N of the others. ``training`` holds every chunk of
    ``critical``, filled up to N with irrelevant ones. ``mixed`` holds, for each ratio, N chunks, part critical and part
    irrelevant; if ``critical`` has one chunk, they are those of ``training``.
    """

    critical: tuple[int, ...]
    irrelevant: tuple[int, ...]
    mixed: tuple[tuple[int, ...], ...]
    training: tuple[int, ...]


def draw_contexts(scores: NDArray[np.float64], settings: ContextSettings, rng: np.random.Generator) -> Contexts | str:
    """Choose the chunks of every context.

    Args:
        scores: The importance of each chunk for the question, float64 [C].
        settings: The rule for critical chunks, and the sizes.
        rng: Draws the irrelevant chunks, and the critical chunks that a mixed context keeps.

    Returns:
        The contexts, or the reason why there are none: ``no_critical_chunk`` or ``too_few_irrelevant_chunks``.
    """
    ranked = np.argsort(-scores, kind="stable")
    if settings.critical_top is not None:
        above = ranked[: settings.critical_top][scores[ranked[: settings.critical_top]] > 0]
        # Chunks that score as much as a critical one are not safely irrelevant.
        irrelevant_pool = [
            int(i) for i in ranked[settings.critical_top :] if len(above) and scores[i] < scores[above[-1]]
        ]
    else:
        assert settings.critical_threshold is not None
        above = ranked[scores[ranked] > settings.critical_threshold]
        irrelevant_pool = [int(i) for i in ranked[scores[ranked] <= settings.critical_threshold]]
    critical = [int(i) for i in above[: settings.num_chunks]]
    if not critical:
        return "no_critical_chunk"
    if len(irrelevant_pool) < settings.num_chunks:
        return "too_few_irrelevant_chunks"
    shuffled = [irrelevant_pool[i] for i in rng.permutation(len(irrelevant_pool))]
    n = settings.num_chunks
    mixed = []
    for ratio in settings.mixed_ratios:
        # At least one critical chunk stays, and at least one goes if there are several.
        count = min(max(round(ratio * len(critical)), 1), max(len(critical) - 1, 1))
        kept = [critical[i] for i in rng.permutation(len(critical))[:count]]
        mixed.append(tuple(sorted(kept + shuffled[: n - count])))
    return Contexts(
        critical=tuple(sorted(critical)),
        irrelevant=tuple(sorted(shuffled[:n])),
        mixed=tuple(mixed),
        training=tuple(sorted(critical + shuffled[: n - len(critical)])),
    )
