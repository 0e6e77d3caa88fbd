"""Numbers that a model gives must be numbers: a mean over one NaN says nothing of all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from logodata.common.errors import UserError

DAMAGED = "try float32 (dtype, engine.dtype, --dtype); if that does not help, the model's weights are damaged"
"""How to mend what a model computes as NaN or infinity."""


def not_finite(numbers: Mapping[str, float | None]) -> str | None:
    """The first of ``numbers`` that is none, such as ``loss is nan``; None stands for what was not computed."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            return f"{name} is {number}"
    return None


def check_finite(numbers: Mapping[str, float | None], *, where: str, mend: str = DAMAGED) -> None:
    """Refuse numbers that are none.

    Raises:
        UserError: one is NaN or infinite; it is named, with ``where`` it comes from.
    """
    if (fault := not_finite(numbers)) is not None:
        raise UserError(fault, where=where, mend=mend)


def check_responses(chosen: float, rejected: Sequence[float], sample_id: str) -> None:
    """Refuse log-probabilities of a sample's responses that are no numbers.

    Raises:
        UserError: names the sample and the response.
    """
    numbers = {"log-probability of the preferred response": chosen}
    numbers |= {f"log-probability of dis-preferred response {n}": value for n, value in enumerate(rejected, 1)}
    check_finite(numbers, where=f"sample {sample_id}")
