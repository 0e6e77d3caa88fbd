from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError

from logodata.contexts.draw import Contexts, draw_contexts
from logodata.contexts.settings import ContextSettings

SCORES = np.array([0, 3, 0, 9, 1, 7, 0, 2, 8, 0, 1, 0], dtype=np.float64)


def draw(settings: ContextSettings, seed: int = 0, scores: np.ndarray = SCORES) -> Contexts:
    contexts = draw_contexts(scores, settings, np.random.default_rng(seed))
    assert isinstance(contexts, Contexts)
    return contexts


@pytest.mark.parametrize("seed", range(20))
def test_threshold_rule_builds_the_papers_contexts(seed: int) -> None:
    contexts = draw(ContextSettings(num_chunks=5, critical_threshold=6.0, mixed_ratios=[0.34, 0.67]), seed)
    critical = {3, 5, 8}
    assert set(contexts.critical) == critical
    assert len(contexts.irrelevant) == 5
    assert not critical & set(contexts.irrelevant)
    assert [len(critical & set(m)) for m in contexts.mixed] == [1, 2]
    assert all(len(m) == 5 for m in contexts.mixed)
    assert critical <= set(contexts.training)
    assert len(contexts.training) == 5
    for indices in (contexts.critical, contexts.irrelevant, *contexts.mixed, contexts.training):
        assert list(indices) == sorted(set(indices)), "document order, no chunk twice"


def test_top_rule_and_ties() -> None:
    contexts = draw(ContextSettings(num_chunks=5, critical_threshold=None, critical_top=2))
    assert contexts.critical == (3, 8)
    tied = np.array([5, 5, 5, 0, 0, 0, 0, 0], dtype=np.float64)
    for seed in range(10):
        contexts = draw(ContextSettings(num_chunks=4, critical_threshold=None, critical_top=2), seed, tied)
        assert 2 not in contexts.irrelevant, "a chunk that scores like a critical one is not irrelevant"


def test_more_critical_chunks_than_room_keeps_the_best() -> None:
    for seed in range(20):
        contexts = draw(ContextSettings(num_chunks=2, critical_threshold=6.0), seed)
        assert contexts.critical == (3, 8)
        assert contexts.training == (3, 8)
        assert 5 not in contexts.irrelevant, "a chunk above the threshold is not irrelevant, though there is no room"


def test_a_chunk_at_the_threshold_is_irrelevant() -> None:
    contexts = draw(ContextSettings(num_chunks=2, critical_threshold=6.0), scores=np.array([7.0, 6.0, 0.0]))
    assert (contexts.critical, contexts.irrelevant) == ((0,), (1, 2))


def test_of_several_critical_chunks_a_mixed_context_lacks_one_at_least() -> None:
    contexts = draw(ContextSettings(num_chunks=5, critical_top=2, mixed_ratios=(0.99,)))
    assert len({3, 8} & set(contexts.mixed[0])) == 1


def test_a_mixed_context_keeps_critical_chunks_by_chance() -> None:
    settings = ContextSettings(num_chunks=5, critical_threshold=6.0, mixed_ratios=(0.34,))
    kept = [{3, 5, 8} & set(draw(settings, seed).mixed[0]) for seed in range(30)]
    assert {tuple(chunks) for chunks in kept} == {(3,), (5,), (8,)}


def test_where_contexts_are_not_compared_irrelevant_chunks_only_fill_up() -> None:
    settings, rng = ContextSettings(num_chunks=3, critical_top=2), np.random.default_rng(0)
    scores = np.array([0.0, 9.0, 8.0])
    assert draw_contexts(scores, settings, rng) == "too_few_irrelevant_chunks"
    assert draw_contexts(scores, settings, rng, compared=False) == Contexts((1, 2), (), (), (0, 1, 2))
    assert draw_contexts(scores[1:], settings, rng, compared=False) == "too_few_irrelevant_chunks"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [(np.zeros(20), "no_critical_chunk"), (np.array([9.0, 0, 0]), "too_few_irrelevant_chunks")],
)
def test_reasons(scores: np.ndarray, reason: str) -> None:
    for settings in (
        ContextSettings(num_chunks=4, critical_threshold=6.0),
        ContextSettings(num_chunks=4, critical_threshold=None, critical_top=2),
    ):
        assert draw_contexts(scores, settings, np.random.default_rng(0)) == reason


def test_with_a_single_critical_chunk_a_mixed_context_is_the_training_context() -> None:
    """Published data depend on it; ``stats.json`` counts such samples."""
    found = draw(ContextSettings(num_chunks=5, critical_threshold=None, critical_top=1, mixed_ratios=(0.5, 0.25)))
    assert len(found.critical) == 1
    assert found.mixed == (found.training, found.training)


def test_the_seed_alone_decides() -> None:
    settings = ContextSettings(num_chunks=5, critical_threshold=None, critical_top=2)
    assert draw(settings, 3) == draw(settings, 3)
    assert len({draw(settings, seed) for seed in range(10)}) > 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"critical_top": 3, "critical_threshold": 6.0}, "set exactly one of critical_threshold and critical_top"),
        ({"critical_top": None}, "set exactly one of critical_threshold and critical_top"),
        ({"num_chunks": 3}, "critical_top=4 exceeds num_chunks=3"),
        ({"critical_threshold": None, "critical_top": 9, "num_chunks": 4}, "critical_top=9 exceeds num_chunks=4"),
        ({"mixed_ratios": [1.0]}, "must lie between 0 and 1"),
        ({"mixed_ratios": [0.5, 0.25, 0.5]}, "must differ, also when they are printed: 0.5, 0.25, 0.5"),
        ({"mixed_ratios": [0.3333333, 0.33333334]}, "must differ, also when they are printed: 0.333333, 0.333333"),
    ],
)
def test_contradictory_settings_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        ContextSettings.model_validate(fields)


def test_a_threshold_takes_the_place_of_the_best_chunks() -> None:
    rules = [{}, {"critical_threshold": None}, {"critical_threshold": 6.0}, {"critical_top": 2}]
    found = [ContextSettings.model_validate(rule) for rule in rules]
    assert [(one.critical_threshold, one.critical_top) for one in found] == [
        (None, 4),
        (None, 4),
        (6.0, None),
        (None, 2),
    ]
    assert [ContextSettings.model_validate(one.model_dump()) for one in found] == found
