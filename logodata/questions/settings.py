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
    """The model that writes: ``embedded``, a folder, or a hub name. A stronger one than that to be trained is fine."""
    seed: int = Field(default=0, ge=0)
    """Draws chunks, and what the model samples."""
    source: SourceSettings
    """Documents. Questions that they hold already are kept."""
    chunking: ChunkingSettings = ChunkingSettings()
    """How documents are cut."""
    questions_per_document: int = Field(default=8, gt=0)
    """Questions to write for each document."""
    kinds: tuple[WrittenKind, ...] = Field(
        default=("single_detail", "multi_detail", "biography", "summary"), min_length=1
    )
    """Kinds of questions, in turn."""
    chunks_per_question: int = Field(default=4, ge=2)
    """Chunks that a question is written from; one for ``single_detail``. For ``summary`` they follow one another, for
    ``multi_detail`` they are drawn from the whole document, for ``biography`` they hold the same name."""
    temperature: float = Field(default=0.7, ge=0)
    """For writing; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """For writing."""
    max_new_tokens: Tokens = 384
    """Length cap of what is written; a reply that meets it is not kept."""
    max_closed_book_tokens: Tokens = 64
    """Length cap of the answer without context."""
    right_at: float = Field(default=0.6, gt=0, le=1)
    """An answer without context is right, and an answer rests on its evidence (single and multi detail), if this share
    of the written answer's content words is there."""
    group_size: int = Field(default=256, gt=0)
    """Prompts that go to the engine in one submission, at least."""
