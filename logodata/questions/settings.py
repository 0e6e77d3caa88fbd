"""The settings of ``logodata questions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from logodata.common.recipes.types import OrPath, Tokens
from logodata.contexts.settings import ChunkingSettings
from logodata.engines.settings import ModelSettings
from logodata.recipe.foreign_names import ENGINE_VALUES, QUESTION_NAMES
from logodata.sources import SourceSettings

WrittenKind = Literal["single_detail", "multi_detail", "biography", "summary"]


class QuestionsRecipe(ModelSettings):
    """How questions are written."""

    foreign_names = QUESTION_NAMES
    foreign_values = ENGINE_VALUES

    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """The model that writes: ``embedded``, a folder, or a hub name. It may be stronger than the model to be trained."""
    seed: int = Field(default=0, ge=0)
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
    one another, for ``multi_detail`` they are drawn from the whole document, and for ``biography`` they hold the same
    name."""
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
