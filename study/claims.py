"""The paper's claims, and the rules by which they count as confirmed. They were written before the runs.

A claim compares two rows in one measure. It is confirmed if the 95 % interval of the paired difference over samples and
the difference of every seed lie on the claimed side of the bound. It is refuted if the interval lies on the other side.
Else it is not confirmed. There is no verdict from fewer independent samples than ``logoeval compare`` needs for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from logoeval.compare.compare import MIN_CLUSTERS
from logoeval.intervals import Estimate
from study.outcome import BOTH_F1, F1, FRESH_F1, MARGIN, PERPLEXITY, RECALL, Measure, Outcomes, outcome_measure
from study.rows import BASE, LOGO, LOGO_LONG, LOGO_SAME_RATE, OURS, SFT, SFT_LONG_SAME_RATE

Verdict = Literal["confirmed", "refuted", "not confirmed", "too few to tell"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Attributes:
        text: what the paper says, in our words.
        row: name of the row that is compared.
        other: name of the row that it is compared with.
        measure: what is compared.
        sign: +1 if the claim is that ``row`` minus ``other`` lies above ``bound``, -1 if it is below.
        bound: the bound of the difference.
    """

    text: str
    row: str
    other: str
    measure: Measure
    sign: int
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim with the difference that was found, over all samples and by seed, and the verdict."""

    claim: Claim
    change: Estimate
    by_seed: list[float]
    verdict: Verdict


_SAME_PPL = 0.5  # points of perplexity at 4,096 tokens, which is 2 % of about 20

# What both studies ask.
_ANSWERS = (
    Claim("LOGO improves answers on long contexts over the model as it was (Table 1)", LOGO, BASE, F1, +1),
    Claim("... over instruct tuning on the response (Table 1)", LOGO, SFT, F1, +1),
    Claim("... over instruct tuning on prompt and response (Table 1)", LOGO, "sft-full", F1, +1),
)
_SEVERAL = Claim(
    "Several dis-preferred responses are better than one: LOGO (M=2) over SimPO (M=1)", LOGO, "simpo", F1, +1
)
_NEEDLES = Claim("LOGO finds more needles than the model as it was (Figures 1, 3)", LOGO, BASE, RECALL, +1)
_PERPLEXITY = Claim(
    "LOGO keeps language modelling: perplexity rises by less than 0.5 (Figure 4)",
    LOGO,
    BASE,
    PERPLEXITY,
    -1,
    _SAME_PPL,
)
_MARGINS = (
    Claim("LOGO parts preferred from dis-preferred answers: the margin rises (Figure 6)", LOGO, BASE, MARGIN, +1),
    Claim("... further than instruct tuning on the response does", LOGO, SFT, MARGIN, +1),
)

CLAIMS = (
    *_ANSWERS,
    Claim("... over training under RandPOS positions (Table 1)", LOGO, "randpos", F1, +1),
    Claim("... over scaling positions without training (Table 1)", LOGO, "yarn", F1, +1),
    _SEVERAL,
    Claim("Three dis-preferred responses are better than two (Figure 6)", "logo-m3", LOGO, F1, +1),
    _NEEDLES,
    Claim("... than instruct tuning on the response (Figure 7)", LOGO, SFT, RECALL, +1),
    _PERPLEXITY,
    Claim("A larger λ lowers perplexity: λ=1 against λ=0 (Figure 6)", "logo-lambda1", "logo-lambda0", PERPLEXITY, -1),
    *_MARGINS,
    Claim(
        "LOGO leaves fewer answers that do not follow the instruction (Figure 9)",
        LOGO,
        BASE,
        outcome_measure("instruction_unfollowing"),
        -1,
    ),
    Claim("LOGO leaves fewer hallucinations (Figure 9)", LOGO, BASE, outcome_measure("hallucination"), -1),
    Claim("Mixed positions are better than continuous ones alone (section 3.3)", LOGO, "logo-continuous", F1, +1),
    Claim("... than sparse ones alone", LOGO, "logo-sparse", F1, +1),
    Claim("Ours: judged pairs train better than unjudged ones", LOGO, "logo-unjudged", F1, +1),
    Claim("Ours: contexts chosen by the fused evaluator train better than by entities", "logo-fused", LOGO, F1, +1),
)

REPLICATED = (
    Claim("Two epochs of LOGO improve answers over the model as it was", LOGO_LONG, BASE, FRESH_F1, +1),
    Claim("... over one epoch of it", LOGO_LONG, LOGO, FRESH_F1, +1),
    Claim("... over two epochs of instruct tuning at the same rate", LOGO_LONG, SFT_LONG_SAME_RATE, FRESH_F1, +1),
    Claim("One epoch of LOGO improves answers over the model as it was", LOGO, BASE, FRESH_F1, +1),
)
"""Claims that the held-out questions suggested, tested on questions that nobody had seen when this was written."""

TOGETHER = tuple(replace(claim, measure=BOTH_F1) for claim in REPLICATED)
"""The claims of :data:`REPLICATED` over both sets of questions, as a summary. Both sets had been seen by then."""

LARGE_CLAIMS = (
    *_ANSWERS,
    _SEVERAL,
    Claim("... at one learning rate", LOGO_SAME_RATE, "simpo", F1, +1),
    Claim("LOGO over DPO (M=1)", LOGO, "dpo", F1, +1),
    Claim("Two epochs of LOGO over one", LOGO_LONG, LOGO, F1, +1),
    Claim("λ=0.5 over λ=0.1", "logo-lambda0.5", LOGO, F1, +1),
    Claim("SoLoPO over LOGO, the loss that it wraps", "solopo", LOGO, F1, +1),
    Claim("Ours: λ=0.5, two epochs and questions of several kinds over LOGO", OURS, LOGO, F1, +1),
    Claim("... over instruct tuning on the response", OURS, SFT, F1, +1),
    _NEEDLES,
    Claim("Questions of several kinds keep needles: ours over LOGO", OURS, LOGO, RECALL, +1),
    _PERPLEXITY,
    *_MARGINS,
)
"""The claims of the large scale."""


def claims_of(outcomes: Outcomes) -> tuple[Sequence[Claim], Sequence[Claim], Sequence[Claim]]:
    """Return the claims of a study, those on fresh questions, and these over all questions, on the rows that are
    measured."""
    rows = {one.name: one for one in outcomes.rows}

    def comparable(claim: Claim) -> bool:
        found = [rows[name] for name in (claim.row, claim.other) if name in rows]
        return len(found) == 2 and bool(outcomes.shared_seeds(*found))

    def about(claims: Sequence[Claim]) -> Sequence[Claim]:
        return list(filter(comparable, claims))

    if outcomes.study.scale.corpus:
        return about(LARGE_CLAIMS), (), ()
    return about(CLAIMS), about(REPLICATED), about(TOGETHER)


NOT_TESTABLE = (
    "Averages of LongBench: two cores read few of its rows within this window; with --longbench what fits is measured.",
    "Windows of 64K and more; short-context benchmarks (MMLU, ARC, TruthfulQA), on which a 135M model is at chance.",
    "GPU memory of each setting (Figure 6c), training time on 8 GPUs.",
)


def judge(claim: Claim, outcomes: Outcomes) -> Finding:
    """Return what was found for a claim. None is confirmed of a row that collapsed with one of its seeds."""
    one, other = outcomes.row(claim.row), outcomes.row(claim.other)
    change = outcomes.change(one, other, claim.measure)
    by_seed = outcomes.changes_by_seed(one, other, claim.measure)
    verdict = _verdict(claim, change, by_seed)
    if verdict == "confirmed" and outcomes.collapsed_seeds(one):
        verdict = "not confirmed"
    return Finding(claim, change, by_seed, verdict)


def _verdict(claim: Claim, change: Estimate, by_seed: Sequence[float]) -> Verdict:
    if change.interval is None or change.fewest_clusters < MIN_CLUSTERS:
        return "too few to tell"
    low, high = sorted(claim.sign * (edge - claim.bound) for edge in change.interval)
    if low > 0 and all(claim.sign * (value - claim.bound) > 0 for value in by_seed):
        return "confirmed"
    return "refuted" if high < 0 else "not confirmed"
