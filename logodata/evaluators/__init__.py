"""Importance scores of chunks for questions (paper section 3.2): one call a document, all its questions together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from logodata.common.field_types import OrPath
from logodata.common.recipe_io import RecipeModel


class EvaluatorSettings(RecipeModel):
    """How a chunk's importance for a question is scored."""

    name: Literal["entity", "lexical", "embedding", "fused"] = "entity"
    """``entity`` counts shared entities; ``lexical`` is BM25 over content words; ``embedding`` is the cosine of
    sentence embeddings; ``fused`` ranks by each of the three and adds reciprocal ranks."""
    query: Literal["question", "question_and_answer"] = "question"
    """What a chunk is compared with. The paper compares with the question, its published code with question and
    answer."""
    entity_model: Annotated[str, Field(min_length=1), OrPath("builtin", "auto")] = "builtin"
    """For ``entity`` and ``fused``: what finds entities. ``builtin``: names, numbers and content words by stem, no
    model. A spaCy pipeline, as a package or a folder: its entities, and its lemmas of nouns and verbs. ``auto``: an
    installed ``en_core_web_*``, else ``builtin``; the log says which, and another machine may score otherwise."""
    embedding_model: Annotated[str, OrPath("embedded")] = "embedded"
    """For ``embedding`` and ``fused``: a sentence-transformers model, as a folder or a hub name; ``embedded`` is
    all-MiniLM-L6-v2."""
    batch_size: int = Field(default=64, gt=0)
    """For ``embedding`` and ``fused``: chunks encoded at a time."""

    def threshold_fault(self, threshold: float) -> str | None:
        """Why chunks over ``threshold`` cannot be told by this evaluator's scores; None if they can."""
        if self.name == "fused":
            return "the fused score orders chunks and measures nothing"
        if self.name == "lexical":
            return "BM25 has no scale: its scores depend on the document's other chunks"
        if self.name == "embedding" and not -1 < threshold < 1:
            return "a cosine lies between -1 and 1"
        if self.name == "entity" and threshold < 0:
            return "a count of shared entities is never below 0"
        return None


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
    if settings.name == "lexical":
        from logodata.evaluators.lexical import LexicalEvaluator

        return LexicalEvaluator()
    if settings.name == "fused":
        from logodata.evaluators.fused import MEMBERS, FusedEvaluator

        return FusedEvaluator([open_evaluator(settings.model_copy(update={"name": name})) for name in MEMBERS])
    from logodata.evaluators.entity import EntityEvaluator, open_entities

    return EntityEvaluator(open_entities(settings.entity_model))


__all__ = ["Evaluator", "EvaluatorSettings", "open_evaluator"]
