"""Score the importance of chunks for questions (paper section 3.2), all questions of a document in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from logodata.contexts.settings import EvaluatorSettings


class Evaluator(Protocol):
    """Scores chunks for queries."""

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Return scores, float64 [len(queries), len(chunks)]; higher is more important. Each chunk is analysed once."""
        ...


def open_evaluator(settings: EvaluatorSettings) -> Evaluator:
    """Open the evaluator that the settings name. Heavy libraries are loaded here."""
    if settings.name == "embedding":
        from logodata.contexts.embedding import EmbeddingEvaluator
        from logodata.models.loading import resolve_embedding_model

        return EmbeddingEvaluator(resolve_embedding_model(settings.embedding_model), settings.batch_size)
    if settings.name == "lexical":
        from logodata.contexts.lexical import LexicalEvaluator

        return LexicalEvaluator()
    if settings.name == "fused":
        return FusedEvaluator([open_evaluator(settings.model_copy(update={"name": name})) for name in MEMBERS])
    from logodata.contexts.entity import EntityEvaluator, open_entities

    return EntityEvaluator(open_entities(settings.entity_model))


MEMBERS: tuple[Literal["lexical", "entity", "embedding"], ...] = ("lexical", "entity", "embedding")
"""The evaluators whose ranks are fused."""

RANK_OFFSET = 60
"""The constant k of reciprocal rank fusion (Cormack et al. 2009). A larger k makes the first ranks count less."""


class FusedEvaluator:
    """Scores a chunk by the sum over the members of 1 / (60 + its rank). The score orders chunks and has no scale."""

    def __init__(self, members: Sequence[Evaluator]) -> None:
        self._members = members

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Return scores, float64 [len(queries), len(chunks)], all above 0."""
        return fuse([member.score(chunks, queries) for member in self._members])


def fuse(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the sum of ``1 / (60 + rank)`` over the members, float64 [Q, C]; the best chunk of a row has rank 1.

    Each member's scores are [Q, C]. Equal scores share the mean of their ranks, because counts are often equal and the
    order of the document must not decide.
    """
    from scipy.stats import rankdata

    return np.sum([1 / (RANK_OFFSET + rankdata(-member, axis=1)) for member in scores], axis=0)
