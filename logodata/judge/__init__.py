"""Judge whether a response is right beside the references: by rules, and by a model where one is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logodata.contract import RuleVerdict
    from logodata.judge.settings import JudgeSettings


def verdict(response: str, references: Sequence[str], settings: JudgeSettings | None = None) -> RuleVerdict:
    """Return what the rules say of a response beside the references: ``right``, ``half_right`` or ``wrong``.

    Args:
        response: The text of the model. Its reasoning before the answer does not count.
        references: Answers each of which is right.
        settings: The measure that decides, and its limits; by default those of a recipe.

    Raises:
        ValueError: There is no reference, and so no verdict.
        UserError: The embedding model, which long references need, cannot be loaded.
    """
    if not references:
        raise ValueError("a verdict needs a reference")
    # Whoever imports the settings of the judge imports this package, and should not wait for its rules.
    from logodata.judge.rules import Measurer
    from logodata.judge.settings import JudgeSettings

    found = Measurer(settings or JudgeSettings()).measure(response, references).verdict
    assert found is not None
    return found
