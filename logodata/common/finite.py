"""Refuse model outputs that are not finite: a mean over one NaN says nothing about all the other values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from logodata.common.errors import UserError

DAMAGED = "try float32 (dtype, engine.dtype, --dtype); if that does not help, the model's weights are damaged"
"""How to mend NaN or infinity in what a model computes."""


def not_finite(numbers: Mapping[str, float | None]) -> str | None:
    """Return the first of ``numbers`` that is not finite, such as ``loss is nan``, or None. A None among them was not
    computed."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            return f"{name} is {number}"
    return None


def check_finite(numbers: Mapping[str, float | None], *, where: str, mend: str = DAMAGED) -> None:
    """Refuse numbers that are not finite.

    Raises:
        UserError: A number is NaN or infinite. It is named, with ``where`` it comes from.
    """
    if (fault := not_finite(numbers)) is not None:
        raise UserError(fault, where=where, mend=mend)


def check_responses(chosen: float, rejected: Sequence[float], sample_id: str) -> None:
    """Refuse log-probabilities of a sample's responses that are not finite.

    Raises:
        UserError: It names the sample and the response.
    """
    numbers = {"log-probability of the preferred response": chosen}
    numbers |= {f"log-probability of dis-preferred response {n}": value for n, value in enumerate(rejected, 1)}
    check_finite(numbers, where=f"sample {sample_id}")
