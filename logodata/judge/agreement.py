"""Count the verdicts of a model judge, and measure how far its two wordings agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from logodata.contract import ModelJudgeStats, ModelVerdict

Verdicts = Mapping[tuple[ModelVerdict, ModelVerdict | None], int]
"""The number of responses by their verdicts: the first one, and the second one if they were judged again."""

_COMPARED: tuple[ModelVerdict, ...] = ("correct", "wrong")
_Z95 = 1.959964
_RESAMPLES = 2000


def verdict_statistics(verdicts: Verdicts) -> ModelJudgeStats:
    """Return the verdicts of a model judge, and the agreement of its two wordings.

    The interval of kappa comes from 2000 bootstrap resamples of the responses, without those that have no kappa.
    """
    first, second = Counter[str](), Counter[str]()
    for (one, two), count in verdicts.items():
        first[one] += count
        if two is not None:
            second[two] += count
    table = np.array([[verdicts.get((one, two), 0) for two in _COMPARED] for one in _COMPARED])
    compared, equal = int(table.sum()), int(table.trace())
    kappa = float(_kappa(table))
    defined = not np.isnan(kappa)
    return ModelJudgeStats(
        judged=first.total(),
        correct=first["correct"],
        wrong=first["wrong"],
        malformed=first["malformed"],
        exceeds_window=first["exceeds_window"],
        judged_again=second.total(),
        malformed_again=second["malformed"],
        exceeds_window_again=second["exceeds_window"],
        compared=compared,
        agreement=equal / compared if compared else None,
        agreement_interval=wilson_interval(equal, compared) if compared else None,
        kappa=kappa if defined else None,
        kappa_interval=_kappa_interval(table) if defined else None,
    )


def describe_verdicts(stats: ModelJudgeStats) -> str:
    """Return what a dataset card says of a model judge."""
    text = f"of {stats.judged} responses {stats.correct} were correct, {stats.wrong} wrong"
    text += f", {stats.malformed} had a malformed reply" if stats.malformed else ""
    text += f", {stats.exceeds_window} did not fit the judge's window" if stats.exceeds_window else ""
    if stats.agreement is None or stats.agreement_interval is None:
        return f"{text}; none has two verdicts to compare"
    low, high = stats.agreement_interval
    text += f"; of {stats.compared} judged again in another wording {stats.agreement:.0%} [{low:.0%}, {high:.0%}]"
    text += " had the same verdict"
    if stats.kappa is None or stats.kappa_interval is None:
        return f"{text} (no kappa: all verdicts are alike)"
    low, high = stats.kappa_interval
    return f"{text} (Cohen's kappa {stats.kappa:.2f} [{low:.2f}, {high:.2f}])"


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, spread = successes / total, _Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _kappa(tables: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return Cohen's kappa (1960) of tables of counts [..., 2, 2]. It is NaN if only one verdict was ever given."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
        observed = shares[..., 0, 0] + shares[..., 1, 1]
        expected = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
        return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))


def _kappa_interval(table: np.ndarray[Any, Any]) -> tuple[float, float]:
    total = int(table.sum())
    # Resampling responses draws the four counts from a multinomial distribution.
    draws = np.random.default_rng(0).multinomial(total, table.ravel() / total, size=_RESAMPLES)
    low, high = np.nanpercentile(_kappa(draws.reshape(-1, 2, 2)), [2.5, 97.5])
    return float(low), float(high)
