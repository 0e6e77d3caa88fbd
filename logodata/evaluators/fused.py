"""The fused evaluator: reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from logodata.evaluators import Evaluator

MEMBERS: tuple[Literal["lexical", "entity", "embedding"], ...] = ("lexical", "entity", "embedding")
"""The evaluators whose ranks are added."""

RANK_OFFSET = 60
"""The paper's k: the larger, the less the first ranks stand out."""


class FusedEvaluator:
    """Score = sum over the members of 1 / (60 + rank of the chunk). It orders chunks; its size means nothing.

    Args:
        members: evaluators that each analyse the chunks once.
    """

    def __init__(self, members: Sequence[Evaluator]) -> None:
        self._members = members

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Scores [len(queries), len(chunks)], above 0."""
        return fuse([member.score(chunks, queries) for member in self._members])


def fuse(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of ``1 / (60 + rank)``, the best chunk of a row having rank 1.

    Equal scores share the mean of their ranks: counts tie often, and the order of the document must not decide.

    Args:
        scores: of each member [Q, C].
    """
    return np.sum([1 / (RANK_OFFSET + np.stack([_ranks(row) for row in member])) for member in scores], axis=0)


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks [C], 1 for the highest of ``scores`` [C], ties sharing their mean."""
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return ranks
