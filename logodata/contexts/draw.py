"""Draw the contexts of one question: critical, mixed and irrelevant ones, and the training context of all responses.

The functions are pure and seeded (paper section 3.2). Chunks always stand in document order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logodata.contexts.settings import ContextSettings


@dataclass(frozen=True, slots=True)
class Contexts:
    """Chunk indices of each context, in ascending order.

    ``critical`` holds at most N critical chunks, and ``irrelevant`` N of the others. ``training`` holds every chunk of
    ``critical``, filled up to N with irrelevant ones. ``mixed`` holds, for each ratio, N chunks, part critical and part
    irrelevant; if ``critical`` has one chunk, they are those of ``training``. Where contexts are not compared,
    ``irrelevant`` and ``mixed`` are empty.
    """

    critical: tuple[int, ...]
    irrelevant: tuple[int, ...]
    mixed: tuple[tuple[int, ...], ...]
    training: tuple[int, ...]


def draw_contexts(
    scores: NDArray[np.float64], settings: ContextSettings, rng: np.random.Generator, *, compared: bool = True
) -> Contexts | str:
    """Choose the chunks of every context.

    Args:
        scores: The importance of each chunk for the question, float64 [C].
        rng: Draws the irrelevant chunks, and the critical chunks that a mixed context keeps.
        compared: Whether responses to different contexts are compared. If not, the irrelevant chunks need only fill the
            training context up.

    Returns:
        The contexts, or the reason why there are none: ``no_critical_chunk`` or ``too_few_irrelevant_chunks``.
    """
    ranked, n, top = np.argsort(-scores, kind="stable").tolist(), settings.num_chunks, settings.critical_top
    if top is not None:
        critical = [i for i in ranked[:top] if scores[i] > 0]
        # Chunks that score as much as a critical one are not safely irrelevant.
        irrelevant = [i for i in ranked[top:] if critical and scores[i] < scores[critical[-1]]]
    else:
        assert settings.critical_threshold is not None
        critical = [i for i in ranked if scores[i] > settings.critical_threshold][:n]
        irrelevant = [i for i in ranked if scores[i] <= settings.critical_threshold]
    if not critical:
        return "no_critical_chunk"
    if len(irrelevant) < (n if compared else n - len(critical)):
        return "too_few_irrelevant_chunks"
    shuffled = [irrelevant[i] for i in rng.permutation(len(irrelevant))]
    mixed = []
    for ratio in settings.mixed_ratios if compared else ():
        # At least one critical chunk stays, and at least one goes if there are several.
        count = min(max(round(ratio * len(critical)), 1), max(len(critical) - 1, 1))
        kept = [critical[i] for i in rng.permutation(len(critical))[:count]]
        mixed.append(tuple(sorted(kept + shuffled[: n - count])))
    return Contexts(
        critical=tuple(sorted(critical)),
        irrelevant=tuple(sorted(shuffled[:n])) if compared else (),
        mixed=tuple(mixed),
        training=tuple(sorted(critical + shuffled[: n - len(critical)])),
    )
