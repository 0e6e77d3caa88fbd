from __future__ import annotations

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
    contexts = draw(ContextSettings(num_chunks=2, critical_threshold=6.0))
    assert contexts.critical == (3, 8)
    assert contexts.training == (3, 8)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [(np.zeros(20), "no_critical_chunk"), (np.array([9.0, 0, 0]), "too_few_irrelevant_chunks")],
)
def test_reasons(scores: np.ndarray, reason: str) -> None:
    for settings in (
        ContextSettings(num_chunks=4),
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
    "fields",
    [
        {"critical_top": 3, "critical_threshold": 6.0},
        {"critical_top": None},
        {"num_chunks": 3},
        {"critical_threshold": None, "critical_top": 9, "num_chunks": 4},
        {"mixed_ratios": [1.0]},
        {"mixed_ratios": [0.5, 0.25, 0.5]},
        {"mixed_ratios": [0.3333333, 0.33333334]},
    ],
)
def test_contradictory_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
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
