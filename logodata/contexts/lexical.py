"""The lexical evaluator: BM25 over content words, computed by bm25s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from logodata.common.words import content_stems

K1, B = 1.5, 0.75
"""BM25's parameters: how soon repeats of a word stop counting, and how much long chunks are held back. All chunks but a
document's last are about equally long, so ``B`` hardly matters."""


class LexicalEvaluator:
    """Scores a chunk by BM25 against the question (Lucene's form: no negative idf). A document's chunks are the
    collection.

    Unlike the count of shared entities, it weighs words: a word that is in every chunk tells nothing.
    """

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Return scores, float64 [len(queries), len(chunks)]; 0 where no word is shared."""
        import bm25s

        words = [list(content_stems(chunk)) for chunk in chunks]
        if not any(words):
            return np.zeros((len(queries), len(chunks)))
        index = bm25s.BM25(k1=K1, b=B, method="lucene")
        index.index(words, show_progress=False)
        ids = [index.get_tokens_ids(list(content_stems(query))) for query in queries]
        return np.stack([index.get_scores_from_ids(row) for row in ids]).astype(np.float64)
