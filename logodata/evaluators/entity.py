"""The built-in entity evaluator: entities shared by chunk and question (paper section 3.2, Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from logodata.text import content_stems


class EntityEvaluator:
    """Score = number of distinct entities that a chunk shares with the question.

    The paper takes entities from a spaCy model; this one needs no model and counts names, numbers and content words by
    their stems, as the published code does with noun and verb lemmas.
    """

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Scores [len(queries), len(chunks)]: counts of shared entities."""
        chunk_entities = [frozenset(content_stems(chunk)) for chunk in chunks]
        scores = np.zeros((len(queries), len(chunks)))
        for row, query in enumerate(queries):
            wanted = frozenset(content_stems(query))
            scores[row] = [len(wanted & entities) for entities in chunk_entities]
        return scores
