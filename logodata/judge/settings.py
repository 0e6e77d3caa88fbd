"""The settings of the judge, and of a model judge."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath, TemplateArgs, Tokens
from logodata.engines.settings import AdaptedModelSettings, EngineSettings, ModelSettings


class JudgeModelSettings(RecipeModel):
    """A model that judges, and what runs it."""

    name: Annotated[str, Field(min_length=1), OrPath("embedded")] | None = None
    """The judge: ``embedded``, a folder, or a hub name; by default the command's own model. Take a strong one, because
    the embedded model never replies in the form that is asked for. Its tokenizer is loaded here under every engine."""
    engine: EngineSettings | None = None
    """The engine of the judge; by default that of the command. The same model under equal settings is loaded once."""
    chat_template: Path | None = None
    """A Jinja file, for judges whose tokenizer has no chat template; by default the command's, for its own model."""
    chat_template_args: TemplateArgs | None = None
    """Variables of the judge's chat template; by default the command's, for its own model."""
    max_new_tokens: Tokens = 32
    """The maximum length of a reply. A reply that reaches it is malformed, so give a judge that reasons enough room."""


class ModelJudgeSettings(JudgeModelSettings):
    """A model that judges what the rules let through."""

    rejudge_share: float = Field(default=0.1, ge=0, le=1)
    """The share of the judged responses that are judged again in another wording, to report how far both agree. The
    second verdict decides nothing."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed that draws the responses that are judged again."""

    def judges_again(self, name: str) -> bool:
        """Whether what has this name is judged again, by its name alone."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.rejudge_share * 2**64


class GradeSettings(ModelJudgeSettings):
    """A model that grades responses from 0 to 10, along the four lines of LongReward (arXiv 2410.21252): helpfulness,
    logicality, faithfulness and completeness. The grade is their mean."""

    max_new_tokens: Tokens = 512
    """The maximum length of a reply: of the reasons for a score, of the facts of a response, of what a part of the text
    says. A reply that reaches it is malformed, and a response without one of its four scores has no grade."""
    rejudge_share: float = Field(default=0.1, ge=0, le=1)
    """The share of the questions whose responses are graded again in another wording, to report how far both agree. The
    second grades decide nothing."""
    least_graded: int = Field(default=5, ge=2)
    """The least number of different responses to a question that must have a grade."""
    gap: float = Field(default=1.0, gt=0, le=10)
    """The least difference between the grades of the preferred and of the dis-preferred response. Ties are no pair."""
    max_facts: int = Field(default=20, gt=0)
    """The most facts of a response. A list of more is malformed."""
    passage_tokens: Tokens = 128
    """The length of the passages against which facts are checked, in tokens of the judge."""
    num_passages: int = Field(default=5, gt=0)
    """The number of passages beside a fact: those nearest to it by ``judge.embedding_model``."""
    extract_tokens: Tokens = 4096
    """The length of the parts of the context from which the judge extracts what bears on the question, once for all its
    responses; in tokens of the judge."""


def judge_engine(asking: ModelSettings, settings: JudgeModelSettings) -> EngineSettings:
    """Return the settings of the judge's engine: its own section, or that of the command which asks it. The command's
    name on the servers does not hold for another model than its own, nor for this one without its adapter."""
    if settings.engine is not None:
        return settings.engine
    adapted = isinstance(asking, AdaptedModelSettings) and asking.adapter is not None
    if settings.name in (None, asking.model) and not adapted:
        return asking.engine
    return asking.engine.model_copy(update={"served_model": None})


RIGHT_AT = 0.6
"""The default share of the reference's content words from which on a response is right."""


class JudgeSettings(RecipeModel):
    """When a response counts as right."""

    enabled: bool = True
    """Whether the rules decide. Without them every pair is kept whose responses are neither empty nor identical, as in
    the published code (for ablations)."""
    measure: Literal["auto", "word_share", "token_f1", "containment", "similarity"] = "auto"
    """The measure that decides. ``word_share`` is the share of the reference's content words. ``token_f1`` is the F1 of
    words. ``containment`` asks whether the response holds the reference word for word. ``similarity`` is the cosine of
    sentence embeddings. ``auto`` takes similarity for references of more than ``long_answer_words`` content words, and
    word share for others."""
    right_at: float = Field(default=RIGHT_AT, gt=0, le=1)
    """The word share or token F1 from which on a response is right. Below it a response is wrong."""
    match_numbers: bool = True
    """Whether a short answer that lacks a number of the reference is half right at most (not with ``similarity``), and
    a fact whose number its passages lack partly supported at most (``grades``)."""
    long_answer_words: int = Field(default=20, ge=0)
    """The most content words of a short reference, for ``auto``."""
    similar_at: float = Field(default=0.85, gt=0, le=1)
    """The similarity from which on a response is right."""
    dissimilar_below: float = Field(default=0.75, gt=0, le=1)
    """The similarity below which a response is wrong. Answers that only repeat the question reach 0.72 on QMSum."""
    embedding_model: Annotated[str, OrPath("embedded")] = "embedded"
    """A sentence-transformers model for similarity, and for the passages nearest to a fact (``grades``), as a folder or
    a hub name; ``embedded`` is all-MiniLM-L6-v2."""
    require_ended: bool = True
    """Whether a preferred response must have ended by itself within the length cap."""
    keep_bare_reference: bool = True
    """Whether a guided response that adds nothing to the reference is preferred if no other candidate is right. Such
    responses are unlikely under the model, and raise the margin that training can gain cheaply."""
    max_added_words: int | None = Field(default=None, ge=0)
    """The most content words of a preferred response beyond those of question and reference; null allows any number.
    Small models add what is false: 38 of 47 kept answers of SmolLM2-135M were right, and 27 of the 27 that add nothing
    (``benchmarks/judge.py``). A strong model adds what is true, so allow it any number."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """The largest share of repeated word trigrams in a preferred response."""
    model: ModelJudgeSettings | None = None
    """A model that judges what these rules let through. The preferred response must be correct, and every other one
    wrong. By default no model judges."""
    grades: GradeSettings | None = None
    """A model that grades responses, for ``generation.preferred=best_versus_worst``. By default none does. The rules
    decide first: beside a reference no grade makes a wrong response preferred, or a right one dis-preferred."""

    @model_validator(mode="after")
    def _model_comes_after_the_rules(self) -> JudgeSettings:
        if self.model is not None and not self.enabled:
            raise ValueError("judge.model judges what the rules let through: it needs judge.enabled=true")
        return self

    @model_validator(mode="after")
    def _one_model_judges(self) -> JudgeSettings:
        if self.model is not None and self.grades is not None:
            raise ValueError("judge.model judges, and judge.grades grades: set one of them to null")
        return self

    @property
    def asked(self) -> ModelJudgeSettings | None:
        """The model that judges or grades; None if there is none."""
        return self.model or self.grades

    @model_validator(mode="after")
    def _ordered(self) -> JudgeSettings:
        if self.dissimilar_below > self.similar_at:
            raise ValueError(f"dissimilar_below={self.dissimilar_below:g} exceeds similar_at={self.similar_at:g}")
        return self
