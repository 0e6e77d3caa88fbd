"""``logodata stats --log-probs`` measures what ``logoeval pairs`` measures, on the base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logodata.dataset.log_probs import _estimate, response_logprobs
from logodata.dataset.samples import read_samples
from logoeval.intervals import estimate_mean
from logoeval.tasks.pairs import mean_logprobs
from logotrain.attention.shared_prefix import use_shared_prefix
from logotrain.loss.logprobs import LogprobModel


def test_equals_the_trainers_log_probabilities(tiny_model: Any, make_build: Callable[..., Path]) -> None:
    for sample in read_samples(make_build()):
        with use_shared_prefix(tiny_model):
            expected = mean_logprobs(LogprobModel(tiny_model), sample, 2048)
        responses = [response.token_ids for response in (sample.chosen, *sample.rejected)]
        assert response_logprobs(tiny_model, sample.prompt_ids, responses) == pytest.approx(expected, abs=1e-5)


def test_intervals_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(1)
    values = [(f"d{number % 7}", float(rng.normal() + number % 7)) for number in range(24)]
    found = _estimate(values)
    expected = estimate_mean([value for _, value in values], [doc_id for doc_id, _ in values])
    assert found.mean == pytest.approx(expected.value)
    assert found.interval == pytest.approx(expected.interval, abs=0.1)  # other draws, and far in the tail
