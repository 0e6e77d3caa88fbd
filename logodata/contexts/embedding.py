"""Score chunks by the cosine between question and chunk, with sentence-transformers and faiss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from logodata.common.errors import UserError, first_line


class SentenceEmbedder:
    """A sentence-transformers model that reads texts of any length, in parts. ``setting`` is the field that names it.

    Sentence-embedding models read 256 or 512 tokens and silently drop the rest, so a longer text is cut.

    Raises:
        UserError: The model cannot be loaded.
    """

    def __init__(self, model: str, batch_size: int, setting: str) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            # Pickles, and modules that come with a model, can run code: neither is read.
            self._model = SentenceTransformer(model, trust_remote_code=False, model_kwargs={"use_safetensors": True})
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load the embedding model: {first_line(error)}", where=model, mend=f"set {setting}"
            ) from error
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of texts that fit the model, float32 [len(texts), D]."""
        encoded = self._model.encode(
            list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(encoded, dtype=np.float32)

    def encode_whole(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of texts of any length, float32 [len(texts), D]. A text that does not fit the model
        is the mean of its parts, each of which counts alike."""
        parts, owners = self.parts_of(texts)
        vectors = self.encode(parts)
        if len(parts) == len(texts):
            return vectors
        means = [vectors[owners == number].mean(axis=0) for number in range(len(texts))]
        return np.stack([mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means]).astype(np.float32)

    def parts_of(self, texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
        """Return the parts of all texts, and of each part the number of its text, int64 [parts]."""
        pieces = [self.parts(text) for text in texts]
        owners = np.repeat(np.arange(len(texts)), [len(parts) for parts in pieces])
        return [part for parts in pieces for part in parts], owners

    def parts(self, text: str) -> list[str]:
        """Return the text in parts that fit the model. A text that does not fit is halved at a space, repeatedly."""
        longest = self._model.max_seq_length
        if longest is None or longest == math.inf:  # a static model, whose tokenizer is of another kind
            return [text]
        if len(self._model.tokenizer(text)["input_ids"]) <= longest:
            return [text]
        middle = text.find(" ", len(text) // 2)
        if middle < 0:
            middle = len(text) // 2
        return [*self.parts(text[:middle]), *self.parts(text[middle:])]


class EmbeddingEvaluator:
    """Scores a chunk by the largest cosine between the query and the parts of the chunk. A query that does not fit the
    model is the mean of its parts. ``setting`` is the field that names the model."""

    def __init__(self, model: str, batch_size: int, setting: str = "evaluator.embedding_model") -> None:
        self._embedder = SentenceEmbedder(model, batch_size, setting)

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Return scores, float64 [len(queries), len(chunks)]: cosines in [-1, 1]."""
        import faiss

        parts, owners = self._embedder.parts_of(chunks)
        vectors = self._embedder.encode(parts)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        cosines, order = index.search(self._embedder.encode_whole(queries), len(parts))
        scores = np.full((len(queries), len(chunks)), -1.0)
        rows = np.repeat(np.arange(len(queries)), len(parts))
        np.maximum.at(scores, (rows, owners[order.ravel()]), cosines.ravel().astype(np.float64))
        return scores
