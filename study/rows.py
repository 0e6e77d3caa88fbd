"""The rows of the comparisons. Each is the recipe of the scale with a few overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Row:
    """One way to train a model, or an untrained model.

    Attributes:
        name: its name in folders.
        label: its name in tables.
        overrides: overrides of ``logotrain run``; None for the base model.
        data: name of the data set, see :meth:`study.jobs.Study.builds`.
        rate_of: the row whose learning rate this row takes; None if its own is chosen.
        main: whether it is a row of Table 1. Other rows are settings of LOGO, or what these are compared with; they
            have one seed and no needles.
        against: the instruct tuning that a setting of LOGO has to beat, with as many updates on the same questions.
        edge_rates: learning rates that are tried beyond those of the scale, because the best of these was at the edge.
        replicated: whether it is trained with every seed and asked the fresh questions.
    """

    name: str
    label: str
    overrides: tuple[str, ...] | None = ()
    data: str = "train"
    rate_of: str | None = None
    main: bool = False
    against: str | None = None
    edge_rates: tuple[float, ...] = ()
    replicated: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether its learning rate is chosen on the validation documents."""
        return self.overrides is not None and self.rate_of is None and not self.is_untrained

    @property
    def is_untrained(self) -> bool:
        """Whether no weight changes: the base model, also with scaled positions."""
        return self.overrides is None or "epochs=0" in self.overrides


BASE, SFT, LOGO = "base", "sft-partial", "logo"
SFT_SAME_RATE = "sft-same-rate"
LOGO_LONG, SFT_LONG_SAME_RATE = "logo-long", "sft-long-same-rate"
LOGO_SAME_RATE = "logo-same-rate"
OURS = "ours"


def _setting(
    name: str, label: str, *overrides: str, data: str = "train", against: str | None = SFT, replicated: bool = False
) -> Row:
    return Row(name, f"LOGO, {label}", overrides, data, rate_of=LOGO, against=against, replicated=replicated)


_FULL = Row(
    "sft-full",
    "+ Instruct Tuning (Full)",
    ("objective={name: sft, tokens: sequence}",),
    main=True,
    edge_rates=(8e-3,),
)
_SIMPO = Row(
    "simpo",
    "+ SimPO (M=1)",
    ("objective={name: simpo, beta: 2.5, gamma: 0.25}", "data.num_rejected=1"),
    main=True,
)

ROWS = (
    Row(BASE, "SmolLM2-135M-Instruct", None, main=True, replicated=True),
    Row("yarn", "+ YaRN, training-free", ("epochs=0", "rope={type: yarn, factor: 2}"), main=True),
    Row("randpos", "+ RandPOS", ("positions.mode=randpos",), rate_of=LOGO, main=True),
    _FULL,
    Row(SFT, "+ Instruct Tuning (Partial)", ("objective={name: sft}",), main=True, edge_rates=(8e-3,)),
    _SIMPO,
    Row(LOGO, "+ LOGO (M=2, λ=0.1)", (), main=True, replicated=True),
    _setting("logo-m3", "M=3", "data.num_rejected=3"),
    _setting("logo-lambda0", "λ=0", "objective.sft_weight=0"),
    _setting("logo-lambda0.5", "λ=0.5", "objective.sft_weight=0.5"),
    _setting("logo-lambda1", "λ=1", "objective.sft_weight=1"),
    _setting("logo-continuous", "continuous positions only", "positions.mode=continuous"),
    _setting("logo-sparse", "sparse positions only", "positions.mode=sparse"),
    _setting("logo-unjudged", "judge off", data="train-unjudged"),
    _setting("logo-fused", "evaluator fused", data="train-fused"),
    # Remedies, in case LOGO does not beat instruct tuning. Fewer and more updates also show the effect of samples.
    _setting("logo-mixed", "dis-preferred of mixed contexts only", "data.rejected_strategies=[mixed-0.5,mixed-0.25]"),
    _setting("logo-paper", "β=10, γ=3", "objective.beta=10", "objective.gamma=3"),
    _setting("logo-short", "8 updates", "max_steps=8", against="sft-short"),
    Row(SFT_SAME_RATE, "Instruct Tuning (Partial), LOGO's learning rate", ("objective={name: sft}",), rate_of=LOGO),
    Row("sft-short", "Instruct Tuning (Partial), 8 updates", ("objective={name: sft}", "max_steps=8"), rate_of=SFT),
    _setting(LOGO_LONG, "two epochs", "epochs=2", against="sft-long", replicated=True),
    Row("sft-long", "Instruct Tuning (Partial), two epochs", ("objective={name: sft}", "epochs=2"), rate_of=SFT),
    # The best remedy against the row that is closest to it, with every seed and on fresh questions, and the next step
    # of the remedy.
    Row(
        SFT_LONG_SAME_RATE,
        "Instruct Tuning (Partial), two epochs, LOGO's learning rate",
        ("objective={name: sft}", "epochs=2"),
        rate_of=LOGO,
        replicated=True,
    ),
    _setting("logo-longer", "four epochs", "epochs=4", against=None),
)

CURVES = ("sft-full", SFT, LOGO)
"""Rows whose checkpoints are measured (the paper's Figure 7)."""

_SOLOPO = "objective={name: solopo, loss: {name: logo, beta: 2.5, gamma: 0.25, sft_weight: 0.1}, alpha: 1}"

LARGE_ROWS = (
    Row(BASE, "SmolLM2-135M-Instruct", None, main=True),
    _FULL,
    Row(SFT, "+ Instruct Tuning (Partial)", ("objective={name: sft}",), main=True),
    replace(_SIMPO, edge_rates=(3.125e-5,)),
    Row("dpo", "+ DPO (M=1)", ("objective={name: dpo}", "data.num_rejected=1"), main=True),
    Row(LOGO, "+ LOGO (M=2, λ=0.1)", (), main=True),
    Row("logo-lambda0.5", "+ LOGO, λ=0.5", ("objective.sft_weight=0.5",), rate_of=LOGO, main=True),
    Row(LOGO_LONG, "+ LOGO, two epochs", ("epochs=2",), rate_of=LOGO, main=True),
    Row(LOGO_SAME_RATE, "+ LOGO, SimPO's learning rate", (), rate_of="simpo", main=True),
    Row("solopo", "+ SoLoPO over LOGO", (_SOLOPO,), main=True),
    Row(
        OURS,
        "+ ours: λ=0.5, two epochs, questions of several kinds",
        ("objective.sft_weight=0.5", "epochs=2"),
        data="train-kinds",
        rate_of=LOGO,
        main=True,
    ),
)
"""The rows of the large scale. All have every seed and all measurements."""
