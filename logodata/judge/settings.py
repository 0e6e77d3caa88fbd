"""The settings of the judge."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, Tokens
from logodata.engines.settings import EngineSettings


class ModelJudgeSettings(RecipeModel):
    """A model that judges what the rules let through."""

    name: Annotated[str, Field(min_length=1), OrPath("embedded")] | None = None
    """The judge: ``embedded``, a folder, or a hub name; by default the build's own model. Take a strong one: the
    embedded model never replies in the form asked for. Its tokenizer is loaded here whatever the engine."""
    engine: EngineSettings | None = None
    """What runs it; by default as the build's ``engine`` section says. The same model under equal settings is loaded
    once."""
    chat_template: Path | None = None
    """A Jinja file, for judges whose tokenizer has no chat template; by default the build's, for its own model."""
    max_new_tokens: Tokens = 32
    """Length cap of a reply. One that meets it is malformed: give a judge that reasons first enough room."""
    rejudge_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the judged responses that are judged again in another wording, to report how far both agree. The second
    verdict decides nothing."""
    seed: int = Field(default=0, ge=0)
    """Draws the responses that are judged again."""

    def judges_again(self, decision_id: str) -> bool:
        """Whether the response is judged again; by its id alone, whatever else is in the build."""
        digest = hashlib.sha256(f"{self.seed}/{decision_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.rejudge_share * 2**64


RIGHT_AT = 0.6
"""Share of the reference's content words from which on a response is right, where a recipe says nothing else."""


class JudgeSettings(RecipeModel):
    """When a response counts as right."""

    enabled: bool = True
    """Off keeps every pair whose responses are neither empty nor identical (the published code's behaviour, for
    ablations)."""
    measure: Literal["auto", "word_share", "token_f1", "containment", "similarity"] = "auto"
    """What decides. ``word_share``: the share of the reference's content words; ``token_f1``; ``containment``: the
    reference stands in the response word for word; ``similarity``: cosine of sentence embeddings. ``auto``: similarity
    for references of more than ``long_answer_words`` content words, else word share."""
    right_at: float = Field(default=RIGHT_AT, gt=0, le=1)
    """From this word share or token F1 on a response is right, below it is wrong."""
    match_numbers: bool = True
    """Whether a short answer that lacks a number of the reference is half right at most (not with ``similarity``)."""
    long_answer_words: int = Field(default=20, ge=0)
    """For ``auto``: content words up to which a reference is short."""
    similar_at: float = Field(default=0.85, gt=0, le=1)
    """From this similarity on a response is right."""
    dissimilar_below: float = Field(default=0.75, gt=0, le=1)
    """Below this similarity a response is wrong. Answers that only repeat the question come up to 0.72 on QMSum."""
    embedding_model: Annotated[str, OrPath("embedded")] = "embedded"
    """For similarity: a sentence-transformers model, as a folder or a hub name; ``embedded`` is all-MiniLM-L6-v2."""
    require_ended: bool = True
    """Whether a preferred response must have ended by itself within the length cap."""
    keep_bare_reference: bool = True
    """Whether a guided response that adds nothing to the reference is preferred where no other candidate is right. Such
    responses are unlikely under the model and raise the margin that training can gain cheaply."""
    max_added_words: int | None = Field(default=None, ge=0)
    """Content words that a preferred response may hold beyond those of question and reference; null: any number. Small
    models add what is false: of 47 kept answers of SmolLM2-135M 38 were right, of those that add nothing 27 of 27
    (``benchmarks/judge.py``). A strong model's own answers add what is true; leave it open for them."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """Largest share of repeated word trigrams in a preferred response."""
    model: ModelJudgeSettings | None = None
    """A model that judges what these rules let through: the preferred response must be correct, every other one wrong.
    Off by default."""

    @model_validator(mode="after")
    def _model_comes_after_the_rules(self) -> JudgeSettings:
        if self.model is not None and not self.enabled:
            raise ValueError("judge.model judges what the rules let through: it needs judge.enabled=true")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> JudgeSettings:
        if self.dissimilar_below > self.similar_at:
            raise ValueError(f"dissimilar_below={self.dissimilar_below:g} exceeds similar_at={self.similar_at:g}")
        return self
