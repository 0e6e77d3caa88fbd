"""Clusters of a document's chunks that are about the same, from which questions are written.

LongRLVR (arXiv 2603.02146) clusters the embeddings of chunks with HDBSCAN on their cosine distance. The defaults of
:class:`logodata.questions.settings.ClusterSettings` are those of its published code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from logodata.common.append_log import AppendLog
from logodata.contract import Chunk, Document
from logodata.questions.settings import ClusterSettings

if TYPE_CHECKING:
    from logodata.contexts.embedding import SentenceEmbedder

MOST_CHUNKS = 8192
"""The most chunks of a document that are clustered. That many take 1.5 GB and nine seconds."""

_DECIMALS = 5  # of distances: equal chunks are equally near, whatever batches they were embedded in


@dataclass(frozen=True, slots=True)
class Clusters:
    """The usable clusters of a document, each as indices of chunks in the order of the document, or the ``reason`` why
    no question is written from them."""

    groups: tuple[tuple[int, ...], ...]
    reason: str = ""

    def draw(self, settings: ClusterSettings, rng: np.random.Generator) -> Iterator[list[int]]:
        """Yield the chunks of one question after the other, without end.

        At most ``clusters_per_document`` clusters are drawn, and questions take them in turn. Of a cluster that is
        larger than a prompt, chunks are drawn.
        """
        order = rng.permutation(len(self.groups))[: settings.clusters_per_document]
        for number in cycle(order.tolist()):
            group = self.groups[number]
            size = min(settings.chunks_per_prompt, len(group))
            yield sorted(int(i) for i in rng.choice(group, size=size, replace=False))


class ClusterFinder:
    """Finds the clusters of documents. Each document is embedded once: its clusters are on disk as soon as they are
    made, at ``path``. A chunk longer than the embedding model reads is the mean of its parts."""

    def __init__(self, settings: ClusterSettings, path: Path) -> None:
        self._settings = settings
        self._log = AppendLog(path, key="doc_id")

    @cached_property
    def _embedder(self) -> SentenceEmbedder:
        from logodata.contexts.embedding import SentenceEmbedder
        from logodata.models.loading import resolve_embedding_model

        model = resolve_embedding_model(self._settings.embedding_model)
        return SentenceEmbedder(model, self._settings.batch_size, "clusters.embedding_model")

    def find(self, document: Document, chunks: Sequence[Chunk]) -> Clusters:
        """Return the clusters of a document, or why there are none to write from."""
        if len(chunks) > MOST_CHUNKS:
            return Clusters((), "document_too_long_to_cluster")
        if document.doc_id not in self._log:
            found: list[list[int]] = []
            if len(chunks) >= self._settings.least_to_cluster:
                texts = [document.text[chunk.start : chunk.end] for chunk in chunks]
                found = cluster(self._embedder.encode_whole(texts), self._settings)
            self._log.append({"doc_id": document.doc_id, "clusters": found})
        groups = tuple(tuple(group) for group in self._log[document.doc_id]["clusters"])
        return Clusters(groups, "too_few_clusters" if len(groups) < self._settings.min_clusters else "")


def cluster(vectors: NDArray[np.float32], settings: ClusterSettings) -> list[list[int]]:
    """Return the clusters of unit vectors [N, D] that have as many members as the settings allow.

    A cluster is a rising list of rows. Clusters stand in the order of their first rows. Rows that HDBSCAN counts as
    noise are in none.
    """
    from sklearn.cluster import HDBSCAN

    wide = vectors.astype(np.float64)
    distances = np.clip(np.round(1 - wide @ wide.T, _DECIMALS), 0, 2)
    np.fill_diagonal(distances, 0)
    labels = HDBSCAN(
        min_cluster_size=settings.min_cluster_size,
        min_samples=settings.min_samples,
        cluster_selection_epsilon=settings.epsilon,
        metric="precomputed",
        copy=False,
    ).fit_predict(distances)
    groups = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    return sorted(group for group in groups if settings.min_chunks <= len(group) <= settings.max_chunks)
