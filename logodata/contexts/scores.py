"""Importance scores of chunks for questions (paper section 3.2): one call a document, all its questions together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath
from logodata.common.words import content_stems


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
        from logodata.contexts.embedding import EmbeddingEvaluator
        from logodata.models.loading import resolve_embedding_model

        return EmbeddingEvaluator(resolve_embedding_model(settings.embedding_model), settings.batch_size)
    if settings.name == "lexical":
        return LexicalEvaluator()
    if settings.name == "fused":
        return FusedEvaluator([open_evaluator(settings.model_copy(update={"name": name})) for name in MEMBERS])
    from logodata.contexts.entity import EntityEvaluator, open_entities

    return EntityEvaluator(open_entities(settings.entity_model))


__all__ = ["Evaluator", "EvaluatorSettings", "open_evaluator"]

K1, B = 1.5, 0.75
"""How soon repeats of a word stop to count, and how far long chunks are held back. All chunks but a document's last are
about equally long, so ``B`` hardly matters."""


class LexicalEvaluator:
    """Score = BM25 (Lucene's form: no negative idf) of chunk and question; a document's chunks are the collection.

    Unlike the count of shared entities it weighs words: one that stands in every chunk tells nothing.
    """

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Scores [len(queries), len(chunks)], 0 where no word is shared."""
        import bm25s

        words = [list(content_stems(chunk)) for chunk in chunks]
        if not any(words):
            return np.zeros((len(queries), len(chunks)))
        index = bm25s.BM25(k1=K1, b=B, method="lucene")
        index.index(words, show_progress=False)
        ids = [index.get_tokens_ids(list(content_stems(query))) for query in queries]
        return np.stack([index.get_scores_from_ids(row) for row in ids]).astype(np.float64)


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
