"""Verdicts of a model judge: its settings, the form of a reply, and how far two wordings of the same question agree."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from logodata.common.field_types import OrPath, Tokens
from logodata.common.recipe_io import RecipeModel
from logodata.engines.settings import EngineSettings

ModelVerdict = Literal["correct", "wrong", "malformed", "exceeds_window"]
"""What a model said of a response. ``malformed``: the reply has not the form asked for, and nothing is guessed from it.
``exceeds_window``: question, reference and response did not fit the judge's window, so it was not asked."""

Verdicts = Mapping[tuple[ModelVerdict, ModelVerdict | None], int]
"""How often a response had these verdicts: the first, and the second where it was judged again."""

# The last line is the verdict; a model may reason before it, but not give two.
_REPLY = re.compile(
    r"(?:(?![ \t]*verdict[ \t]*:)[^\n]*\n)*[ \t]*verdict: (?P<verdict>correct|wrong)\.?\s*",
    re.IGNORECASE,
)

_Z95 = 1.959964
_RESAMPLES = 2000


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


def parse_verdict(reply: str, *, ended: bool) -> ModelVerdict:
    """The verdict of a reply: its last line is ``Verdict: correct`` or ``Verdict: wrong``, in any case of letters and
    perhaps with a full stop, and no line before it begins with ``Verdict:``. Anything else, and any reply that met its
    length cap, is malformed."""
    match = _REPLY.fullmatch(reply)
    if match is None or not ended:
        return "malformed"
    return "correct" if match["verdict"].lower() == "correct" else "wrong"


def verdict_statistics(verdicts: Verdicts) -> dict[str, Any]:
    """What a model judge said, and how far its two wordings agree.

    Returns:
        ``judged``: responses, and of them ``correct``, ``wrong``, ``malformed``, ``exceeds_window``;
        ``judged_again`` and, of those second verdicts, ``malformed_again`` and ``exceeds_window_again``;
        ``compared``: responses with two verdicts of correct or wrong; ``agreement``: share of equal ones among these
        (interval: Wilson, 95 %); ``kappa``: Cohen's (interval: percentiles of 2000 bootstrap resamples of responses, 95
        %, those without a kappa left out). None where they are not defined.
    """
    first, second, pairs = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for (one, two), count in verdicts.items():
        first[one] += count
        if two is not None:
            second[two] += count
            if {one, two} <= {"correct", "wrong"}:
                pairs[one, two] += count
    table = np.array([[pairs[one, two] for two in ("correct", "wrong")] for one in ("correct", "wrong")])
    compared, equal = int(table.sum()), int(table.trace())
    kappa = float(_kappa(table))
    defined = not np.isnan(kappa)
    return {
        "judged": first.total(),
        **{name: first[name] for name in ("correct", "wrong", "malformed", "exceeds_window")},
        "judged_again": second.total(),
        **{f"{name}_again": second[name] for name in ("malformed", "exceeds_window")},
        "compared": compared,
        "agreement": equal / compared if compared else None,
        "agreement_interval": wilson_interval(equal, compared) if compared else None,
        "kappa": kappa if defined else None,
        "kappa_interval": _kappa_interval(table) if defined else None,
    }


def describe_verdicts(stats: dict[str, Any]) -> str:
    """Of :func:`verdict_statistics`, what a dataset card says."""
    text = f"of {stats['judged']} responses {stats['correct']} were correct, {stats['wrong']} wrong"
    for name, meaning in (("malformed", "had a malformed reply"), ("exceeds_window", "did not fit the judge's window")):
        text += f", {stats[name]} {meaning}" if stats[name] else ""
    if not stats["compared"]:
        return f"{text}; none has two verdicts to compare"
    low, high = stats["agreement_interval"]
    text += f"; of {stats['compared']} judged again in another wording {stats['agreement']:.0%} [{low:.0%}, {high:.0%}]"
    text += " had the same verdict"
    if stats["kappa"] is None:
        return f"{text} (no kappa: all verdicts are alike)"
    low, high = stats["kappa_interval"]
    return f"{text} (Cohen's kappa {stats['kappa']:.2f} [{low:.2f}, {high:.2f}])"


def wilson_interval(successes: int, total: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    share, spread = successes / total, _Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def _kappa(tables: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cohen's kappa (1960) of 2 x 2 tables of counts [..., 2, 2]; NaN where both always say the same one thing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
        observed = shares[..., 0, 0] + shares[..., 1, 1]
        expected = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
        return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))


def _kappa_interval(table: np.ndarray[Any, Any]) -> list[float]:
    total = int(table.sum())
    # Resampling responses draws the four counts from a multinomial distribution.
    draws = np.random.default_rng(0).multinomial(total, table.ravel() / total, size=_RESAMPLES)
    low, high = np.nanpercentile(_kappa(draws.reshape(-1, 2, 2)), [2.5, 97.5])
    return [float(low), float(high)]
