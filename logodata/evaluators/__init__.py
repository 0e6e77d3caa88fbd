"""Importance scores of chunks for questions (paper section 3.2): one call a document, all its questions together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from logodata.common.recipe_io import RecipeModel


class EvaluatorSettings(RecipeModel):
    """How a chunk's importance for a question is scored."""

    name: Literal["entity", "embedding"] = "entity"
    """``entity`` counts shared entities (names, numbers, content words); ``embedding`` is the cosine of sentence
    embeddings."""
    query: Literal["question", "question_and_answer"] = "question"
    """What a chunk is compared with. The paper compares with the question, its published code with question and
    answer."""
    embedding_model: str = "embedded"
    """For ``embedding``: a sentence-transformers model, as a folder or a hub name; ``embedded`` is all-MiniLM-L6-v2."""
    batch_size: int = Field(default=64, gt=0)
    """For ``embedding``: chunks encoded at a time."""


class Evaluator(Protocol):
    """Scores chunks for queries."""

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Scores [len(queries), len(chunks)], float64; higher is more important. Each chunk is analysed once."""
        ...


def open_evaluator(settings: EvaluatorSettings) -> Evaluator:
    """The evaluator that the settings name; heavy libraries are loaded here."""
    if settings.name == "embedding":
        from logodata.evaluators.embedding import EmbeddingEvaluator
        from logodata.models import resolve_embedding_model

        return EmbeddingEvaluator(resolve_embedding_model(settings.embedding_model), settings.batch_size)
    from logodata.evaluators.entity import EntityEvaluator

    return EntityEvaluator()


__all__ = ["Evaluator", "EvaluatorSettings", "open_evaluator"]
