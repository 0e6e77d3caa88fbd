"""Score chunks by the entities that they share with the question (paper section 3.2, Eq. 3)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from logodata.common.console import note
from logodata.common.errors import UserError, first_line
from logodata.common.words import content_stems, normalise

if TYPE_CHECKING:
    from spacy.language import Language

Entities = Callable[[Sequence[str]], list[frozenset[str]]]
"""A function that returns the distinct entities of each text."""

_SPACY_MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")  # the quickest first
_KEPT_POS = ("NOUN", "PROPN", "VERB")


class EntityEvaluator:
    """Scores a chunk by the number of distinct entities that it shares with the question."""

    def __init__(self, entities: Entities) -> None:
        self._entities = entities

    def score(self, chunks: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
        """Return scores, float64 [len(queries), len(chunks)]: counts of shared entities."""
        found = self._entities(chunks)
        scores = np.zeros((len(queries), len(chunks)))
        for row, wanted in enumerate(self._entities(queries)):
            scores[row] = [len(wanted & entities) for entities in found]
        return scores


def word_entities(texts: Sequence[str]) -> list[frozenset[str]]:
    """Return names, numbers and content words of each text, by their stems. This needs no model."""
    return [frozenset(content_stems(text)) for text in texts]


def open_entities(model: str) -> Entities:
    """Return the finder of entities that ``evaluator.entity_model`` names.

    Raises:
        UserError: spaCy is not installed, or the pipeline cannot be loaded or finds no entities.
    """
    if model == "auto":
        model = next((name for name in _SPACY_MODELS if all(map(importlib.util.find_spec, ("spacy", name)))), "builtin")
        note(f"entities: {model}")
    return word_entities if model == "builtin" else spacy_entities(model)


def spacy_entities(model: str) -> Entities:
    """Return a finder of entities, and of lemmas of nouns (names included) and verbs, by a spaCy pipeline.

    The paper speaks of entities alone; the published code adds lemmas of nouns and verbs. With entities alone, two
    questions in five share nothing with any chunk and none exceeds the paper's threshold (``benchmarks/LOG.md``). A
    pipeline without tagger and lemmatizer adds no lemmas.
    """
    pipeline = _load_pipeline(model)

    def entities(texts: Sequence[str]) -> list[frozenset[str]]:
        return [
            frozenset(
                [" ".join(entity.text.lower().split()) for entity in document.ents]
                + [token.lemma_.lower() for token in document if token.pos_ in _KEPT_POS and token.lemma_]
            )
            for document in pipeline.pipe(normalise(text)[0] for text in texts)
        ]

    return entities


def _load_pipeline(model: str) -> Language:
    where = f"evaluator.entity_model={model}"
    try:
        import spacy
    except ModuleNotFoundError as error:
        if error.name != "spacy":
            raise
        mend = "pip install 'logo-align[spacy]', or use builtin"
        raise UserError("spaCy is not installed", where=where, mend=mend) from error
    try:
        pipeline = spacy.load(model)
    except (OSError, ValueError) as error:
        mend = f"name a folder, or install it: python -m spacy download {Path(model).name}"
        raise UserError(f"cannot load the spaCy pipeline: {first_line(error)}", where=where, mend=mend) from error
    if not {"ner", "entity_ruler", "span_ruler"} & set(pipeline.pipe_names):
        raise UserError(
            f"the spaCy pipeline finds no entities (it has {', '.join(pipeline.pipe_names) or 'no components'})",
            where=where,
            mend="use one with the component ner or entity_ruler",
        )
    # spaCy refuses longer texts to limit its memory; chunks are short, but a recipe may ask for any length.
    pipeline.max_length = max(pipeline.max_length, 10**9)
    return pipeline
