"""The settings of ``logodata questions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens
from logodata.contexts.settings import ChunkingSettings
from logodata.engines.settings import ModelSettings
from logodata.judge.settings import JudgeModelSettings
from logodata.recipe.foreign_names import ENGINE_VALUES, QUESTION_NAMES
from logodata.sources import SourceSettings

WrittenKind = Literal["single_detail", "multi_detail", "biography", "summary"]


class ClusterSettings(RecipeModel):
    """How chunks are clustered, and how ``multi_detail`` questions are written from clusters. The defaults are those of
    LongRLVR's published code, except for the embedding model and the check of single chunks."""

    embedding_model: Annotated[str, OrPath("embedded")] = "embedded"
    """A sentence-transformers model, as a folder or a hub name; ``embedded`` is all-MiniLM-L6-v2 (published: bge-m3). A
    chunk longer than the model reads (256 tokens of MiniLM) is the mean of its parts."""
    batch_size: int = Field(default=64, gt=0)
    """The number of parts of chunks that are embedded at a time."""
    min_cluster_size: int = Field(default=4, ge=2)
    """The fewest chunks that HDBSCAN takes for a cluster. Fewer are noise, which no question is written from."""
    min_samples: int = Field(default=2, gt=0)
    """The chunks, itself among them, that a chunk must have near it to count as dense (``min_samples`` of
    scikit-learn's HDBSCAN)."""
    epsilon: float = Field(default=0.3, ge=0, le=2)
    """The cosine distance below which clusters are not divided further."""
    min_chunks: int = Field(default=4, ge=2)
    """The fewest chunks of a cluster that questions are written from."""
    max_chunks: int = Field(default=16, ge=2)
    """The most chunks of a cluster that questions are written from. A larger one holds all kinds of things."""
    min_clusters: int = Field(default=4, gt=0)
    """The fewest such clusters of a document. With fewer of them its questions are rejected (``too_few_clusters``)."""
    clusters_per_document: int = Field(default=4, gt=0)
    """The most clusters of a document that are drawn. Its questions take them in turn."""
    chunks_per_prompt: int = Field(default=16, ge=2)
    """The most chunks in a prompt. Of a cluster with more of them, as many are drawn."""
    one_chunk_right_at: float | None = Field(default=0.8, gt=0, le=1)
    """The share of the written answer's content words from which on an answer from one chunk of the evidence alone is
    right. Such a question is dropped. It is higher than ``right_at``, because one half of an answer with two can have
    two thirds of its words. Null leaves this check out, which takes a prompt for each chunk of the evidence."""

    @property
    def least_to_cluster(self) -> int:
        """The fewest chunks of a document in which HDBSCAN can find a cluster."""
        return max(self.min_cluster_size, self.min_samples)

    @model_validator(mode="after")
    def _some_size(self) -> Self:
        if self.min_chunks > self.max_chunks:
            raise ValueError(f"min_chunks={self.min_chunks} exceeds max_chunks={self.max_chunks}")
        return self


class QuestionGradeSettings(JudgeModelSettings):
    """A model that grades the questions which passed every other check."""

    least: float | None = Field(default=None, ge=0, le=10)
    """The least grade of a question that is kept, from 0 to 10; null keeps all, with their grades. With a number, a
    question whose grade is malformed is not kept either."""


class QuestionsRecipe(ModelSettings):
    """How questions are written."""

    foreign_names = QUESTION_NAMES
    foreign_values = ENGINE_VALUES

    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """The model that writes: ``embedded``, a folder, or a hub name. It may be stronger than the model to be trained."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed that draws chunks, and what the model samples."""
    source: SourceSettings
    """The documents. Questions that they hold already are kept."""
    chunking: ChunkingSettings = ChunkingSettings()
    """How documents are cut into chunks."""
    questions_per_document: int = Field(default=8, gt=0)
    """The number of questions to write for each document."""
    kinds: tuple[WrittenKind, ...] = Field(
        default=("single_detail", "multi_detail", "biography", "summary"), min_length=1
    )
    """The kinds of questions, which are written in turn."""
    chunks_per_question: int = Field(default=4, ge=2)
    """The number of chunks that a question is written from; ``single_detail`` takes one. For ``summary`` they follow
    one another, for ``multi_detail`` they are drawn from the whole document (without ``clusters``), and for
    ``biography`` they hold the same name."""
    clusters: ClusterSettings | None = None
    """Write ``multi_detail`` questions from clusters of chunks that are about the same. The model names the chunks that
    its answer needs, and these alone are the evidence. ``clusters={}`` takes the published settings; null draws chunks
    from the whole document."""
    temperature: float = Field(default=0.7, ge=0)
    """The temperature of writing; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """The nucleus of writing."""
    max_new_tokens: Tokens = 384
    """The maximum length of a question with its answer. A reply that reaches it is not kept."""
    max_closed_book_tokens: Tokens = 64
    """The maximum length of an answer without context."""
    right_at: float = Field(default=0.6, gt=0, le=1)
    """The share of the written answer's content words from which on an answer without context is right, and from which
    on the written answer rests on its evidence (``single_detail`` and ``multi_detail``)."""
    group_size: int = Field(default=256, gt=0)
    """The least number of questions whose prompts go to the engine together; fewer if their documents are long."""
    grade: QuestionGradeSettings | None = None
    """A model that grades each question with its answer and its evidence from 0 to 10, such as ``grade={}`` for the
    model that writes. The output has the grades. By default no model grades."""

    @model_validator(mode="after")
    def _clusters_are_asked_for(self) -> Self:
        if self.clusters is not None and "multi_detail" not in self.kinds:
            raise ValueError("clusters are for multi_detail questions, which kinds does not hold")
        return self

    def settings(self) -> dict[str, Any]:
        """Return what decides the questions and their grades: all but the engines, and the least grade of those that
        are kept."""
        return self.model_dump(mode="json", exclude={"engine": True, "grade": {"engine", "least"}})
