"""The objectives: what each reads of a sample, and its settings. The losses are in :mod:`logotrain.loss.objective`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from logodata.common.recipes.reading import RecipeModel


@dataclass(frozen=True, slots=True)
class RowPart:
    """A prompt with the responses after it that share its computation. A sample brings one or two of them to a row.

    Attributes:
        short: whether the prompt holds the critical chunks alone, at natural positions.
        rejected: whether the dis-preferred responses follow the preferred one.
        scores_prompt: whether the prompt's tokens, all but the first, are scored too.
    """

    short: bool = False
    rejected: bool = True
    scores_prompt: bool = False


class Objective(RecipeModel):
    """A loss: what it reads of a sample, and its settings. A new one is a class here and a case in
    :func:`logotrain.loss.objective.sample_loss`.

    Its first field is ``name``.
    """

    @property
    def parts(self) -> tuple[RowPart, ...]:
        """What a sample brings to a row of training. The whole prompt is in the last part."""
        return (RowPart(),)

    @property
    def reference_parts(self) -> tuple[RowPart, ...]:
        """What a sample brings to a row of the untrained model, which scores responses alone. It is empty if the loss
        reads no log-probabilities of that model."""
        return ()

    reference_has_own_rope: ClassVar[bool] = False
    """Whether the untrained model has its own RoPE, also where the recipe scales it."""

    @property
    def mean_margin_scale(self) -> float | None:
        """What scales the difference of mean token log-probabilities in the loss; None where the loss has another
        measure. Far below zero, the scaled difference saturates the loss."""
        return None

    @property
    def uses_rejected(self) -> bool:
        """Whether the loss reads dis-preferred responses. If not, rows do not hold them."""
        return any(part.rejected for part in self.parts)

    @property
    def uses_reference(self) -> bool:
        """Whether the loss reads log-probabilities of the untrained model."""
        return bool(self.reference_parts)

    @property
    def uses_short_prompt(self) -> bool:
        """Whether the loss reads log-probabilities under the prompt of the critical chunks alone."""
        return any(part.short for part in (*self.parts, *self.reference_parts))

    @property
    def scores_prompt(self) -> bool:
        """Whether the loss reads the log-probabilities of the prompt's tokens."""
        return any(part.scores_prompt for part in self.parts)


class LogoSettings(Objective):
    """LOGO (paper Eq. 2 and 3). The defaults are the paper's values for the Llama-3-8B family."""

    name: Literal["logo"] = "logo"
    """Which loss."""

    beta: float = Field(default=10.0, gt=0)
    """Scale of the difference of mean token log-probabilities."""

    gamma: float = Field(default=3.0, ge=0)
    """Margin by which the preferred response must lead, after scaling by beta."""

    sft_weight: float = Field(default=0.1, ge=0)
    """Weight lambda of the negative mean log-probability of the preferred response."""

    @property
    def mean_margin_scale(self) -> float:
        """``beta``."""
        return self.beta


class SimpoSettings(Objective):
    """SimPO (arXiv 2405.14734): one pair per dis-preferred response, their losses averaged."""

    name: Literal["simpo"] = "simpo"
    """Which loss."""

    beta: float = Field(default=10.0, gt=0)
    """Scale of the difference of mean token log-probabilities."""

    gamma: float = Field(default=3.0, ge=0)
    """Margin by which the preferred response must lead, after scaling by beta."""

    @property
    def mean_margin_scale(self) -> float:
        """``beta``."""
        return self.beta


class CpoSettings(Objective):
    """CPO (arXiv 2401.08417): one pair per dis-preferred response, their losses averaged."""

    name: Literal["cpo"] = "cpo"
    """Which loss."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of summed log-probabilities."""

    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative mean log-probability of the preferred response."""


class DpoSettings(Objective):
    """DPO (arXiv 2305.18290). Its reference is the untrained model, whose log-probabilities are computed once, before
    step 1."""

    name: Literal["dpo"] = "dpo"
    """Which loss."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of summed log-probability ratios."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the preferred response's negative mean log-probability, which DPO has not. LongReward (arXiv
    2410.21252) takes 0.1, Iterative RPO (2404.19733) 1."""

    @property
    def reference_parts(self) -> tuple[RowPart, ...]:
        """Those of training."""
        return self.parts


class IpoSettings(Objective):
    """IPO (arXiv 2310.12036, Eq. 17) on mean token log-probabilities, as TRL computes it. Its reference is DPO's."""

    name: Literal["ipo"] = "ipo"
    """Which loss."""

    tau: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: the log-probability ratios of preferred and dis-preferred responses are to
    differ by 1 / (2 tau) nats a token."""

    @property
    def reference_parts(self) -> tuple[RowPart, ...]:
        """Those of training."""
        return self.parts


class OrpoSettings(Objective):
    """ORPO (arXiv 2403.07691), which needs no reference: one pair per dis-preferred response, their losses averaged."""

    name: Literal["orpo"] = "orpo"
    """Which loss."""

    preference_weight: float = Field(default=0.1, ge=0)
    """Weight lambda of the log odds ratio beside the negative mean log-probability of the preferred response."""


class SftSettings(Objective):
    """Instruct tuning on the preferred responses (paper Table 1). Dis-preferred responses are not computed."""

    name: Literal["sft"] = "sft"
    """Which loss."""

    tokens: Literal["response", "sequence"] = "response"
    """Tokens that are trained on: ``response`` is the paper's Instruct Tuning (Partial), ``sequence`` (prompt and
    response) its Instruct Tuning (Full)."""

    @property
    def parts(self) -> tuple[RowPart, ...]:
        """The preferred response, after a prompt that is scored where all tokens are trained on."""
        return (RowPart(rejected=False, scores_prompt=self.tokens == "sequence"),)


def _name_or(default: str) -> Discriminator:
    def name(value: Any) -> Any:
        return value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)

    return Discriminator(name)


WrappedSettings = Annotated[
    Annotated[LogoSettings, Tag("logo")]
    | Annotated[SimpoSettings, Tag("simpo")]
    | Annotated[DpoSettings, Tag("dpo")]
    | Annotated[OrpoSettings, Tag("orpo")],
    _name_or("simpo"),
]


class SolopoSettings(Objective):
    """SoLoPO (arXiv 2505.11166): a preference loss under the prompt of the critical chunks alone, and a term that gives
    the preferred response the same reward under the whole prompt."""

    name: Literal["solopo"] = "solopo"
    """Which loss."""

    loss: WrappedSettings = SimpoSettings()
    """The loss under the short prompt, with its own fields. ``name`` is ``simpo``, ``dpo``, ``orpo`` or ``logo``."""

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the distance between the rewards of the preferred response under both prompts. The paper takes 1 for
    SimPO and ORPO and 3 for DPO with Qwen2.5-7B."""

    @property
    def parts(self) -> tuple[RowPart, ...]:
        """All responses under the short prompt, and the preferred one under the whole prompt."""
        return RowPart(short=True), RowPart(rejected=False)

    @property
    def reference_parts(self) -> tuple[RowPart, ...]:
        """Those of training, if the wrapped loss has a reference."""
        return self.parts if self.loss.uses_reference else ()

    @property
    def mean_margin_scale(self) -> float | None:
        """That of the wrapped loss."""
        return self.loss.mean_margin_scale


class LongpoSettings(Objective):
    """LongPO (arXiv 2502.13922, Eq. 12 to 14): DPO under the whole prompt, whose reference sees the prompt of the
    critical chunks alone, with the model's own RoPE; and the negative mean log-probability of prompt and preferred
    response."""

    name: Literal["longpo"] = "longpo"
    """Which loss."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of summed log-probability ratios. The command of the authors' repository has 0.01."""

    preference_weight: float = Field(default=0.01, ge=0)
    """Weight lambda of the preference beside the negative mean log-probability, whose weight is 1."""

    tokens: Literal["sequence", "response"] = "sequence"
    """Tokens of the negative mean log-probability: prompt and preferred response, as in the paper, or the preferred
    response alone."""

    reference_has_own_rope: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[RowPart, ...]:
        """All responses, after a prompt that is scored where all tokens are trained on."""
        return (RowPart(scores_prompt=self.tokens == "sequence"),)

    @property
    def reference_parts(self) -> tuple[RowPart, ...]:
        """All responses under the short prompt."""
        return (RowPart(short=True),)


ObjectiveSettings = Annotated[
    Annotated[LogoSettings, Tag("logo")]
    | Annotated[SimpoSettings, Tag("simpo")]
    | Annotated[CpoSettings, Tag("cpo")]
    | Annotated[DpoSettings, Tag("dpo")]
    | Annotated[IpoSettings, Tag("ipo")]
    | Annotated[OrpoSettings, Tag("orpo")]
    | Annotated[SolopoSettings, Tag("solopo")]
    | Annotated[LongpoSettings, Tag("longpo")]
    | Annotated[SftSettings, Tag("sft")],
    _name_or("logo"),
]
