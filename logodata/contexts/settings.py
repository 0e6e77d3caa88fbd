"""The settings of chunks, of their scores, and of the contexts that are drawn from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens


class ChunkingSettings(RecipeModel):
    """How a document is cut into chunks."""

    chunk_tokens: Tokens = 512
    """Tokens per chunk (paper: 512). The last chunk of a document is shorter."""


class EvaluatorSettings(RecipeModel):
    """How a chunk's importance for a question is scored."""

    name: Literal["entity", "lexical", "embedding", "fused"] = "entity"
    """``entity`` counts shared entities; ``lexical`` is BM25 over content words; ``embedding`` is the cosine of
    sentence embeddings; ``fused`` adds the reciprocal ranks of these three."""
    query: Literal["question", "question_and_answer"] = "question"
    """The text that a chunk is compared with. The paper compares with the question, its published code with question
    and answer."""
    entity_model: Annotated[str, Field(min_length=1), OrPath("builtin", "auto")] = "builtin"
    """How ``entity`` and ``fused`` find entities. ``builtin`` takes names, numbers and content words by stem, without a
    model. A spaCy pipeline, as a package or a folder, gives its entities and its lemmas of nouns and verbs. ``auto``
    takes an installed ``en_core_web_*``, else ``builtin``; the log says which, and another machine may score
    differently."""
    embedding_model: Annotated[str, OrPath("embedded")] = "embedded"
    """A sentence-transformers model for ``embedding`` and ``fused``, as a folder or a hub name; ``embedded`` is
    all-MiniLM-L6-v2."""
    batch_size: int = Field(default=64, gt=0)
    """The number of chunks that ``embedding`` and ``fused`` encode at a time."""

    def threshold_fault(self, threshold: float) -> str | None:
        """Return why this evaluator's scores cannot be compared with ``threshold``; None if they can."""
        if self.name == "fused":
            return "the fused score orders chunks and measures nothing"
        if self.name == "lexical":
            return "BM25 has no scale: its scores depend on the document's other chunks"
        if self.name == "embedding" and not -1 < threshold < 1:
            return "a cosine lies between -1 and 1"
        if self.name == "entity" and threshold < 0:
            return "a count of shared entities is never below 0"
        return None


class ContextSettings(RecipeModel):
    """Which chunks are critical, and how chunks form contexts."""

    num_chunks: int = Field(default=16, ge=2)
    """The number of chunks in a context, N (paper: 16)."""
    critical_threshold: float | None = None
    """A chunk with a score above this is critical. It replaces ``critical_top`` (paper: 6 shared entities, for
    512-token chunks; on other data few questions share as many)."""
    critical_top: int | None = Field(default=4, gt=0)
    """The number of best-scored chunks that are critical, if their score is above 0. Null where ``critical_threshold``
    is set."""
    mixed_ratios: tuple[float, ...] = (0.5,)
    """Each ratio gives one dis-preferred response, from a context that keeps this share of the critical chunks. With
    the response from irrelevant chunks alone, there are M = 1 + len(mixed_ratios) dis-preferred responses. At least one
    critical chunk is kept. With a single critical chunk, every mixed context is the training context itself;
    ``stats.json`` counts such samples (``single_critical_chunk``)."""

    @model_validator(mode="before")
    @classmethod
    def _threshold_alone(cls, values: Any) -> Any:
        """Drop the default of ``critical_top`` where a threshold is set."""
        if isinstance(values, dict) and values.get("critical_threshold") is not None:
            return {"critical_top": None, **values}
        return values

    @model_validator(mode="after")
    def _one_rule(self) -> ContextSettings:
        if (self.critical_threshold is None) == (self.critical_top is None):
            raise ValueError("set exactly one of critical_threshold and critical_top (the other to null)")
        if self.critical_top is not None and self.critical_top > self.num_chunks:
            raise ValueError(f"critical_top={self.critical_top} exceeds num_chunks={self.num_chunks}")
        if not all(0 < ratio < 1 for ratio in self.mixed_ratios):
            raise ValueError("mixed_ratios must lie between 0 and 1")
        names = [f"{ratio:g}" for ratio in self.mixed_ratios]
        if len(set(names)) < len(names):
            # These names identify responses: of two with one name, the first would be lost.
            raise ValueError(f"mixed_ratios must differ, also when they are printed: {', '.join(names)}")
        return self
